"""Loading a recipe: defaults, overrides, sources, inheritance, and the finding for every broken recipe."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from recipe_files import BROKEN, EXPECTED, FULL, MINIMAL, refused, tomllib, written

from fasttune.console import UsageError
from fasttune.recipe.load import load_recipe, names_a_folder, read_recipe_file, resolve, settings, with_values
from fasttune.recipe.schema import KEYS

# --- what a valid recipe becomes --------------------------------------------------------------------------------------


def test_minimal_recipe_gets_every_default(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL)
    assert (recipe.name, recipe.strategy, recipe.model.base) == ("linzhi", "fresh", "builtin:tiny")
    assert recipe.data.train == ("train.jsonl",)
    assert recipe.data.system is None
    assert (recipe.lora.r, recipe.lora.alpha) == (8, 16)
    assert recipe.train.until.loss is None
    assert (recipe.train.batch_size, recipe.train.epochs) == ("auto", "auto")
    assert recipe.path == tmp_path / "linzhi.toml"
    given = {"name", "model.base", "data.train"}
    derived = {"lora.alpha": "default (2 × r)"}
    assert recipe.sources == {key: "recipe" if key in given else derived.get(key, "default") for key in KEYS}


def test_every_setting_can_be_written(tmp_path: Path) -> None:
    """FULL says each setting, and says it differently from the default: so none is read from the wrong place."""
    recipe = written(tmp_path, FULL)
    assert set(recipe.sources.values()) == {"recipe"}
    values = {setting.key: setting.value for setting in settings(recipe)}
    assert [key for key, value in values.items() if value == KEYS[key].default] == []
    document = tomllib.loads(FULL)
    for key, value in values.items():
        given = document
        for part in key.split("."):
            given = given[part]
        expected = (given,) if key == "train.report_to" else tuple(given) if isinstance(given, list) else given
        assert value == expected, key
    assert recipe.continue_.add_epochs == 1.5 and recipe.train.until.token_accuracy == 0.98


def test_numbers_become_floats_where_a_fraction_is_meant(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL + "train.epochs = 2\ntrain.until.loss = 1\n")
    assert type(recipe.train.epochs) is float and type(recipe.train.until.loss) is float


def test_facts_in_the_prompt_need_a_sheet(tmp_path: Path) -> None:
    (finding,) = refused(tmp_path, MINIMAL, "export.prompt=facts")
    assert (finding.code, finding.where) == ("contradiction", "--set export.prompt=facts") and "[facts]" in finding.fix
    assert written(tmp_path, MINIMAL, "export.prompt=facts", "facts.file=a.toml").export.prompt == "facts"


def test_recipe_is_frozen(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL)
    with pytest.raises(FrozenInstanceError):
        recipe.train.epochs = 5.0  # type: ignore[misc]


def test_settings_come_in_order_of_declaration_and_fit_into_json(tmp_path: Path) -> None:
    listed = settings(written(tmp_path, MINIMAL))
    assert [setting.key for setting in listed] == list(KEYS)
    assert [setting.key for setting in listed][:3] == ["name", "strategy", "model.base"]
    json.dumps([(setting.key, setting.value, setting.source) for setting in listed])


def test_constant_schedule_shows_no_warmup(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL + 'train.lr_scheduler_type = "constant"\n')
    assert recipe.train.warmup_steps == 0.0
    assert recipe.sources["train.warmup_steps"] == "default (constant has no warmup)"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_encodings_of_windows_editors(tmp_path: Path, encoding: str, line_end: str) -> None:
    text = MINIMAL + 'data.system = "你是林芝，说话温柔。"\nprobe.questions = ["你是谁？"]\n'
    path = tmp_path / "linzhi.toml"
    path.write_bytes(text.replace("\n", line_end).encode(encoding))
    recipe = load_recipe(path)
    assert recipe.data.system == "你是林芝，说话温柔。" and recipe.probe.questions == ("你是谁？",)


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        ("train.epochs = 2", "train.epochs", 2.0),
        ("train.shared_prefix=false", "train.shared_prefix", False),
        ("train.tokens_per_row=auto", "train.tokens_per_row", "auto"),
        ("train.tokens_per_row=512", "train.tokens_per_row", 512),
        ("train.until.loss=0.3", "train.until.loss", 0.3),
        ("train.until={token_accuracy = 0.9}", "train.until.token_accuracy", 0.9),
        ("model.base=Qwen/Qwen2.5-1.5B-Instruct", "model.base", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("model.base='D:\\models\\qwen'", "model.base", "D:\\models\\qwen"),
        ("model.revision=2024", "model.revision", "2024"),
        ("name=007", "name", "007"),
        ("name=true", "name", "true"),
        ("data.val=0.25", "data.val", 0.25),
        ("data.val=val.jsonl", "data.val", "val.jsonl"),
        ("data.val=", "data.val", ""),
        ("data.system=", "data.system", ""),
        ("data.system=a = b # c", "data.system", "a = b # c"),
        ("data.system=1\nname = 'x'", "data.system", "1\nname = 'x'"),
        ("export.gguf=q4_k_m", "export.gguf", ("q4_k_m",)),
        ("export.gguf=auto", "export.gguf", ("auto",)),
        ("export.gguf=f16, Q4_K_M", "export.gguf", ("f16", "q4_k_m")),
        ('export.gguf=["F16", "iq4_XS,q2_k"]', "export.gguf", ("f16", "iq4_xs", "q2_k")),
        ('export.gguf=["f16", "q8_0"]', "export.gguf", ("f16", "q8_0")),
        ("probe.questions=7", "probe.questions", ("7",)),
    ],
)
def test_override(tmp_path: Path, override: str, key: str, value: object) -> None:
    recipe = written(tmp_path, MINIMAL, override)
    assert {setting.key: setting.value for setting in settings(recipe)}[key] == value
    assert recipe.sources[key] == "override"


def test_last_override_wins_and_mends_the_file(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL + "train.epochs = -1\n", "train.epochs=0", "train.epochs=4")
    assert recipe.train.epochs == 4.0


def test_alpha_follows_an_overridden_rank(tmp_path: Path) -> None:
    assert written(tmp_path, MINIMAL, "lora.r=32").lora.alpha == 64
    assert written(tmp_path, MINIMAL + "lora.alpha = 10\n", "lora.r=32").lora.alpha == 10


def test_problems_of_file_and_overrides_come_together(tmp_path: Path) -> None:
    overrides = ["train.lr=1e-4", "lora.r=0", "epochs=2", "verbose", "=3", "lora=8"]
    found = refused(tmp_path, MINIMAL + "train.seed = -1\n", *overrides)
    assert [(finding.code, finding.where, finding.fix) for finding in found] == [
        ("bad-override", "--set verbose", "for example `--set train.epochs=2`"),
        ("bad-override", "--set =3", "for example `--set train.epochs=2`"),
        ("out-of-range", f"{tmp_path / 'linzhi.toml'}:4: train.seed", "the default is seed = 3407"),
        ("unknown-key", "--set train.lr=1e-4", "write `--set train.learning_rate=…`"),
        ("out-of-range", "--set lora.r=0", "the default is r = 8"),
        ("unknown-key", "--set epochs=2", "write `--set train.epochs=…`"),
        ("wrong-type", "--set lora=8", "write [lora] on a line of its own and its settings below"),
    ]


# --- inheritance -----------------------------------------------------------------------------------------------------


def test_with_values_notes_the_source_and_works_out_defaults_again(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL, "train.seed=1")
    parent = "parent run linzhi/001-fresh"
    heir = with_values(
        recipe, {"lora.r": 4, "train.epochs": 2, "export.gguf": ["f16"], "train.until.loss": None}, parent
    )
    assert (heir.lora.r, heir.lora.alpha, heir.train.epochs, heir.export.gguf) == (4, 8, 2.0, ("f16",))
    assert heir.sources["lora.r"] == heir.sources["train.until.loss"] == parent
    assert heir.sources["lora.alpha"] == "default (2 × r)" and heir.sources["train.seed"] == "override"
    assert (recipe.lora.r, recipe.sources["lora.r"]) == (8, "default"), "the recipe itself is left alone"


def test_with_values_keeps_an_inherited_alpha(tmp_path: Path) -> None:
    heir = with_values(written(tmp_path, MINIMAL), {"lora.r": 4, "lora.alpha": 16}, "parent")
    assert (heir.lora.alpha, heir.sources["lora.alpha"]) == (16, "parent")


def test_all_settings_survive_json_and_inheritance(tmp_path: Path) -> None:
    """What plan.json holds of a run is enough to make the same recipe again, for any recipe that loads."""
    for text in (MINIMAL, FULL, MINIMAL + 'train.lr_scheduler_type = "constant"\n'):
        recipe = written(tmp_path, text)
        values = json.loads(json.dumps({setting.key: setting.value for setting in settings(recipe)}))
        heir = with_values(written(tmp_path, MINIMAL), values, "parent")
        assert [(s.key, s.value) for s in settings(heir)] == [(s.key, s.value) for s in settings(recipe)]
        assert set(heir.sources.values()) == {"parent"}


def test_with_values_refuses_what_load_refuses(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL)
    with pytest.raises(UsageError) as caught:
        with_values(recipe, {"train.epochs": 0, "lora.r": "8"}, "parent")
    assert [finding.where for finding in caught.value.findings] == ["parent: train.epochs", "parent: lora.r"]
    with pytest.raises(UsageError, match=r"no data\.val to evaluate"):
        with_values(recipe, {"train.eval_steps": 5}, "parent")
    with pytest.raises(KeyError):
        with_values(recipe, {"train.lr": 1.0}, "parent")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_broken_recipes_and_expectations_match() -> None:
    files = {path.stem for path in BROKEN.glob("*.toml")} - {"expected"}
    assert files == set(EXPECTED)
    assert len(files) >= 30


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_broken_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    with pytest.raises(UsageError) as caught:
        load_recipe(f"{name}.toml")
    found = [{"code": f.code, "where": f.where, "what": f.what, "fix": f.fix} for f in caught.value.findings]
    assert found == EXPECTED[name]
    assert all(finding.level == "error" for finding in caught.value.findings)


def test_every_message_can_be_shown_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders of a translation fit those of the English text: none raises, and code and place stay the same."""
    monkeypatch.setenv("FASTTUNE_LANG", "zh")
    monkeypatch.chdir(BROKEN)
    for name, expected in EXPECTED.items():
        with pytest.raises(UsageError) as caught:
            load_recipe(f"{name}.toml")
        found = caught.value.findings
        assert [(f.code, f.where) for f in found] == [(e["code"], e["where"]) for e in expected]


