"""Tables and charts from the result.json of a matrix.

    python benchmarks/report.py benchmarks/results/2026-01-30_epyc              # README.md and charts in that folder
    python benchmarks/report.py benchmarks/results/2026-01-30_epyc --readme     # and the table in the project's READMEs
    python benchmarks/report.py benchmarks/results/*_epyc benchmarks/results/*_xeon --readme     # those of both

The project's READMEs keep the table between two comment lines; everything between them is written anew. An arm whose
losses were not the reference's has no speed in any table. Charts are plain SVG, drawn here: two need no library.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
BEGIN, END = "<!-- benchmarks: written by benchmarks/report.py -->", "<!-- /benchmarks -->"
STOCK = ("stock", "stock-no-checkpointing", "stock-padding-free")
HEADINGS = {
    "en": (
        "data, samples a step", "stock", "fasttune", "speed-up", "against stock's best", "fewer tokens",
        "of the matmul limit", "memory, GiB", "first loss, stock / fasttune",
    ),
    "zh": (
        "数据，每步样本数", "原版", "fasttune", "加速", "对比原版最快方式", "token 减少", "占矩阵乘上限", "内存 GiB",
        "首步损失，原版 / fasttune",
    ),
}  # fmt: skip
ABOUT = {
    "en": "{base}, {dtype}, LoRA r = {r}, {device}; samples/s, median of {repeats} rounds of {steps} steps, arms in "
    "alternating order. [How it is measured, all arms]({link})",
    "zh": "{base}，{dtype}，LoRA r = {r}，{device}；单位 样本/秒，取 {repeats} 轮、每轮 {steps} 步的中位数，"
    "各方案交替运行。[测量方法与全部方案]({link})",
}
PAGES = {"en": REPOSITORY / "README.md", "zh": REPOSITORY / "README.zh-CN.md"}
DOCS = "../../../docs/benchmarks.md"  # from a folder of results
Points = Sequence[tuple[float, float]]


def main() -> None:
    """Read the command line and write the page and the charts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--readme", action="store_true", help="also write the project's two READMEs")
    options = parser.parse_args()
    documents = {folder: json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in options.folders}
    for folder, document in documents.items():
        (folder / "README.md").write_text(whole_page(document, draw(document, folder)), encoding="utf-8")
    for language, page in PAGES.items() if options.readme else ():
        links = {folder: Path(os.path.relpath(folder, page.parent)).as_posix() for folder in documents}
        put(page, "\n".join(summary(one["entries"], language, f"{links[folder]}/README.md")
                            for folder, one in documents.items()))  # fmt: skip


# Tables -------------------------------------------------------------------------------------------------------------


def put(page: Path, text: str) -> None:
    """Replace the text between a page's two comment lines. Raises SystemExit for a page without them."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def summary(entries: Sequence[dict[str, Any]], language: str, link: str) -> str:
    """The table of the READMEs, one for each base and type: a line for each data set, stock beside fasttune."""
    parts = []
    for first in first_of_each_table(entries):
        alike = [entry for entry in entries if table_key(entry) == table_key(first)]
        parts += [
            table(HEADINGS[language], [summary_row(entry) for entry in alike]),
            "",
            about(first, language, link),
            "",
        ]
    return "\n".join(parts)


def first_of_each_table(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first entry of each table, in order."""
    return list({table_key(entry): entry for entry in reversed(entries)}.values())[::-1]


