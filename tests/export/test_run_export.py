"""`fasttune export` of a run, a checkpoint and an epoch, by the command line; and what goes wrong in one message each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Done, call_here, small_files
from exportable import exportable
from exports import TINY
from ollama_server import Server, llama_engine, running_server

from fasttune.analysis.answers import GgufSource
from fasttune.analysis.sources import Named
from fasttune.analysis.speakers import served_sampling
from fasttune.export import lora_file, verdict
from fasttune.export import smallest as smallest_type
from fasttune.export.artifact import read_document
from fasttune.export.llama import Sampling
from fasttune.files import locked
from fasttune.runs import documents
from fasttune.runs.store import Run

Export = Callable[..., Done]


@pytest.fixture
def run(material: Path, tmp_path: Path) -> Run:
    return exportable(tmp_path / "runs", material)


@pytest.fixture
def export(run: Run, tmp_path: Path) -> Export:
    """`fasttune export linzhi …`; the name first where it is another."""
    return partial(call_here, run.root, "export", cwd=tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running_server() as running:
        monkeypatch.setenv("OLLAMA_HOST", running.host)
        running.engine = llama_engine(running, tmp_path)
        yield running


def made(folder: Path) -> set[str]:
    """The files below a folder, by their paths in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


def test_the_recipe_says_what_is_made(export: Export, run: Run) -> None:
    done = export("linzhi", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["of"] == document["run"] == run.id and document["finished"]
    assert [one["type"] for one in document["exports"]] == ["f16"] and document["copies"] == []
    assert made(run.exports) == {"linzhi-F16.gguf", "linzhi-F16.json", "Modelfile"}
    text = (run.exports / "Modelfile").read_text(encoding="utf-8")
    assert "PARAMETER temperature 0\nPARAMETER num_predict 192\nPARAMETER num_ctx 1024\n" in text
    assert document["llama_server"].startswith(f"llama-server --model {run.exports}/linzhi-F16.gguf --jinja ")


def test_types_of_any_case_between_commas_and_the_smallest_by_itself(
    export: Export, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smallest_type, "ORDER", ("q2_k", "q4_k_m", "q6_k", "f16"))  # the others are tried alike
    done = export("linzhi", "--gguf", "F16,q8_0", "--gguf", "Auto", "--imatrix", "none", "--json")
    assert done.returncode == 0, done.stderr
    *named, smallest = json.loads(done.stdout)["exports"]
    assert [one["type"] for one in named] == ["f16", "q8_0"] and all(one["figures"]["kept"] > 0.99 for one in named)
    assert (
        smallest["figures"]["picked"] and smallest["figures"]["kept"] >= 0.9 and smallest["bytes"] < named[1]["bytes"]
    )
    assert f"auto: {smallest['type']}, " in done.stderr and "the smallest that keeps 90%" in done.stderr
    scores = documents.read_scores(run)
    assert [one.type for one in scores.exports] == ["f16", "q8_0", smallest["type"]]
    beside = [
        read_document(path).figures for path in sorted(run.exports.glob("*.gguf"), key=lambda one: one.stat().st_size)
    ]
    assert beside == sorted(scores.exports, key=lambda one: one.bytes)
    refused = export("linzhi", "--gguf", "q4_k_x")
    assert refused.returncode == 2 and "iq4_xs" in refused.stderr


def test_a_file_that_lost_the_training_is_imported_only_by_name(
    export: Export, run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "HALF", 1.5)
    monkeypatch.setattr(verdict, "judge", partial(lambda kept, keep, judge: judge(kept, 1.1), judge=verdict.judge))
    done = export("linzhi", "--ollama", "she")
    assert done.returncode == 0, done.stderr
    assert (
        "f16 rounds most of the training away" in done.stderr and "she is not in Ollama: no file keeps" in done.stderr
    )
    assert f"export {run.id} --gguf auto --ollama she" in done.stderr and not server.models
    done = export("linzhi", "--gguf", "f16", "--ollama", "she")
    assert done.returncode == 0 and any(name.startswith("she") for name in server.models), done.stderr


def test_options_make_only_what_they_name(export: Export, run: Run, tmp_path: Path) -> None:
    done = export("linzhi", "--merged", "--adapter", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "out" / "merged"), str(tmp_path / "out/lora/linzhi-LoRA.gguf")]
    assert made(tmp_path / "out") >= {"merged/model.safetensors", "lora/linzhi-LoRA.gguf", "lora/linzhi-LoRA.json"}
    assert not [name for name in made(tmp_path / "out") if name.endswith(".part")] and not run.exports.exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("linzhi/001/checkpoint-1",), "checkpoint-1"), (("linzhi@1",), "checkpoint-1"),
        (("linzhi", "--epoch", "1"), "epoch-1"), (("linzhi/001/epoch-1",), "epoch-1"),
    ],
)  # fmt: skip
def test_a_part_of_a_run_has_a_folder_of_its_own(
    export: Export, run: Run, arguments: tuple[str, ...], part: str
) -> None:
    done = export(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["of"] == f"{run.id}/{part}" and document["finished"] == part.startswith("epoch")
    assert ("is of a training that is not finished" in done.stderr) == part.startswith("checkpoint")
    file = run.exports / part / "linzhi-F16.gguf"
    assert file.is_file() and read_document(file).run_id == f"{run.id}/{part}"
    assert made(run.exports) == {f"{part}/linzhi-F16.gguf", f"{part}/linzhi-F16.json", f"{part}/Modelfile"}


def test_a_checkpoint_of_a_stopped_run_is_exported(material: Path, tmp_path: Path) -> None:
    stopped = exportable(tmp_path / "runs", material, finished=False)
    refused = call_here(stopped.root, "export", "linzhi")
    assert refused.returncode == 1 and f"export {stopped.id}/checkpoint-1`" in refused.stderr
    done = call_here(stopped.root, "export", f"{stopped.id}/checkpoint-1")
    assert done.returncode == 0 and "is of a training that is not finished" in done.stderr
    by_path = call_here(stopped.root, "export", str(stopped.checkpoints / "checkpoint-1"))
    assert by_path.returncode == 0 and by_path.stdout == done.stdout


def test_into_ollama_with_the_proof_and_back(export: Export, server: Server) -> None:
    server.models["linzhi:latest"] = {"old": True}
    done = export("linzhi", "--json", "--ollama")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)["ollama"]
    assert document["proof"]["passed"] and document["kept"] == "linzhi:before-001-fresh"
    again = export("linzhi", "--restore", "before-001-fresh")
    assert again.returncode == 0 and again.stdout == "linzhi\n" and server.models["linzhi:latest"] == {"old": True}