@pytest.mark.parametrize("table", ["training", "TRAIN", "trainer", "tran"])
def test_misnamed_table_is_read_as_the_one_meant(tmp_path: Path, table: str) -> None:
    found = refused(tmp_path, MINIMAL + f"[{table}]\nepochs = 0\nlr = 1\n")
    assert [finding.code for finding in found] == ["unknown-table", "out-of-range", "unknown-key"]
    assert found[0].fix == "did you mean [train]?"


@pytest.mark.parametrize("name", ["linzhi", "林芝", "a", "7b-v2.1_final", "x" * 64])
def test_good_names(name: str) -> None:
    assert names_a_folder(name)


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "a\\b",
        ".hidden",
        "..",
        "current",
        "Current",
        "nul",
        "COM1",
        "lpt9.txt",
        "end.",
        "a b",
        "a:b",
        "-x",
        "x" * 65,
    ],
)
def test_bad_names(name: str) -> None:
    assert not names_a_folder(name)


def test_any_prefix_of_a_recipe_is_loaded_or_refused(tmp_path: Path) -> None:
    outcomes = {"loaded": 0, "refused": 0}
    path = tmp_path / "cut.toml"
    for end in range(len(FULL)):
        path.write_text(FULL[:end], encoding="utf-8")
        try:
            load_recipe(path)
            outcomes["loaded"] += 1
        except UsageError as problem:
            outcomes["refused"] += 1
            assert all(finding.where.startswith(str(path)) and finding.fix for finding in problem.findings)
    assert min(outcomes.values()) > 20


