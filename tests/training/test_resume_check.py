"""The resume check: what is shown at a start from a checkpoint or an adapter, and that nothing is trained where the state
is not what was recorded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import one_layer
import pytest
from series import RECIPE, Series, assert_same_run, contents, document, losses, steps

from fasttune import machine
from fasttune.files import file_sha256
from fasttune.runs import checkpoints, documents, store
from fasttune.runs.store import Run
from fasttune.training import provenance, resume_check

MORE = "continue.add_epochs=1"


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """001-fresh: 6 steps, on a copy of the base that a test may change."""
    series = Series.new(tmp_path_factory.mktemp("parent"), RECIPE.replace("builtin:tiny", "./base"))
    shutil.copytree(one_layer.FOLDER, series.folder / "base")
    series.train("train.epochs=2")
    return series


@pytest.fixture
def parent(parents: Series, tmp_path: Path) -> Series:
    return Series(shutil.copytree(parents.folder, tmp_path / "series"))


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Series:
    series = Series.new(tmp_path_factory.mktemp("stopped"))
    series.stop("train.max_steps=6")
    return series


@pytest.fixture
def stopped(stopped_once: Series, tmp_path: Path) -> Series:
    """001-fresh, stopped after some of 6 steps."""
    return Series(shutil.copytree(stopped_once.folder, tmp_path / "series"))


def newest(series: Series) -> Path:
    return checkpoints.list_checkpoints(Run(series.folder / "runs", "persona/001-fresh"))[-1]


def whole_again(checkpoint: Path) -> None:
    """Write the manifest anew, so that only the check batch can tell."""
    files = {path.name: file_sha256(path) for path in checkpoint.iterdir() if path.name != "manifest.json"}
    step = document(checkpoint / "manifest.json")["step"]
    (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "sha256": files}))
    assert checkpoints.find_damage(checkpoint) == ""


def test_both_losses_are_shown(parent: Series) -> None:
    """The losses are those of the check batch before and after, computed apart; the loss does not begin at the base's."""
    done = parent.train(MORE, flags="--continue incremental")
    shown = re.search(
        r"resuming at step 6: check batch loss (\S+) \(saved: (\S+)\); learning rate (\S+) -> (\S+)",
        done.stderr,
    )
    assert shown
    now, then = float(shown[1]), float(shown[2])
    recorded = document(newest(parent) / "proof.json")
    assert now == then == round(recorded["loss"], 4)
    assert now == pytest.approx(check_batch_loss(parent, newest(parent)), rel=1e-4)
    assert now < check_batch_loss(parent, None) - 0.2
    assert losses(parent.run(2))[0] < losses(parent.run(1))[0]
    assert {key: recorded[key] for key in ("step", "optimizer_step", "device")} == {
        "step": 6, "optimizer_step": 6, "device": "cpu",
    }  # fmt: skip
    assert recorded["samples"] == [f"train.jsonl:{line}" for line in (1, 2, 3, 4)]
    assert recorded["packages"] == machine.package_versions()


def check_batch_loss(series: Series, adapter: Path | None) -> float:
    """Mean loss of the first four samples by plain transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(series.folder / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(series.folder / "base", dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    total, count = 0.0, 0
    for line in (series.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[:4]:
        row = json.loads(line)
        asked = [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        answer = tokenizer(row["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += model(torch.tensor([prompt + answer]), labels=labels).loss.item() * len(answer)
        count += len(answer)
    return total / count


def test_the_check_batch_is_scored_once_for_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of 3 steps, each with a checkpoint and a kept epoch; the second one's weights are the adapter's too."""
    scored, series = list[float](), Series.new(tmp_path)
    score = resume_check.check_batch_loss

    def score_and_count(trainer: Any) -> float:
        scored.append(score(trainer))
        return scored[-1]

    monkeypatch.setattr(resume_check, "check_batch_loss", score_and_count)
    series.train("train.epochs=2", "data.val=val.jsonl")
    run = series.run(1)
    places = ["checkpoints/checkpoint-3", "epochs/epoch-1", "checkpoints/checkpoint-6", "epochs/epoch-2", "adapter"]
    recorded = [document(run / place / "proof.json")["loss"] for place in places]
    assert recorded == [scored[0], scored[0], scored[1], scored[1], scored[1]] and len(scored) == 2
    assert scored[0] != scored[1]


# States that are not what they claim --------------------------------------------------------------------------------


def other_weights(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "adapter_model.safetensors")
    save_file({key: tensor * 1.05 for key, tensor in weights.items()}, checkpoint / "adapter_model.safetensors")


def other_optimizer(checkpoint: Path) -> None:
    import torch

    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for moments in state["state"].values():
        moments["step"] -= 1
    torch.save(state, checkpoint / "optimizer.pt")


