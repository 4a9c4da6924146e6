"""The recipe: strict loading, overrides, sources, inheritance, and the messages for everything that can be wrong."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from fasttune.console import Finding, UsageError
from fasttune.recipe import aliases
from fasttune.recipe.load import load_recipe, names_a_folder, settings, with_values
from fasttune.recipe.reference import reference
from fasttune.recipe.schema import KEYS, TABLES, Recipe
from fasttune.recipe.toml_file import key_lines, syntax_fix

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
BROKEN = Path(__file__).parent / "broken_recipes"
EXPECTED = tomllib.loads((BROKEN / "expected.toml").read_text(encoding="utf-8"))
MINIMAL = 'name = "linzhi"\nmodel.base = "builtin:tiny"\ndata.train = "train.jsonl"\n'
FULL = """\
name     = "林芝_2.5-a"
strategy = "custom"
[model]
base = "Qwen/Qwen2.5-0.5B-Instruct"
load_in_4bit = true
max_seq_length = 1024
dtype = "float32"
revision = "main"
mirror = "modelscope"
[data]
train = ["a.jsonl", "b.jsonl"]
val = 0.1
system = ""
learn = "all"
[lora]
r = 16
alpha = 20
dropout = 0.1
target_modules = ["q_proj", "v_proj"]
[train]
epochs = 2
max_steps = 10
learning_rate = 1e-4
batch_size = 4
lr_scheduler_type = "cosine"
warmup_steps = 3
weight_decay = 0.01
max_grad_norm = 0
optim = "adamw_8bit"
seed = 0
tokens_per_row = 4096
shared_prefix = false
gradient_checkpointing = true
logging_steps = 5
eval_steps = 7
save_steps = 8
save_total_limit = 9
until = { loss = 0.3, token_accuracy = 0.98 }
early_stopping_patience = 2
report_to = "none"
[continue]
parent = "linzhi/001-fresh"
start = "adapter"
add_epochs = 1.5
[export]
gguf = []
ollama = "linzhi"
num_ctx = 2048
keep_merged = true
[probe]
questions = ["你是谁？"]
max_new_tokens = 64
"""


@pytest.fixture(autouse=True)
def in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", "en")


def written(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "linzhi.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def refused(folder: Path, text: str, *overrides: str) -> tuple[Finding, ...]:
    with pytest.raises(UsageError) as caught:
        written(folder, text, *overrides)
    assert caught.value.exit_code == 2
    return caught.value.findings


# --- what a good recipe becomes --------------------------------------------------------------------------------------


def test_minimal_recipe_gets_every_default(tmp_path: Path) -> None:
    recipe = written(tmp_path, MINIMAL)
    assert (recipe.name, recipe.strategy, recipe.model.base) == ("linzhi", "fresh", "builtin:tiny")
    assert recipe.data.train == ("train.jsonl",)
    assert recipe.data.system is None
    assert (recipe.lora.r, recipe.lora.alpha) == (8, 16)
    assert recipe.train.until.loss is None
    assert recipe.train.batch_size == 16
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
        ("bad-override", "--set verbose", "for example --set train.epochs=2"),
        ("bad-override", "--set =3", "for example --set train.epochs=2"),
        ("out-of-range", f"{tmp_path / 'linzhi.toml'}:4: train.seed", "the default is seed = 3407"),
        ("unknown-key", "--set train.lr=1e-4", "write --set train.learning_rate=…"),
        ("out-of-range", "--set lora.r=0", "the default is r = 8"),
        ("unknown-key", "--set epochs=2", "write --set train.epochs=…"),
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


@pytest.mark.parametrize("alias", sorted(aliases.RENAMED))
def test_foreign_name_is_refused_with_the_right_one(tmp_path: Path, alias: str) -> None:
    target = aliases.RENAMED[alias]
    for key in (alias, f"train.{alias}", alias.upper().replace("_", "-")):
        found = refused(tmp_path, MINIMAL, f"{key}=1")
        assert [finding.code for finding in found] == ["unknown-key"]
        assert found[0].fix.startswith(f"write --set {target}=…")


def test_foreign_names_are_foreign_and_lead_somewhere() -> None:
    leaves = {key.leaf for key in KEYS.values()}
    assert set(aliases.ALIASES) <= set(KEYS) and set(aliases.notes()) <= set(aliases.ALIASES)
    assert set(aliases.TABLE_ALIASES) <= set(TABLES)
    assert not leaves & set(aliases.RENAMED) and not leaves & set(aliases.without_counterpart())
    assert not set(aliases.RENAMED) & set(aliases.without_counterpart())
    names = list(itertools.chain.from_iterable(names.split() for names in aliases.ALIASES.values()))
    assert len(names) == len(set(names))


def test_last_names_of_settings_are_unique() -> None:
    """`learning_rate` in the wrong table is led to its own: that needs every last name to be one setting's."""
    assert len({key.leaf for key in KEYS.values()}) == len(KEYS)


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