def test_to_lm_studio(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".lmstudio").mkdir()
    done = export("linzhi", "--to", "lmstudio")
    copy = tmp_path / ".lmstudio" / "models" / "fasttune" / "linzhi" / "linzhi-F16.gguf"
    assert done.returncode == 0 and copy.is_file() and done.stdout.splitlines()[-1] == str(copy)
    assert f"llama-server --model {copy}" in done.stderr


def test_chat_samples_as_the_run_is_served(run: Run) -> None:
    edit(run.provenance, longest_answer=0)
    text = run.recipe.read_text(encoding="utf-8").replace("num_ctx = 1024", "top_k = 20\nrepeat_penalty = 1.1")
    run.recipe.write_text(text, encoding="utf-8")
    model = Named(GgufSource("x.gguf", run.exports / "x.gguf", None), run, None)
    assert served_sampling(model) == Sampling(512, 0.0, top_k=20, repeat_penalty=1.1)  # greedy as the tiny base says
    assert served_sampling(model, 0.5, 64) == Sampling(64, 0.5, top_k=20, repeat_penalty=1.1)
    assert served_sampling(model, 0) == Sampling(512)  # the likeliest token, as the option says
    assert served_sampling(replace(model, run=None)) == Sampling(512, 0.7)
    edit(run.provenance, longest_answer=100)
    assert served_sampling(model).max_new_tokens == 192  # as its Modelfile's num_predict
    edit(run.provenance, longest_answer=4000)
    assert served_sampling(model).max_new_tokens == 4096 // 2  # half of the context, whatever the Modelfile allows


