"""The page of runs: what stands in it, whatever its data hold, and of runs in any state."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Cli
from kept_epochs import write_epochs
from run_folders import write_run
from test_damaged_runs import DAMAGES
from whole_runs import whole_run

from fasttune import files
from fasttune.analysis import page, report, report_curves, run_report
from fasttune.console import FasttuneError
from fasttune.runs import documents
from fasttune.runs.documents import Probe
from fasttune.runs.store import Run

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)> {{ 7*7 }} {% raw %} "
    "https://evil.example/x.js \x1b[31mred\x1b[0m \x00\x9b \u202eright to left\u202c مرحبا </script> `code` ]]>"
)
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """What a browser would make of a page: elements, their attributes, the text, the texts of each script element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data


def read(path: Path) -> Reader:
    """The page, which must be well-formed, small, and able to do nothing."""
    raw = path.read_bytes()
    assert len(raw) < page.LARGEST
    found = Reader(raw.decode("utf-8"))
    assert found.open == []
    assert_inert(found)
    return found


def assert_inert(found: Reader) -> None:
    """No script but data, no handler, nothing that is loaded, no address of another place, and no id twice."""
    assert [one for one in found.elements if one[0] == "script"] == [
        ("script", {"type": "application/json", "id": "figures"})
    ]
    for tag, attributes in found.elements:
        assert tag not in ("iframe", "object", "embed", "img", "link", "form", "base"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
    ids = [attributes["id"] for _tag, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def figures(found: Reader) -> dict[str, object]:
    """The figures that a page holds."""
    document = json.loads(found.scripts[0])
    assert isinstance(document, dict)
    return document


def test_a_page_says_all_that_is_known_of_a_run(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    found = read(report.write([run], run.report).path)
    for text in (
        "persona/002-incremental", "Verdict", "Loss", "Epoch by epoch", "2.9512", "1.9e-4", "✓ continued", "base 小灯",
        "trained 小灯", "answer after 2", "pick persona/002-incremental --epoch 2", "✓ kept", "小灯:7", "4.50", "12 MB",
        "persona-Q8_0.gguf", "001-fresh", "epochs 2 → 3", "0.1.0",
    ):  # fmt: skip
        assert text in found.text, text


def test_a_page_says_that_general_conversations_were_trained_on(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "general ones" not in read(report.write([run], run.report).path).text
    documents.write(run.plan, replace(documents.read_plan(run), general_samples=7))
    assert "20 held out, and 7 general ones trained on" in read(report.write([run], run.report).path).text


def test_the_order_is_that_of_the_questions_people_have(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    sections = [one[1]["id"] for one in read(report.write([run], run.report).path).elements if one[0] == "section"]
    assert sections == [
        "verdict", "curves", "epochs-in-figures", "seams", "epochs", "answers", "facts", "worst", "lineage", "exports",
        "versions",
    ]  # fmt: skip


def test_hostile_texts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    run = whole_run(tmp_path, HOSTILE)
    written = report.write([run], run.report)
    found = read(written.path)
    assert "<script>alert(1)</script>" in found.text and "{{ 7*7 }}" in found.text
    raw = written.path.read_text(encoding="utf-8")
    assert not set(raw) & {"\x1b", "\x00", "\x9b", "\u202e", "\u202c"}
    assert "\\x1b[31mred" in found.text and "\\u202eright to left" in found.text
    assert figures(found)["runs"]


def test_a_stranger_s_text_is_isolated_from_what_stands_around_it(tmp_path: Path) -> None:
    run = whole_run(tmp_path, "مرحبا")
    found = read(report.write([run], run.report).path)
    assert [one for one in found.elements if one[0] == "div" and one[1].get("dir") == "auto"]
    assert all(one[1].get("dir") == "auto" for one in found.elements if one[1].get("class") in ("said", "question"))


def test_answers_of_a_megabyte_are_cut_and_it_is_said(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    scores = documents.read_scores(run)
    long = tuple(Probe(f"q{n}", "长" * (1_000_000 if n == 0 else 3000), "x" * 3000) for n in range(30))
    documents.write(run.scores, replace(scores, probes=long))
    found = read(report.write([run], run.report).path)
    assert "1,000,000 characters in all" in found.text and "24 of 30 questions are shown" in found.text


@pytest.mark.parametrize("lines", [3_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_history_stays_small(tmp_path: Path, lines: int) -> None:
    run = write_run(tmp_path, losses=(2.0,))
    line = (
        '{"step": %d, "epoch": %f, "loss": %f, "mean_token_accuracy": 0.5, "grad_norm": 1.5, "learning_rate": 1e-4}\n'
    )
    text = "".join(line % (n, n / 1000, 3 + (n * 7919 % 1000) / 1000) for n in range(1, lines + 1))
    files.write_text(run.history, text)
    found = read(report.write([run], run.report).path)
    curves = figures(found)["runs"][0]["curves"]  # type: ignore[index]
    assert 100 < len(curves["loss"]) < 130


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_a_page_has_one_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lang: str) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", lang)
    run = whole_run(tmp_path)
    found = read(report.write([run], run.report).path)
    assert found.elements[0] == ("html", {"lang": {"zh": "zh-CN", "en": "en"}[lang]})
    assert ("准确率" in found.text) == (lang == "zh")


def test_several_runs_are_compared_and_the_best_is_set_off(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    written = report.write([Run(tmp_path, "persona/001-fresh"), run], tmp_path / "both.html")
    found = read(written.path)
    assert found.elements[0][0] == "html" and "persona: 001-fresh, 002-incremental" in found.text
    assert "Held-out loss" in found.text and "Training loss" in found.text
    assert [one["id"] for one in written.figures["runs"]] == ["persona/001-fresh", "persona/002-incremental"]


def test_runs_of_two_series_are_told_apart(tmp_path: Path) -> None:
    """Both have a run 001-fresh: legends, the table and the list of sections say which is whose."""
    runs = [write_run(tmp_path, series=name, losses=(2.0, 1.0)) for name in ("one", "other")]
    text = report.write(runs, tmp_path / "both.html").path.read_text(encoding="utf-8")
    for name in ("one/001-fresh", "other/001-fresh"):
        assert f"<bdi>{name}</bdi>" in text and f'dir="auto">{name}</th>' in text and f">{name}</a>" in text
    assert "<bdi>001-fresh</bdi>" not in text


def test_a_line_does_not_cover_that_of_the_parent_beside_it(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    both = [run_report.read_run(one) for one in (Run(tmp_path, "persona/001-fresh"), run)]
    held_out = next(chart for chart in report_curves.charts_of(both) if chart.name == "held-out-loss")
    assert [[x for x, _y in one.points] for one in held_out.series] == [[1.0, 2.0], [2.0, 2.0, 3.0]]
    (alone,) = [chart for chart in report_curves.charts_of(both[1:]) if chart.name == "loss"]
    assert len(alone.series[1].points) == 5 and alone.at == ((2.0, "002-incremental"),)


def test_a_run_without_anything_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, losses=(), finished=False)
    found = read(report.write([run], run.report).path)
    assert "no verdict yet: stopped" in found.text


def test_the_epoch_in_use_is_the_one_with_the_weights_of_the_adapter(tmp_path: Path) -> None:
    """With early stopping the training ends with an earlier epoch's adapter than the last one."""
    run = write_run(tmp_path, losses=(4.0, 3.0, 2.0), held_out=(3.0, 2.0, 2.5))
    write_epochs(run, (1, 2, 3), (3.0, 2.0, 2.5), steps_per_epoch=1, own=2)
    kept = report.write([run], run.report).figures["runs"][0]["kept_epochs"]
    assert [(one["epoch"], one["served"]) for one in kept] == [("1", False), ("2", True), ("3", False)]


def test_what_can_be_read_of_a_damaged_run_is_shown_and_the_rest_named(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    run.scores.write_bytes(b"{broken")
    lines = run.history.read_bytes().split(b"\n")
    files.write_text(run.history, b"\n".join([lines[0], b"not json", *lines[1:]]).decode())
    written = report.write([run], run.report)
    found = read(written.path)
    named = " ".join(one.where for one in written.problems)
    assert "scores.json" in named and "history.jsonl:2" in named
    assert "scores.json" in found.text and "Epoch by epoch" in found.text and "1.500" in found.text


def test_the_figures_are_those_of_json(tmp_path: Path, fasttune: Cli) -> None:
    run = whole_run(tmp_path / "runs")
    done = fasttune("report", "persona", "--json")
    printed = json.loads(done.stdout)
    assert printed.pop("page") == str(run.report) and done.returncode == 0
    assert figures(read(run.report)) == printed
    one = printed["runs"][0]
    assert one["figures"]["verdict"] and one["epochs"][1]["eval_loss"] == 2.9 and one["seams"][0]["difference"] == 0


def test_the_command_says_where_the_page_is_and_how_it_is_opened(tmp_path: Path, fasttune: Cli) -> None:
    run = whole_run(tmp_path / "runs")
    done = fasttune("report", "persona", "persona/001", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "report.html" and (tmp_path / "report.html").is_file()
    done = fasttune("report", "persona", "--out", tmp_path / "page.html")
    assert done.stdout.strip() == str(tmp_path / "page.html") and (tmp_path / "page.html").as_uri() in done.stderr
    assert not run.report.exists()


def test_a_place_that_can_t_be_written_to_is_one_message(tmp_path: Path, fasttune: Cli) -> None:
    whole_run(tmp_path / "runs")
    done = fasttune("report", "persona", "--out", tmp_path / "missing" / "page.html")
    assert done.returncode and "missing" in done.stderr and "Traceback" not in done.stderr


def test_a_page_takes_the_place_of_a_page_alone(tmp_path: Path, fasttune: Cli) -> None:
    """E6: a file of samples named by mistake stays."""
    run = whole_run(tmp_path / "runs")
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    done = fasttune("report", "persona", "--out", data)
    assert done.returncode == 2 and "the file already exists, and is no page" in done.stderr
    assert data.read_text(encoding="utf-8").startswith('{"prompt"')
    report.require_own_page(report.write([run], tmp_path / "page.html", counts_tokens=False).path)
    report.require_own_page(tmp_path / "none.html")
    with pytest.raises(FasttuneError, match="can't be used as a file or folder"):
        report.write([run], Path(""), counts_tokens=False)  # --out ""


@pytest.mark.parametrize("name", ["plan.json", "provenance.json", "history.jsonl", "scores.json", "exports/persona-Q8_0.json",
                                  "recipe.toml", "epochs/epoch-2/manifest.json", "picked.json"])  # fmt: skip
@pytest.mark.parametrize(
    "damage", ["missing", "cut", "other types", *(pytest.param(one, marks=pytest.mark.slow) for one in DAMAGES)]
)
def test_a_page_is_made_of_any_damaged_run(tmp_path: Path, name: str, damage: str) -> None:
    run = whole_run(tmp_path)
    file = run.folder / name
    raw = file.read_bytes() if file.is_file() else b'{"format": 1}'
    content = DAMAGES[damage](raw)
    if content is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(content)
    found = read(report.write([run], tmp_path / "page.html").path)
    assert "persona/002-incremental" in found.text
    if damage == "cut" and file.suffix == ".json":  # a history may end in the middle of a line
        assert name.rpartition("/")[2] in found.text