def other_step(checkpoint: Path) -> None:
    state = document(checkpoint / "trainer_state.json")
    (checkpoint / "trainer_state.json").write_text(json.dumps(state | {"global_step": state["global_step"] - 1}))


def other_random_state(checkpoint: Path) -> None:
    import torch

    state = torch.load(checkpoint / "rng_state.pth", weights_only=False)
    state["cpu"][96] ^= 1  # the low byte of a word
    torch.save(state, checkpoint / "rng_state.pth")


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (other_weights, r"check batch loss \d\.\d{4} \(saved: \d\.\d{4}\)"),
    "optimizer": (other_optimizer, r"its optimizer step was (\d), now it is (?!\1)\d"),
    "step": (other_step, r"its step was (\d), now it is (?!\1)\d"),
    "random state": (other_random_state, "the state of the random generators is not the saved one"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_parent_is_refused(parent: Series, what: str) -> None:
    """It stops before the first new step, and leaves nothing new."""
    tamper, words = TAMPERED[what]
    tamper(newest(parent))
    whole_again(newest(parent))
    before = contents(parent.folder / "runs")
    done = parent.train(MORE, flags="--continue incremental", code=1)
    assert re.search(words, done.stderr), done.stderr
    assert "nothing was trained" in done.stderr and "Traceback" not in done.stderr
    assert contents(parent.folder / "runs") == before and parent.names() == ["001-fresh"]


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_checkpoint_is_not_resumed(stopped: Series, what: str) -> None:
    tamper, words = TAMPERED[what]
    tamper(newest(stopped))
    whole_again(newest(stopped))
    before = contents(stopped.folder / "runs")
    done = stopped.train("train.max_steps=6", code=1)
    assert re.search(words, done.stderr), done.stderr
    assert contents(stopped.folder / "runs") == before


def test_tampered_weights_of_an_adapter(parent: Series) -> None:
    other_weights(parent.run(1) / "adapter")
    done = parent.train("continue.start=adapter", MORE, flags="--continue custom", code=1)
    assert "adapter_model.safetensors: checksum mismatch" in done.stderr and parent.names() == ["001-fresh"]
    (parent.run(1) / "adapter" / "manifest.json").unlink()  # as before adapters had one: the loss tells
    done = parent.train("continue.start=adapter", MORE, flags="--continue custom", code=1)
    assert re.search(TAMPERED["weights"][1], done.stderr) and parent.names() == ["001-fresh"]


def change_base(series: Series) -> None:
    """Other weights in the base, behind a name that stays."""
    from safetensors.torch import load_file, save_file

    path = series.folder / "base" / "model.safetensors"
    weights = load_file(path)
    save_file({key: tensor * 1.1 for key, tensor in weights.items()}, path, metadata={"format": "pt"})


def test_a_changed_base_is_named(parent: Series) -> None:
    change_base(parent)
    before = contents(parent.folder / "runs")
    done = parent.train(MORE, flags="--continue incremental", code=1)
    assert "the weights of ./base are not those persona/001-fresh was trained on" in done.stderr
    run = store.find(parent.folder / "runs", "persona")
    here = replace(documents.read_provenance(run).base, folder=str(parent.folder / "base"))
    documents.update_provenance(run, base=here)  # not the folder that the series was copied from
    before = contents(parent.folder / "runs")
    done = parent("export", "persona", "--gguf", "f16", code=1)
    assert "the weights of ./base are not those persona/001-fresh was trained on" in done.stderr
    assert contents(parent.folder / "runs") == before


@pytest.mark.parametrize("name", ["./base/", "./link", "./moved"])
def test_the_base_under_another_name(parent: Series, name: str) -> None:
    """The weights are compared, so that a slash, a link or a folder that was moved is no difference."""
    (parent.folder / "link").symlink_to("base")
    if name == "./moved":
        (parent.folder / "base").rename(parent.folder / "moved")
    parent.train(MORE, f"model.base={name}", flags="--continue incremental")
    assert parent.names() == ["001-fresh", "002-incremental"]


def test_a_changed_base_that_its_fingerprint_misses(parent: Series) -> None:
    """The fingerprint reads a part of large files only; the check batch goes through all weights."""
    change_base(parent)
    known = document(parent.run(1) / "provenance.json")
    known["base"]["fingerprint"] = provenance.fingerprint(parent.folder / "base")
    (parent.run(1) / "provenance.json").write_text(json.dumps(known))
    done = parent.train(MORE, flags="--continue incremental", code=1)
    assert re.search(TAMPERED["weights"][1], done.stderr) and parent.names() == ["001-fresh"]


def test_a_changed_chat_template(parent: Series) -> None:
    template = parent.folder / "base" / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("<|im_start|>", "<|im_start|> "))
    assert template.read_text() != text
    done = parent.train(MORE, flags="--continue incremental", code=1)
    assert "the check batch has other tokens than when the checkpoint was saved" in done.stderr
    assert parent.names() == ["001-fresh"]


