"""The models that a name stands for: a run, one of its checkpoints or epochs, the base, a GGUF file, a model in Ollama.

linzhi   linzhi/002-retune   runs/linzhi/002-retune     the adapter of a run
linzhi@62   linzhi/002-retune/checkpoint-62             the adapter of a checkpoint
linzhi@epoch-2   linzhi/002-retune/epoch-2              the adapter that was kept after an epoch
base                                                    the base that another named run was trained on
linzhi-Q8_0.gguf                                        a file, in a run's exports or anywhere
ollama:linzhi                                           a model in Ollama
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fasttune.analysis.answers import GgufSource, LoadedModel, OllamaSource, Source, TorchSource
from fasttune.console import FasttuneError, _, error, usage_error
from fasttune.planning.parents import how_to_finish
from fasttune.recipe.load import load_recipe
from fasttune.recipe.schema import Recipe
from fasttune.runs import adapters, checkpoints, documents, epochs, store
from fasttune.runs.store import Run
from fasttune.training import provenance


@dataclass(frozen=True)
class Named:
    """A model that was named on the command line. `run` is the run that it belongs to, None where there is none;
    `system` the system prompt that it is served with."""

    source: Source
    run: Run | None
    system: str | None


def run_recipe(run: Run) -> Recipe:
    """The recipe of a run as it was resolved. Raises FasttuneError where the run's documents can't be read."""
    return load_recipe(run.recipe, documents.recorded_overrides(run))


def loaded_model(run: Run, adapter: Path) -> LoadedModel:
    """The base of a run with one of its adapter folders, not loaded yet.

    Raises FasttuneError where the base is gone or another, and where the adapter is damaged.
    """
    model = run_recipe(run).model
    base = provenance.locate_base(run, model)
    provenance.require_same_base(run, base)
    return LoadedModel(base, model, adapter)


def finished_adapter(run: Run) -> Path:
    """The adapter folder that a run serves: the picked epoch's, else its own. Raises FasttuneError where the run is not
    finished or that adapter is damaged."""
    if not run.adapter.is_dir():
        raise error("not-finished", _("this run has no adapter yet"), where=run.id, fix=how_to_finish(run))
    served = epochs.served_adapter(run)
    checkpoints.require_whole_adapter(served)
    return served


def find(name: str, root: Path) -> Named:
    """The model of a name, except `base`. Raises FasttuneError where there is no such model."""
    if name.startswith("ollama:"):
        model = name.removeprefix("ollama:")
        return Named(OllamaSource(name, model), None, None)
    if name.endswith(".gguf"):
        return gguf(Path(name), root)
    other = adapters.named(name, root)
    if other:
        source = TorchSource(other.name, loaded_model(other.run, other.folder), adapter=True)
        return Named(source, other.run, documents.read_plan(other.run).served_system)
    run = store.find(root, name)
    source = TorchSource(run.id, loaded_model(run, finished_adapter(run)), adapter=True)
    return Named(source, run, documents.read_plan(run).served_system)


def base_of(other: Named) -> Named:
    """The base that another model was trained on, loaded once for both where that one is an adapter.

    Raises UsageError where it is unknown.
    """
    if other.run is None:
        what = _("the base of {model} is unknown", model=other.source.name)
        fix = _("name a run or a checkpoint beside it: `base` is the model that it was trained on")
        raise usage_error("base-unknown", what, where="base", fix=fix)
    if isinstance(other.source, TorchSource):
        loaded = other.source.loaded
    else:
        loaded = loaded_model(other.run, finished_adapter(other.run))
    return Named(TorchSource("base", loaded, adapter=False), other.run, other.system)


def asked_with(model: Named, system: str | None, lent: str | None) -> Named:
    """The model as it is asked in a comparison: with the prompt `system` where one is given, else with that of its run.

    Ollama has the prompt of its models itself; a file of unknown origin is `lent` the other model's.
    """
    if system is None and model.run is None and not isinstance(model.source, OllamaSource):
        return replace(model, system=lent)
    return model if system is None else replace(model, system=system)


def gguf(path: Path, root: Path) -> Named:
    """A GGUF file, with the run in whose exports it lies. Raises FasttuneError where there is no such file."""
    if not path.is_file():
        raise usage_error("no-gguf", _("there is no file {file}", file=path))
    folder = next((one for one in path.resolve().parents if (one / "plan.json").is_file()), None)
    if folder is None:
        return Named(GgufSource(path.name, path, None), None, None)
    run = store.find(root, str(folder))
    try:
        base: Path | None = provenance.locate_base(run, run_recipe(run).model)
    except FasttuneError:  # the base is gone; the file holds its own tokenizer
        base = None
    return Named(GgufSource(path.name, path, base), run, documents.read_plan(run).served_system)