def test_a_file_is_read_once_and_resolved_with_different_overrides(tmp_path: Path) -> None:
    path = tmp_path / "linzhi.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    file = read_recipe_file(path)
    path.unlink()
    assert [resolve(file, [f"lora.r={r}"]).lora.r for r in (4, 16)] == [4, 16]
    with pytest.raises(UsageError):
        resolve(file, ["lora.r=0"])


@pytest.mark.parametrize("name", ["linzhi", "lin-zhi:v2", "someone/lin_zhi.2:latest", "host.example:11434/me/pip", ""])
def test_names_that_ollama_takes(tmp_path: Path, name: str) -> None:
    assert written(tmp_path, MINIMAL, f"export.ollama='{name}'").export.ollama == name


@pytest.mark.parametrize("name", ["Lin Zhi", "皮皮", "a:b:c", "-pip", "pip:", "a" * 81, "../pip"])
def test_a_name_that_ollama_refuses_is_a_mistake_of_the_recipe(tmp_path: Path, name: str) -> None:
    (finding,) = refused(tmp_path, MINIMAL, f"export.ollama='{name}'")
    assert finding.code == "contradiction" and "no name that Ollama can give a model" in finding.what


def test_an_answer_of_no_token_is_refused(tmp_path: Path) -> None:
    """llama.cpp writes nothing then, Ollama writes without end."""
    (finding,) = refused(tmp_path, MINIMAL, "export.num_predict=0")
    assert finding.code == "contradiction" and "-1 for no limit" in finding.fix