def table_key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What entries of one table share."""
    return entry["base"], entry["dtype"], entry["load_in_4bit"], entry["device"]["name"]


def about(entry: Mapping[str, Any], language: str, link: str) -> str:
    """The line under a table: base, number type, device and how often it was measured."""
    device = entry["device"]
    name = device["name"] if device["kind"] == "cuda" else f"{device['threads']} cores of {entry['processor']}"
    dtype = entry["dtype"] + (", 4 bits" if entry["load_in_4bit"] else "")
    return ABOUT[language].format(
        base=entry["base"],
        dtype=dtype,
        r=entry["lora_r"],
        device=name,
        repeats=entry["repeats"],
        steps=entry["steps"],
        link=link,
    )


def summary_row(entry: Mapping[str, Any]) -> list[str]:
    """Stock beside fasttune on one data set; what did not run or was not the same training says so instead."""
    arms = {arm["name"]: arm for arm in entry["arms"]}
    title = f"{entry['case']}, {entry['batch_size']}{in_parts(entry)}"
    stock, ours = arms.get("stock"), arms.get("fasttune")
    if stock is None or ours is None or stock["status"] != "ok" or ours["status"] != "ok":
        return [title, status(stock), status(ours), *[""] * 6]
    best = max(rate(arms[name]) for name in STOCK if name in arms and arms[name]["status"] == "ok")
    return [
        title,
        f"{rate(stock):.3g}",
        f"**{rate(ours):.3g}**",
        f"**{ours['speedup']:.1f}×**",
        f"{rate(ours) / best:.1f}×",
        f"{ours['arithmetic_ratio']:.1f}×",
        f"{stock.get('limit_share', math.nan):.0%} / {ours.get('limit_share', math.nan):.0%}",
        f"{memory(stock)} / {memory(ours)}",
        f"{stock['first_loss']:.5f} / {ours['first_loss']:.5f}",
    ]


def in_parts(entry: Mapping[str, Any]) -> str:
    """Where stock could not take a step at once."""
    return f" (stock {entry['micro_batch']} at a time)" if 0 < entry["micro_batch"] < entry["batch_size"] else ""


def status(arm: Mapping[str, Any] | None) -> str:
    """Samples a second of a valid arm, else why there is no such number."""
    if arm is None:
        return "not measured"
    return f"{rate(arm):.3g}" if arm["status"] == "ok" else arm["status"]


def rate(arm: Mapping[str, Any]) -> float:
    """Samples a second, median."""
    return float(arm["samples_per_second"]["median"])


def memory(arm: Mapping[str, Any]) -> str:
    """GiB: resident, or on a GPU reserved (allocated)."""
    values = list(arm["memory"].values())
    return f"{values[0]:.1f}" + (f" ({values[1]:.1f})" if len(values) > 1 else "")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def whole_page(document: Mapping[str, Any], charts: Sequence[str]) -> str:
    """README.md of a results folder: the summary, every arm of every entry, the growth, the charts."""
    parts = [f"# {document['name']}"]
    parts += [summary(document["entries"], "en", DOCS)] + [f"![]({name})" for name in charts]
    for entry in document["entries"]:
        parts += [
            f"## {entry_title(entry)}",
            entry_facts(entry),
            table(ARM_HEADINGS, [arm_row(arm) for arm in entry["arms"]]),
        ]
        parts += [f"{arm['name']}: {arm['status']}: {arm['why']}" for arm in entry["arms"] if arm["why"]]
    if document["growth"]:
        parts += ["## Seconds that data cost, by number of samples", growth_table(document["growth"])]
    return "\n\n".join(parts) + "\n"


ARM_HEADINGS = (
    "arm", "s/step", "min–max", "samples/s", "tokens/s", "supervised/s", "computed tokens a step", "speed-up",
    "of the limit", "GiB", "start-up, s", "first loss", "last loss", "gradient norm",
)  # fmt: skip


def arm_row(arm: Mapping[str, Any]) -> list[str]:
    """All figures of an arm that is valid; its losses alone where it is not."""
    if "losses" not in arm:
        return [arm["name"], arm["status"], *[""] * 12]
    losses = [f"{arm['first_loss']:.6f}", f"{arm['last_loss']:.6f}", f"{arm['grad_norm']:.6f}"]
    if arm["status"] != "ok":
        return [arm["name"], arm["status"], *[""] * 9, *losses]
    step = arm["step_seconds"]
    return [
        arm["name"],
        f"{step['median']:.3g}",
        f"{step['min']:.3g}–{step['max']:.3g}",
        f"{rate(arm):.3g}",
        f"{arm['tokens_per_second']['median']:,.0f}",
        f"{arm['supervised_tokens_per_second']['median']:,.0f}",
        f"{arm['computed_tokens'] / timed_steps(arm):,.0f}",
        f"{arm['speedup']:.2f}" if "speedup" in arm else "",
        f"{arm['limit_share']:.0%}" if "limit_share" in arm else "",
        memory(arm),
        f"{arm['start_up_seconds']['median']:.1f}",
        *losses,
    ]


def timed_steps(arm: Mapping[str, Any]) -> int:
    """Steps of one round that were timed."""
    return round(arm["steps_per_second"]["median"] * arm["seconds"])


def entry_title(entry: Mapping[str, Any]) -> str:
    """The heading of an entry."""
    bits = ", 4 bits" if entry["load_in_4bit"] else ""
    return f"{entry['case']}, {entry['base']}, {entry['dtype']}{bits}, batch_size {entry['batch_size']}"


def entry_facts(entry: Mapping[str, Any]) -> str:
    """When, on which commits and how often an entry was measured, and the machine's limit."""
    rates = ", ".join(f"{name} {value:,.0f}" for name, value in entry["limit_gflops"].items())
    short = f" (the first of {entry['warmup_samples']} samples)" if entry["warmup_samples"] else ""
    parts = f"stock and plain take {entry['micro_batch']} samples at a time; " if in_parts(entry) else ""
    commits = {commit for arm in entry["arms"] for commit in arm.get("commits", ())}
    return (
        f"{entry['created']}, commit {', '.join(sorted(commits)) or 'unknown'}; {entry['warmup']} warmup steps{short} "
        f"and {entry['steps']} timed, {entry['repeats']} rounds; {parts}losses held to {entry['reference']}'s; "
        f"GFLOP/s of matrix products: {rates}"
    )


