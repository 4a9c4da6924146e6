"""Where the base is: `builtin:tiny`, a local folder, or a snapshot from a model hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fasttune.console import FasttuneError, Finding, _, error
from fasttune.recipe.schema import ModelRecipe

TINY = Path(__file__).parent.parent / "tiny"
END_OF_TURN = "<|im_end|>"  # of ChatML, with which Qwen2.5 Instruct models end an answer


def locate(recipe: ModelRecipe) -> Path:
    """The local folder of the base: that of `builtin:tiny`, a folder, or a hub's snapshot, which is downloaded once and
    taken from the hub's cache then.

    Raises FasttuneError where the name is unknown, the hub cannot be reached, the folder lacks a file or wants to run
    Python code of its own.
    """
    if recipe.base == "builtin:tiny":
        return TINY
    folder = Path(recipe.base).expanduser()
    if folder.is_dir():
        return require_model_folder(folder)
    if looks_like_path(recipe.base):
        what = _("there is no folder {folder}", folder=recipe.base)
        fix = _("name a folder that is there, OWNER/NAME of a hub, or builtin:tiny")
        raise error("base-not-found", what, where="model.base", fix=fix)
    download = download_from_modelscope if recipe.mirror == "modelscope" else download_from_hub
    return require_model_folder(download(recipe.base, recipe.revision or None))


def find_offline(recipe: ModelRecipe) -> Path | None:
    """The folder of a base that is on this disk already; None where it would have to be downloaded. No network.

    Raises FasttuneError as `locate` does for a folder that is missing or incomplete.
    """
    if recipe.base == "builtin:tiny" or Path(recipe.base).expanduser().is_dir() or looks_like_path(recipe.base):
        return locate(recipe)
    folder = local_tokenizer(recipe)
    try:
        return require_model_folder(folder) if folder else None
    except FasttuneError:  # the hub's cache has not all of it yet
        return None


def local_tokenizer(recipe: ModelRecipe) -> Path | None:
    """The local folder with the base's tokenizer, None where it is not on this machine; the weights may be missing, and
    nothing is downloaded."""
    if recipe.base == "builtin:tiny":
        return TINY
    folder = Path(recipe.base).expanduser()
    if folder.is_dir():
        return folder if (folder / "tokenizer.json").is_file() else None
    if looks_like_path(recipe.base) or recipe.mirror == "modelscope":
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(recipe.base, "tokenizer.json", revision=recipe.revision or None)
    except (OSError, ValueError):  # the cache can't be read; or this is no name of a hub
        return None
    return Path(found).parent if isinstance(found, str) else None


def looks_like_path(base: str) -> bool:
    """Whether a base that is no folder was meant as one: names on a hub are `owner/name`."""
    return base.startswith((".", "/", "~")) or base.count("/") != 1 or "\\" in base


def require_model_folder(folder: Path) -> Path:
    """The folder, if it holds a complete Hugging Face checkpoint. Raises FasttuneError naming what is missing, or the
    file that asks for Python code of the folder's own."""
    refuse_adapter(folder)
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    missing += [] if weights else ["*.safetensors"]
    if missing:
        raise error(
            "base-incomplete",
            _(
                "{folder} is not a complete Hugging Face checkpoint: {missing} missing",
                folder=folder,
                missing=", ".join(missing),
            ),
            where="model.base",
            fix=_("name the folder that holds config.json, tokenizer.json and the .safetensors files"),
        )
    refuse_remote_code(folder)
    return folder


def refuse_adapter(folder: Path) -> None:
    """Raises FasttuneError where a folder holds a LoRA adapter, with the base that the adapter names; also beside a
    model, in whose place transformers would load that other base."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    if (folder / "config.json").is_file():
        what = _("{folder} holds a LoRA adapter beside the model", folder=folder)
        why = _("transformers would load the base that the adapter names, and not this model")
        raise error("base-is-adapter", what, where="model.base", why=why, fix=_("move adapter_config.json away"))
    name = read_field(file, "base_model_name_or_path")
    fix = _("name the base it was trained on")
    if isinstance(name, str) and name:
        fix = _('name the base it was trained on: base = "{name}"', name=name[:200])
    what = _("{folder} holds a LoRA adapter, not a model", folder=folder)
    why = _("a new adapter is trained on a base; fasttune continues its own runs by `--continue`")
    raise error("base-is-adapter", what, where="model.base", why=why, fix=fix)


def read_field(file: Path, key: str) -> Any:
    """A field of a JSON object in a file; None where there is no such file, object or field."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document.get(key) if isinstance(document, dict) else None