VALUES = {
    "text": '"gibberish"', "empty": '""', "blank": '"  "', "zero": "0", "negative": "-5", "huge": "1" + "0" * 30,
    "many digits": "9" * 4000, "beyond int64": str(2**63), "fraction": "1.5", "nan": "nan", "inf": "-inf",
    "denormal": "5e-324", "largest": "1e308", "true": "true", "list": "[1, 2]", "empty list": "[]",
    "twice": '["a", "a"]', "nested": '[["a"]]', "mixed": '["f16", 3]', "table": "{a = 1}", "empty table": "{}",
    "date": "2026-11-28", "controls": '"a\\u202e\\u0007"', "NUL": '"a\\u0000b"', "long": '"' + "x" * 5_000 + '"',
}  # fmt: skip


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_any_value_of_any_key_is_taken_or_refused_in_few_words(value: str, tmp_path: Path) -> None:
    """Each key wrong alone, and all of them at once: a finding with a place and a remedy for each, and nothing else."""
    given = {"name": '"linzhi"', "model.base": '"builtin:tiny"', "data.train": '"train.jsonl"'}
    for keys in (*([key] for key in KEYS), list(KEYS)):
        lines = given | dict.fromkeys(keys, value)
        try:
            written(tmp_path, "".join(f"{key} = {text}\n" for key, text in lines.items()))
        except UsageError as problem:
            for finding in problem.findings:
                assert finding.where.startswith(str(tmp_path / "linzhi.toml")) and finding.fix
                assert len(finding.what) < 300 and len(finding.fix) < 300 and len(finding.why) < 300
        else:
            assert len(keys) == 1