def test_missing_file_names_those_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"linzhi\.toml: there is no such file") as caught:
        load_recipe("linzhi.toml")
    assert caught.value.findings[0].fix == "make a recipe with `fasttune init`"
    (tmp_path / "recipes").mkdir()
    for name in ("linzhi", "linzhi_retune", "quickstart"):
        (tmp_path / "recipes" / f"{name}.toml").write_text(MINIMAL, encoding="utf-8")
    fixes = {}
    for path in ("linzhi.toml", "recipes/quikstart.toml", "linzhi", "recipes", "nowhere/quickstart.toml/x"):
        with pytest.raises(UsageError) as caught:
            load_recipe(path)
        fixes[path] = caught.value.findings[0].fix
    assert fixes["linzhi.toml"].startswith("did you mean recipes/linzhi.toml")
    assert fixes["recipes/quikstart.toml"] == "did you mean recipes/quickstart.toml?"
    assert fixes["linzhi"].startswith("did you mean recipes/linzhi.toml")
    assert fixes["recipes"] == "did you mean recipes/linzhi.toml, recipes/linzhi_retune.toml, recipes/quickstart.toml?"


def test_every_broken_line_of_toml_gets_a_hint() -> None:
    """Each prefix of a full recipe is either whole or refused by a message with a line in the file."""
    for end in range(len(FULL)):
        try:
            tomllib.loads(FULL[:end])
        except tomllib.TOMLDecodeError as failure:
            assert syntax_fix(str(failure), FULL[:end].split("\n")[-1])


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


# --- lines, documentation, layers ------------------------------------------------------------------------------------


def test_key_lines() -> None:
    text = (
        '# [no.table]\na = 1 # b = 2\n"c" = "x = y # ["\nd.e = [\n  "f = 1", # ]\n  "]",\n]\n[t . "u"]\nv = """\n[w]\n'
        "x = 1\n\"quoted\" \\\" ''' \"\"\"\ny = '''\nz = \"\"\" '''\n[[list]]\nk = { l = 1, m = [2] }\nn = 1\n"
    )
    tomllib.loads(text)
    expected = {"a": 2, "c": 3, "d.e": 4, "t.u": 8, "t.u.v": 9, "t.u.y": 13, "list": 15, "list.k": 16, "list.n": 17}
    assert key_lines(text) == expected


def test_reference_in_docs_is_fresh() -> None:
    page = (REPOSITORY / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page.partition("## All settings\n\n")[2] == reference(), "run: python -m fasttune.recipe docs/recipe.md"
    assert all(f"| `{key.leaf}` |" in page for key in KEYS.values())


def test_recipe_of_the_docs_loads(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "recipe.md").read_text(encoding="utf-8")
    recipe = written(tmp_path, page.partition("```toml\n")[2].partition("```")[0])
    assert recipe.export.ollama == "linzhi"


def test_every_message_can_be_shown_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders of a translation fit those of the English text: none raises, and code and place stay the same."""
    monkeypatch.setenv("FASTTUNE_LANG", "zh")
    monkeypatch.chdir(BROKEN)
    for name, expected in EXPECTED.items():
        with pytest.raises(UsageError) as caught:
            load_recipe(f"{name}.toml")
        found = caught.value.findings
        assert [(f.code, f.where) for f in found] == [(e["code"], e["where"]) for e in expected]


def test_loading_a_recipe_needs_no_torch() -> None:
    code = "import sys, fasttune.recipe; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
