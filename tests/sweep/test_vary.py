"""What `--vary` says, and what is said of what it can't."""

from __future__ import annotations

import pytest

from fasttune.console import UsageError
from fasttune.recipe.schema import KEYS
from fasttune.sweep import vary
from fasttune.sweep.vary import Range, Values, read_variations


def codes(*texts: str) -> list[tuple[str, str]]:
    """The code and the place of each finding."""
    with pytest.raises(UsageError) as refused:
        read_variations(texts)
    return [(finding.code, finding.where) for finding in refused.value.findings]


def test_values_are_kept_as_they_are_typed() -> None:
    """What a trial trains is what `fasttune run --set KEY=TEXT` trains."""
    assert read_variations(["train.learning_rate=1e-4, 2e-4,4e-4"]) == (
        Values("train.learning_rate", ("1e-4", "2e-4", "4e-4")),
    )
    assert read_variations(["train.lr_scheduler_type=linear,cosine"])[0] == Values(
        "train.lr_scheduler_type", ("linear", "cosine")
    )
    assert read_variations(["train.batch_size=auto,4"])[0] == Values("train.batch_size", ("auto", "4"))
    lists = read_variations(['lora.target_modules=["q_proj"],["q_proj", "v_proj"]'])[0]
    assert lists == Values("lora.target_modules", ('["q_proj"]', '["q_proj", "v_proj"]'))


def test_a_range_is_searched_by_orders_of_magnitude_where_it_spans_one() -> None:
    rate, rank = read_variations(["lora.r=4..16", "train.learning_rate=1e-5..1e-3"])
    assert (rate, rank) == (
        Range("train.learning_rate", 1e-5, 1e-3, is_whole=False),
        Range("lora.r", 4, 16, is_whole=True),
    )
    assert isinstance(rate, Range) and isinstance(rank, Range)
    assert (rate.is_log, rank.is_log) == (True, False)
    assert (rate.text(0.000123456), rank.text(8.0)) == ("0.000123", "8")
    assert Range("train.learning_rate", 1e-5, 0.0009996, is_whole=False).text(0.0009996) == "0.0009996"


def test_the_users_rule_decides_the_order() -> None:
    typed = ["train.weight_decay=0,0.1", "lora.r=8,16", "train.learning_rate=1e-4,2e-4", "train.epochs=2,3"]
    assert [one.key for one in read_variations(typed)] == [
        "train.epochs", "train.learning_rate", "lora.r", "train.weight_decay",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("train.learning_rate", "bad-variation"), ("=1,2", "bad-variation"), ("train.lerning_rate=1,2", "unknown-key"),
        ("lr=1e-4,2e-4", "unknown-key"), ("name=a,b", "may-not-vary"), ("data.val=0.1,0.2", "may-not-vary"),
        ("train.seed=1,2", "may-not-vary"), ("export.gguf=f16,q8_0", "may-not-vary"),
        ("train.learning_rate=", "no-values"), ("train.learning_rate=1e-4,,2e-4", "no-values"),
        ("train.learning_rate=1e-4", "one-value"), ("lora.r=8,x", "wrong-type"), ("lora.r=0,8", "out-of-range"),
        ("train.optim=sgd,adam", "unknown-choice"), ("lora.r=8,16,8", "repeated-value"),
        ("train.learning_rate=1e-4,0.0001", "repeated-value"), ("train.optim=a..b", "range-of-text"),
        ("lora.r=1.5..8", "wrong-type"), ("lora.r=0..8", "out-of-range"), ("lora.r=16..8", "empty-range"),
        ("train.learning_rate=a..b", "unknown-choice"), ('train.epochs="auto"..3', "range-of-text"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_with_its_place(text: str, code: str) -> None:
    (found,) = codes(text)
    assert found[0] == code
    assert found[1].startswith("--vary ")


def test_all_mistakes_come_at_once() -> None:
    assert [code for code, _where in codes("lora.r=8", "trian.epochs=1,2", "data.system=a,b")] == [
        "one-value", "unknown-key", "may-not-vary",
    ]  # fmt: skip
    assert codes("lora.r=8,16", "lora.r=4..8") == [("repeated-value", "--vary lora.r=4..8")]


def test_the_hint_names_the_key_that_was_meant() -> None:
    with pytest.raises(UsageError) as refused:
        read_variations(["lr=1e-4,2e-4"])
    assert "--vary train.learning_rate=" in refused.value.findings[0].fix


def test_every_setting_may_vary_or_has_a_reason() -> None:
    for key in KEYS:
        has_reason = any(key == name or key.startswith(name) for name in vary.WHY_NOT)
        assert key in vary.MAY_VARY or has_reason, key
    assert set(vary.MAY_VARY) <= set(KEYS)