def refuse_remote_code(folder: Path) -> None:
    """Raises FasttuneError where a base or a tokenizer names classes of its own: `auto_map` makes transformers import
    Python files of the folder, or of another repository."""
    for name in ("config.json", "tokenizer_config.json"):
        if read_field(folder / name, "auto_map"):  # of a file that can't be read, whoever needs it says so
            raise error(
                "base-needs-remote-code",
                _("it asks for Python code of its own (`auto_map`), which fasttune never runs"),
                where=str(folder / name),
                why=_("that code comes from whoever made the folder and would run with your rights"),
                fix=_("use a base without code of its own, such as Qwen/Qwen2.5-0.5B-Instruct"),
            )


def no_instruct_model(tokenizer: Any, base: str) -> list[Finding]:
    """The note about a base whose own end token is not the one that ends a turn: it is no Instruct model."""
    if tokenizer.eos_token == END_OF_TURN or END_OF_TURN not in tokenizer.get_vocab():
        return []
    what = _("{base} is no Instruct model: its own end token is {token}", base=base, token=tokenizer.eos_token)
    why = _("{token} ends an answer, but this base was never trained on it, and an adapter does not reach its row of "
            "the output layer: the model may not stop", token=END_OF_TURN)  # fmt: skip
    fix = _("use the Instruct model of that size, such as Qwen/Qwen2.5-0.5B-Instruct")
    return [Finding("base-not-instruct", "warning", "model.base", what, why, fix)]


def download_from_hub(name: str, revision: str | None) -> Path:
    """A snapshot by huggingface_hub, which honors HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE.

    Raises FasttuneError where the hub has no such model, or cannot be reached and the cache holds no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RepositoryNotFoundError as reason:
        raise error(
            "base-not-found",
            _("the hub has no model {name}", name=name),
            where="model.base",
            why=str(reason).splitlines()[0],
            fix=_("check the spelling (Qwen/Qwen2.5-0.5B-Instruct); a private model needs HF_TOKEN"),
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as reason:
        raise error(
            "hub-unreachable",
            _("{name} is not in the local cache and can't be downloaded", name=name),
            where="model.base",
            why=str(reason).splitlines()[0],
            fix=_(
                'check the connection; set HF_ENDPOINT to a mirror, or mirror = "modelscope" under [model], '
                "or name a local folder as base"
            ),
        ) from None


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads, as HF_HOME and HF_HUB_CACHE say."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def config_addresses(name: str) -> dict[str, str]:
    """Where a model's config.json lies, by mirror: on the hub, or the mirror that HF_ENDPOINT names, and on
    ModelScope."""
    from huggingface_hub import hf_hub_url

    domain = os.environ.get("MODELSCOPE_DOMAIN", "www.modelscope.cn")
    query = f"https://{domain}/api/v1/models/{name}/repo?Revision=master&FilePath=config.json"
    return {"hf": hf_hub_url(name, "config.json"), "modelscope": query}


def download_from_modelscope(name: str, revision: str | None) -> Path:
    """A snapshot by the modelscope package, which is not among fasttune's requirements.

    Raises FasttuneError where the package is missing or the download fails.
    """
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise error(
            "modelscope-missing",
            _("the package modelscope is not installed"),
            where="model.mirror",
            fix=_("install it with: `.venv/bin/python -m pip install modelscope`"),
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision))
    except (OSError, ValueError) as reason:
        raise error(
            "hub-unreachable",
            _("{name} can't be downloaded from ModelScope", name=name),
            where="model.base",
            why=str(reason).splitlines()[0],
            fix=_("check the name and the connection, or name a local folder as base"),
        ) from None
