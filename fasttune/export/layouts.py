"""Where other programs look for a GGUF file, and how they are started with it.

LM Studio      MODELS/fasttune/NAME/FILE.gguf, where MODELS is its downloadsFolder
llama.cpp      any folder: `llama-server --model FILE …`

LM Studio's home is the folder that ~/.lmstudio-home-pointer names, else ~/.lmstudio, else ~/.cache/lm-studio of older
versions; "downloadsFolder" in its settings.json, where it is set, else models/ in it. Under WSL2 LM Studio mostly runs
in Windows, whose users' folders are below /mnt/c/Users.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from fasttune import machine
from fasttune.console import _, error, usage_error
from fasttune.export.serving import Serving
from fasttune.export.source_files import read_json_object
from fasttune.files import file_sha256, sync_file, sync_folder

PUBLISHER = "fasttune"
LM_STUDIO = "lmstudio"
WINDOWS_USERS = Path("/mnt/c/Users")
NOT_PEOPLE = {"Public", "Default", "Default User", "All Users"}
DRIVE = re.compile(r"([A-Za-z]):[\\/](.*)")


def target_folder(to: str, name: str) -> Path:
    """The folder that a file of the series `name` goes to: LM Studio's for "lmstudio", else the folder `to` itself.

    Raises UsageError where there is no LM Studio, and for something that is no folder.
    """
    folder = lm_studio_models() / PUBLISHER / name if to == LM_STUDIO else Path(to)
    there = existing_part(folder)
    if not there.is_dir():
        what = _("is not a folder, so no file can be written into it")
        raise usage_error("not-a-folder", what, where=str(there), fix=_("name a folder after --to"))
    return folder


def lm_studio_models() -> Path:
    """The folder of LM Studio's models. Raises UsageError with the places that were looked at where there is none."""
    homes = [Path.home(), *(windows_homes() if machine.is_wsl() else ())]
    for home in homes:
        for folder in studio_homes(home):
            if folder.is_dir():
                return models_folder(folder)
    looked = ", ".join(str(home / ".lmstudio") for home in homes)
    what = _("no LM Studio was found: {folders}", folders=looked)
    fix = _("start LM Studio once, or name its folder of models: `--to FOLDER`")
    raise usage_error("no-lm-studio", what, where="--to lmstudio", fix=fix)


def studio_homes(home: Path) -> Iterable[Path]:
    """Where LM Studio's home may be for a person's home folder, the likeliest first."""
    pointer = home / ".lmstudio-home-pointer"
    if pointer.is_file():
        named = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if named:
            yield as_linux_path(named)
    yield from (home / ".lmstudio", home / ".cache" / "lm-studio")


def models_folder(home: Path) -> Path:
    """The folder of models of the LM Studio whose home this is."""
    settings = read_json_object(home / "settings.json", "", []) or {}
    named = settings.get("downloadsFolder")
    return as_linux_path(named) if isinstance(named, str) and named.strip() else home / "models"


def windows_homes() -> list[Path]:
    """The home folders of people in the Windows around this Linux."""
    try:
        found = sorted(path for path in WINDOWS_USERS.iterdir() if path.is_dir() and path.name not in NOT_PEOPLE)
    except OSError:  # no drive C, or one that may not be listed
        return []
    return found


def as_linux_path(text: str) -> Path:
    r"""The path of a file as this system has it: D:\models is /mnt/d/models under WSL2."""
    drive = DRIVE.fullmatch(text)
    if drive and machine.is_wsl():
        return Path("/mnt") / drive[1].lower() / drive[2].replace("\\", "/")
    return Path(text).expanduser()


def copy_file(file: Path, folder: Path) -> Path:
    """Copy a finished file into a folder; it appears there whole or not at all. One that is there and equal stays.

    Raises FasttuneError for another file of this name, OSError where the disk or the folder does not take it.
    """
    target = folder / file.name
    if target.exists():
        if target.is_file() and file_sha256(target) == file_sha256(file):
            return target
        what = _("already exists and is another file")
        fix = _("move it away or name another folder after --to; fasttune overwrites no file")
        raise error("export-exists", what, where=str(target), fix=fix)
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(file, partial)
        sync_file(partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(folder)
    return target


def existing_part(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def llama_server(file: Path, num_ctx: int, serving: Serving) -> str:
    """The command that serves a file with llama.cpp, with the numbers of the Modelfile.

    --jinja takes the template in the file, whose default system message is the trained system prompt.
    """
    names = {
        "temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p", "repeat_penalty": "--repeat-penalty",
        "num_predict": "--predict",
    }  # fmt: skip
    words = ["llama-server", "--model", str(file), "--jinja", "--ctx-size", str(num_ctx)]
    words += [word for name, value in serving.parameters.items() for word in (names[name], f"{value:g}")]
    return shlex.join(words)