def test_other_package_versions_are_a_warning(stopped: Series) -> None:
    """The run resumes all the same."""
    path = newest(stopped) / "proof.json"
    known = document(path)
    known["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(known))
    whole_again(newest(stopped))
    done = stopped.train("train.max_steps=6")
    changed = f"packages changed since it was saved: torch 1.0 -> {machine.package_versions()['torch']}"
    assert "warning: " in done.stderr and changed in done.stderr
    assert "losses may differ slightly from an uninterrupted run" in done.stderr
    assert steps(stopped.run(1)) == [1, 2, 3, 4, 5, 6]


def test_loading_never_unpickles(stopped: Series) -> None:
    """A checkpoint whose optimizer file would run a command when unpickled is refused, and the command not run."""

    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (stopped.folder / "run by a checkpoint",))

    import torch

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        whole = newest(stopped).joinpath(name).read_bytes() if (newest(stopped) / name).exists() else None
        torch.save({"state": Command()}, newest(stopped) / name)
        whole_again(newest(stopped))
        done = stopped.train("train.max_steps=6", code=1)
        assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
        assert "holds more than tensors and plain values" in done.stderr and "weights_only" not in done.stderr
        assert not (stopped.folder / "run by a checkpoint").exists()
        (newest(stopped) / name).unlink() if whole is None else (newest(stopped) / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b""),
        ("optimizer.pt", {"x": 1}),
        ("scheduler.pt", {"x": 1}),
        ("rng_state.pth", {"x": 1}),
        ("adapter_model.safetensors", b"no weights"),
        ("trainer_state.json", b"[]"),
        ("trainer_state.json", b"{}"),
        ("trainer_state.json", b'{"global_step": 2, "log_history": [], "other": 1}'),
    ],
)
def test_a_checkpoint_that_can_not_be_loaded_is_one_message(
    stopped: Series, name: str, content: bytes | dict[str, int]
) -> None:
    """Its manifest agrees with it: it was written so, or somebody made both."""
    import torch

    if isinstance(content, bytes):
        (newest(stopped) / name).write_bytes(content)
    else:
        torch.save(content, newest(stopped) / name)
    whole_again(newest(stopped))
    before = contents(stopped.folder / "runs")
    done = stopped.train("train.max_steps=6", code=1)
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert str(newest(stopped).relative_to(stopped.folder)) in done.stderr
    assert contents(stopped.folder / "runs") == before


def test_a_resumed_run_shows_both_losses_and_equals_the_straight_one(stopped: Series, tmp_path: Path) -> None:
    done = stopped.train("train.max_steps=6")
    assert re.search(r"resuming at step \d: check batch loss (\S+) \(saved: \1\)", done.stderr)
    straight = Series.new(tmp_path / "straight")
    straight.train("train.max_steps=6")
    assert_same_run(stopped.run(1), straight.run(1))


@pytest.mark.parametrize(
    ("device", "dtype", "allowed"),
    [
        ("cpu", "float32", 1e-4),
        ("cpu", "", 1e-4),
        ("cpu", "bfloat16", 2e-2),
        ("cuda", "", 2e-2),
        ("cuda", "float16", 2e-2),
    ],
)
def test_tolerances_leave_room_for_rounding_only(device: str, dtype: str, allowed: float) -> None:
    """They follow the number type: another processor rounds bfloat16 in another order. Files from before the type was
    recorded have none."""
    assert resume_check.tolerance(device, dtype) <= allowed


@pytest.mark.parametrize(("dtype", "is_refused"), [("bfloat16", False), ("", True)])
def test_a_loss_that_was_saved_in_bfloat16_is_judged_as_such(parent: Series, dtype: str, is_refused: bool) -> None:
    """1 % away, of a run that continues in float32 from weights that were trained in bfloat16."""
    path = newest(parent) / "proof.json"
    saved = document(path)
    assert saved["dtype"] == "float32"
    path.write_text(json.dumps(saved | {"loss": saved["loss"] * 1.01 + 1e-3, "dtype": dtype}))
    whole_again(newest(parent))
    done = parent.train(MORE, flags="--continue incremental", code=int(is_refused))
    assert "check batch loss" in done.stderr and ("nothing was trained" in done.stderr) == is_refused


def test_the_losses_of_all_starts_are_kept(stopped: Series) -> None:
    """provenance.json has one entry for each start of the run from a checkpoint, with both losses and both rates."""
    step = checkpoints.checkpoint_step(newest(stopped))
    stopped.train("train.max_steps=6")
    (shown,) = document(stopped.run(1) / "provenance.json")["continuations"]
    assert shown["step"] == step and shown["from"].endswith(f"checkpoint-{step}")
    assert shown["loss"] == pytest.approx(shown["loss_when_saved"], rel=1e-5)
    assert shown["learning_rate"] < shown["learning_rate_before"]
