"""Where the base is: `builtin:tiny`, a local folder, or a snapshot from a model hub."""

from __future__ import annotations

import json
from pathlib import Path

from fasttune.console import _, error
from fasttune.recipe.schema import ModelRecipe

TINY = Path(__file__).parent.parent / "tiny"


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
        raise error("base-not-found", _("there is no folder {folder}", folder=recipe.base), where="model.base")
    download = download_from_modelscope if recipe.mirror == "modelscope" else download_from_hub
    return require_model_folder(download(recipe.base, recipe.revision or None))


def local_tokenizer(recipe: ModelRecipe) -> Path | None:
    """The local folder with the base's tokenizer, None where it is not on this machine; downloads nothing."""
    if recipe.base == "builtin:tiny":
        return TINY
    folder = Path(recipe.base).expanduser()
    if folder.is_dir():
        return folder if (folder / "tokenizer.json").is_file() else None
    if looks_like_path(recipe.base) or recipe.mirror == "modelscope":
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(recipe.base, "tokenizer.json", revision=recipe.revision or None)
    return Path(found).parent if isinstance(found, str) else None


def looks_like_path(base: str) -> bool:
    """Whether a base that is no folder was meant as one: names on a hub are `owner/name`."""
    return base.startswith((".", "/", "~")) or base.count("/") != 1 or "\\" in base


def require_model_folder(folder: Path) -> Path:
    """The folder, if it holds a complete Hugging Face checkpoint. Raises FasttuneError naming what is missing, or the
    file that asks for Python code of the folder's own."""
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


def refuse_remote_code(folder: Path) -> None:
    """Raises FasttuneError where a base or a tokenizer names classes of its own: `auto_map` makes transformers import
    Python files of the folder, or of another repository."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # whoever needs the file says what is wrong with it
        if isinstance(document, dict) and document.get("auto_map"):
            raise error(
                "base-needs-remote-code",
                _("it asks for Python code of its own (`auto_map`), which fasttune never runs"),
                where=str(folder / name),
                why=_("that code comes from whoever made the folder and would run with your rights"),
                fix=_("use a base without code of its own, such as Qwen/Qwen2.5-0.5B-Instruct"),
            )


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