# What goes wrong ---------------------------------------------------------------------------------------------------


def flip(file: Path, at: int = -100) -> None:
    """Change one byte of a file."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    """Lose the last bytes of a file, and be listed so: what was saved was not whole."""
    file.write_bytes(file.read_bytes()[:-1000])


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def unlisted(run: Run) -> Path:
    """The run's adapter without its manifest, as other tools save one."""
    (run.adapter / "manifest.json").unlink()
    return run.adapter


def other_tokenizer(run: Run) -> None:
    """One with ChatML's tokens that splits text as GPT-2 does."""
    document = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    document["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    (unlisted(run) / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")


def another_base(run: Run) -> None:
    edit(run.provenance, base={"name": "builtin:tiny", "revision": "", "fingerprint": "0" * 64, "folder": ""})


def lost_base(run: Run) -> None:
    edit(run.provenance, base={"name": "gone", "revision": "", "fingerprint": "0" * 64, "folder": "/gone/base"})


def file_in_the_way(run: Run) -> None:
    run.exports.write_bytes(b"")


def foreign_file(run: Run) -> None:
    run.exports.mkdir()
    (run.exports / "linzhi-F16.gguf").write_bytes(b"GGUF of somebody")


# (what happened to the run, the arguments, the code of the finding, what the message says)
BAD: dict[str, tuple[Callable[[Run], object], tuple[str, ...], str]] = {
    "no such run": (lambda run: None, ("lumen",), "no run called lumen"),
    "no such checkpoint": (lambda run: None, ("linzhi@7",), "no checkpoint at step 7"),
    "no such epoch": (lambda run: None, ("linzhi", "--epoch", "9"), "has kept no epoch 9"),
    "an epoch that is no number": (lambda run: None, ("linzhi", "--epoch", "x"), "has kept no epoch x"),
    "an epoch of a checkpoint": (lambda run: None, ("linzhi@1", "--epoch", "1"), "names an adapter of its run already"),
    "unknown type": (lambda run: None, ("linzhi", "--gguf", "q9_z"), "q9_z"),
    "a name that Ollama does not take": (lambda run: None, ("linzhi", "--ollama", "a b"), "no name that Ollama can give"),
    "a byte of the adapter": (lambda run: flip(run.adapter / "adapter_model.safetensors"), ("linzhi",), "checksum mismatch"),
    "a byte of a checkpoint": (
        lambda run: flip(run.checkpoints / "checkpoint-1" / "adapter_model.safetensors"), ("linzhi@1",), "checksum mismatch"),
    "no adapter_config.json": (lambda run: (run.adapter / "adapter_config.json").unlink(), ("linzhi",), "is missing"),
    "a truncated adapter": (lambda run: cut(unlisted(run) / "adapter_model.safetensors"), ("linzhi",), "not a complete safetensors"),
    "an adapter that is no JSON": (lambda run: (unlisted(run) / "adapter_config.json").write_text("{"), ("linzhi",), "is not JSON"),
    "an adapter of DoRA": (lambda run: edit(unlisted(run) / "adapter_config.json", use_dora=True), ("linzhi",), "use_dora is set"),
    "an adapter of another rank": (lambda run: edit(unlisted(run) / "adapter_config.json", r=64), ("linzhi",), "do not fit this base"),
    "a foreign tokenizer": (other_tokenizer, ("linzhi",), "split text as Qwen2 does"),
    "another base": (another_base, ("linzhi",), "are not those"),
    "a base that is gone": (lost_base, ("linzhi",), "/gone/base"),
    "a damaged provenance": (lambda run: run.provenance.write_text("{"), ("linzhi",), "provenance.json"),
    "a damaged plan": (lambda run: run.plan.write_text("[]"), ("linzhi",), "plan.json"),
    "a recipe that is gone": (lambda run: run.recipe.unlink(), ("linzhi",), "recipe.toml"),
    "a context beyond the base": (
        lambda run: run.recipe.write_text(run.recipe.read_text().replace("1024", "8192")), ("linzhi",), "not between 1 and"),
    "exports is a file": (file_in_the_way, ("linzhi",), "is not a folder"),
    "a file of somebody": (foreign_file, ("linzhi",), "already exists, without a readable"),
    "--out is a file": (lambda run: None, ("linzhi", "--out", "{run}/plan.json"), "is not a folder"),
    "--to is a file": (lambda run: None, ("linzhi", "--to", "{run}/plan.json"), "is not a folder"),
    "no LM Studio": (lambda run: None, ("linzhi", "--to", "lmstudio"), "no LM Studio was found"),
    "an imatrix that is none": (lambda run: None, ("linzhi", "--imatrix", "{run}/plan.json"), "plan.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_situation_is_one_message_and_leaves_nothing(
    export: Export, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    damage, arguments, text = BAD[name]
    damage(run)
    before = made(run.root)
    done = export(*(word.replace("{run}", str(run.folder)) for word in arguments))
    assert done.returncode in (1, 2) and done.stdout == "", done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error:") == 1 and text in done.stderr, done.stderr
    assert made(run.root) - {f"{run.id}/.lock"} == before - {f"{run.id}/.lock"} and not made(tmp_path / "home")


def test_a_full_disk_leaves_nothing(export: Export, run: Run) -> None:
    with small_files(200_000):
        done = export("linzhi", "--adapter", "--merged")
    assert done.returncode == 1 and "can't be written: File too large" in done.stderr and not made(run.exports)


def test_a_disk_that_is_too_small_is_known_before(export: Export, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 0))
    done = export("linzhi", "--adapter")
    assert done.returncode == 1 and "MB are needed, 0.0 MB are free" in done.stderr and not run.exports.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_one_message(export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    done = export("linzhi", "--out", tmp_path / "out" / "files")
    assert done.returncode == 1 and "can't be written: Permission denied" in done.stderr


def test_a_run_that_another_process_uses(export: Export, run: Run) -> None:
    with locked(run.lock, "used"):
        done = export("linzhi")
    assert done.returncode == 1 and "another process is exporting" in done.stderr and not run.exports.exists()


def test_a_file_that_changed_since_is_not_taken_for_done(export: Export, run: Run) -> None:
    assert export("linzhi").returncode == 0
    flip(run.exports / "linzhi-F16.gguf")
    done = export("linzhi")
    assert done.returncode == 1 and "is not what was exported" in done.stderr
    assert f"rm {run.exports}/linzhi-F16.gguf" in done.stderr and f"export {run.id}`" in done.stderr


def test_another_file_where_a_copy_should_go(export: Export, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linzhi-F16.gguf").write_bytes(b"another")
    done = export("linzhi", "--to", tmp_path / "models")
    assert done.returncode == 1 and "already exists and is another file" in done.stderr
    assert made(tmp_path / "models") == {"linzhi-F16.gguf"}


def test_no_ollama_where_it_is_asked_for(export: Export, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    done = export("linzhi", "--ollama", "linzhi")
    assert done.returncode == 1 and "no Ollama server answers" in done.stderr
    assert (run.exports / "linzhi-F16.gguf").is_file()  # what was made stays
    restored = export("linzhi", "--restore", "before-001-fresh")
    assert restored.returncode == 1 and "no Ollama server answers" in restored.stderr


def test_a_kill_in_the_middle_leaves_what_the_next_export_clears(
    export: Export, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*arguments: Any) -> None:
        raise SystemExit(137)  # as after a kill: what was begun lies there

    unlink = Path.unlink
    with monkeypatch.context() as killed:
        killed.setattr(lora_file, "distance", die)
        killed.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        assert export("linzhi", "--adapter").returncode == 137
    assert made(run.exports) == {"lora/base.gguf.part", "lora/linzhi-LoRA.gguf.part"} and Path.unlink is unlink
    assert export("linzhi", "--adapter").returncode == 0
    assert made(run.exports) == {"lora/linzhi-LoRA.gguf", "lora/linzhi-LoRA.json"}