def growth_table(lines: Sequence[Mapping[str, float]]) -> str:
    """Seconds of each part of data preparation, a row for each number of samples."""
    headings = ["samples", *(name.removesuffix("_seconds") for name in lines[0] if name != "samples")]
    return table(
        headings,
        [[f"{value:,}" if name == "samples" else f"{value:.2f}" for name, value in line.items()] for line in lines],
    )


# Charts --------------------------------------------------------------------------------------------------------------


def draw(document: Mapping[str, Any], folder: Path) -> list[str]:
    """The charts that there are figures for; their file names."""
    found = {"sharing.svg": sharing(document["entries"]), "growth.svg": growing(document["growth"])}
    for name, drawing in found.items():
        if drawing:
            (folder / name).write_text(drawing, encoding="utf-8")
    return [name for name, drawing in found.items() if drawing]


def sharing(entries: Sequence[dict[str, Any]]) -> str:
    """Samples/s against the number of samples of a step, which share the persona's prompt; "" for fewer than two."""
    series: dict[str, list[tuple[float, float]]] = {}
    persona = [entry for entry in entries if entry["case"] == "persona"]
    keys = [table_key(entry) for entry in persona]
    for entry in persona:
        for arm in entry["arms"]:
            if table_key(entry) == max(keys, key=keys.count) and arm["status"] == "ok":
                series.setdefault(arm["name"], []).append((entry["batch_size"], rate(arm)))
    lines = {name: sorted(points) for name, points in series.items() if len(points) > 1}
    return chart("samples that share a prompt in a step", "samples/s", lines) if lines else ""


def growing(lines: Sequence[Mapping[str, float]]) -> str:
    """Seconds of reading, tokenizing and planning against the number of samples."""
    names = [name for name in lines[0] if name != "samples"] if len(lines) > 1 else []
    series = {name.removesuffix("_seconds"): [(line["samples"], line[name]) for line in lines] for name in names}
    return chart("samples", "seconds", series) if series else ""


WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 380, 70, 50, 20, 170
COLOURS = ("#d1495b", "#00798c", "#edae49", "#30638e", "#6a4c93", "#5b8e7d", "#8d6a9f", "#3d405b")


def chart(x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """Lines on two logarithmic axes, as SVG."""
    across = Axis.over([x for points in series.values() for x, _y in points], LEFT, WIDTH - RIGHT)
    up = Axis.over([y for points in series.values() for _x, y in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for x in across.ticks():
        parts.append(svg_line(across.at(x), HEIGHT - BOTTOM, across.at(x), TOP, "#ddd"))
        parts.append(svg_text(across.at(x), HEIGHT - BOTTOM + 18, f"{x:,g}", "middle"))
    for y in up.ticks():
        parts.append(svg_line(LEFT, up.at(y), WIDTH - RIGHT, up.at(y), "#ddd"))
        parts.append(svg_text(LEFT - 6, up.at(y) + 4, f"{y:,g}", "end"))
    for number, (name, points) in enumerate(series.items()):
        colour, places = COLOURS[number % len(COLOURS)], [(across.at(x), up.at(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts.append(svg_text(WIDTH - RIGHT + 12, TOP + 14 + 18 * number, name, "start", colour))
    parts.append(svg_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"))
    parts.append(svg_text(LEFT, TOP - 6, y_label, "end"))
    body = "\n".join(parts)
    frame = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    return f"<svg {frame}>\n{body}\n</svg>\n"


class Axis:
    """A logarithmic axis between two places of the drawing."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high, self.begin, self.end = low, high, begin, end

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float) -> Axis:
        """An axis that the values, all above 0, fill to a tenth."""
        return cls(min(values) / 1.1, max(values) * 1.1, begin, end)

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers on the axis: powers of ten, with 2 and 5 where they are few."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        tens = [10.0**power for power in powers if self.low <= 10.0**power <= self.high]
        if len(tens) > 3:
            return tens
        return [
            step * 10.0**power for power in powers for step in (1, 2, 5) if self.low <= step * 10.0**power <= self.high
        ]


def svg_line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """A line between two points."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def svg_text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    """Text at a point; `anchor` is start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
