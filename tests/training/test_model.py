"""The layout handed to Unsloth's attention on a GPU, the CPU's own layers inside a PEFT model, and the tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fasttune.console import FasttuneError
from fasttune.export import chatml
from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import hub
from fasttune.training import model as models

SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
ALL = (*SOME, "k_proj", "o_proj", "gate_proj")


def peft_model(dropout: float = 0.0, targets: tuple[str, ...] = SOME) -> Any:
    """A small Qwen2 with an adapter whose B is not zero, as PEFT builds it."""
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    lora = peft.LoraConfig(
        r=4, lora_alpha=12, lora_dropout=dropout, target_modules=list(targets),
        init_lora_weights=False,
    )  # fmt: skip
    return peft.get_peft_model(transformers.Qwen2ForCausalLM(config), lora)


def test_an_adapter_is_written_as_peft_writes_it(tmp_path: Path) -> None:
    """Byte for byte, and the model goes on training; PEFT's README.md is in the finished adapter alone."""
    base = models.load_base(hub.TINY, ModelRecipe(base="builtin:tiny"))
    model = models.add_lora(base, LoraRecipe(r=4), 0, checkpointing=False)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(1)
    names = ["adapter_config.json", "adapter_model.safetensors"]
    for name, write in (("checkpoint", models.save_adapter), ("adapter", models.save_trained_adapter)):
        (tmp_path / name).mkdir()
        write(model, tmp_path / name)
    model.save_pretrained(tmp_path / "peft")
    for name in names:
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("checkpoint", "adapter", "peft")}) == 1, name
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["README.md", *names]
    assert json.loads((tmp_path / "adapter" / names[0]).read_text())["inference_mode"]
    assert not model.peft_config["default"].inference_mode


def logits_and_gradients(model: Any) -> list[Any]:
    """Of one pass over fixed tokens."""
    import torch

    torch.manual_seed(2)
    model.zero_grad()
    logits = model(torch.arange(1, 60)[None]).logits
    logits.logsumexp(-1).sum().backward()
    return [logits.detach()] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("targets", [SOME, ALL])  # all: the feed-forward is one function
def test_cpu_layers_compute_what_the_plain_ones_compute(targets: tuple[str, ...]) -> None:
    model = peft_model(targets=targets)
    plain = logits_and_gradients(model)
    models.use_cpu_layers(model)
    fast = logits_and_gradients(model)
    assert len(fast) == 1 + 2 * 2 * len(targets)  # two layers, A and B
    for one, other in zip(fast, plain, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_cpu_layers_know_when_the_adapter_is_off_merged_or_drops() -> None:
    import torch

    def logits() -> Any:
        with torch.no_grad():
            return model(torch.arange(1, 60)[None]).logits

    model = peft_model(targets=ALL)
    tuned = logits()
    with model.disable_adapter():
        base = logits()
    models.use_cpu_layers(model)
    with model.disable_adapter():
        assert torch.allclose(logits(), base, atol=1e-5)
    model.merge_adapter()
    assert torch.allclose(logits(), tuned, atol=1e-5)
    assert not torch.allclose(base, tuned, atol=1e-2)

    dropping = peft_model(dropout=0.5, targets=ALL)
    plain = logits_and_gradients(dropping)
    models.use_cpu_layers(dropping)
    for one, other in zip(logits_and_gradients(dropping), plain, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_code_in_the_base_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may name classes of its own: they are not imported, and nobody is asked whether they may be."""
    base, trace = shutil.copytree(hub.TINY, tmp_path / "base"), tmp_path / "was run"
    for name, changes in {
        "config.json": {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}},
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}},
    }.items():
        known = json.loads((base / name).read_text(encoding="utf-8"))
        (base / name).write_text(json.dumps(known | changes), encoding="utf-8")
    (base / "own.py").write_text(f"open({str(trace)!r}, 'w')\n", encoding="utf-8")
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question))
    for load in (models.load_tokenizer, chatml.load_tokenizer):
        with pytest.raises(FasttuneError) as caught:
            load(base)
        (finding,) = caught.value.findings
        assert (finding.code, finding.where) == ("base-needs-remote-code", str(base / "config.json"))
    monkeypatch.setattr(hub, "refuse_remote_code", lambda folder: None)  # transformers' own refusal stands behind ours
    with pytest.raises(ValueError, match="custom code"):
        models.load_tokenizer(base)
    assert not questions and not trace.exists()


def test_an_adapter_that_learned_nothing_is_refused(tmp_path: Path) -> None:
    """A run whose every step had the learning rate 0 would end with a file equal to the base."""
    model = peft_model()
    models.save_trained_adapter(model, tmp_path / "trained")
    assert (tmp_path / "trained" / "adapter_model.safetensors").is_file()
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.zero_()
    with pytest.raises(FasttuneError, match="changed nothing"):
        models.save_trained_adapter(model, tmp_path / "untrained")
    assert not (tmp_path / "untrained").exists()


@pytest.mark.parametrize("variable", [None, ""])
def test_what_unsloth_compiles_lies_in_the_folder_of_caches(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty XDG_CACHE_HOME stands for none, and not for the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", variable) if variable is not None else monkeypatch.delenv(
        "XDG_CACHE_HOME", raising=False
    )
    assert models.unsloth_cache() == str(tmp_path / ".cache" / "fasttune" / "unsloth")


def test_a_user_without_a_home_folder_gets_a_new_one_for_what_unsloth_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "cache_folder", raising(FileNotFoundError))
    first, second = Path(models.unsloth_cache()), Path(models.unsloth_cache())
    assert first != second and first.stat().st_mode & 0o077 == 0
    first.rmdir()
    second.rmdir()


def raising(problem: type[Exception]) -> Any:
    def fail() -> None:
        raise problem

    return fail
