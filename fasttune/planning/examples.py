"""`fasttune init --example NAME`: the recipes and data that come with fasttune, written out to be trained.

An example is a folder of data, `shipped/data/NAME`, and every recipe in `shipped/recipes` that trains on it;
`recipes/NAME.toml` is the one to begin with. In the repository `shipped` holds symbolic links to `recipes/` and `data/`
at its top, in a wheel the files themselves. A recipe names its data relative to the current directory, so the files
keep their places: DIR/recipes/NAME.toml, DIR/data/NAME/train.jsonl.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path

from fasttune.command import command_line
from fasttune.console import Finding, UsageError, _, error, usage_error

SHIPPED = resources.files("fasttune") / "shipped"


def names() -> list[str]:
    """The examples there are, sorted."""
    return sorted(folder.name for folder in (SHIPPED / "data").iterdir() if folder.is_dir())


def command(name: str, folder: Path) -> str:
    """The command line that trains an example written into `folder`, to be typed in the current directory."""
    change = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    return change + command_line(["run", f"recipes/{name}.toml"], folder)


def write(name: str, folder: Path) -> list[Path]:
    """Write the files of an example below `folder`, all of them or none; returns their paths, `recipes/NAME.toml`
    the first of the recipes.

    Raises UsageError for an example that does not exist and for files that do, which are never overwritten, and
    FasttuneError where the folder can't be written to.
    """
    if name not in names():
        raise usage_error(
            "unknown-example",
            _("there is no example of this name"),
            where=f"--example {name}",
            fix=_("the examples are: {names}", names=", ".join(names())),
        )
    contents = {folder / place: content for place, content in files(name)}
    if existing := [path for path in contents if path.exists() or path.is_symlink()]:
        raise exists_already(existing)
    write_all(contents)
    return list(contents)


def files(name: str) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each file: the data, then `recipes/NAME.toml`, then the other recipes."""
    for file in sorted((SHIPPED / "data" / name).iterdir(), key=lambda file: file.name):
        if file.is_file():
            yield f"data/{name}/{file.name}", file.read_bytes()
    recipes = sorted(
        (file for file in (SHIPPED / "recipes").iterdir() if file.name.endswith(".toml")),
        key=lambda file: (file.name != f"{name}.toml", file.name),
    )
    for file in recipes:
        content = file.read_bytes()
        if f'"data/{name}/'.encode() in content:
            yield f"recipes/{file.name}", content


def exists_already(paths: list[Path]) -> UsageError:
    """The error that names every file that would be overwritten, with one hint at the end."""
    fix = _("nothing was written; use the files that are there, or write into another folder with `--out DIR`")
    what, fixes = _("the file already exists"), [""] * (len(paths) - 1) + [fix]
    return UsageError(
        *(Finding("file-exists", "error", str(path), what, fix=fix) for path, fix in zip(paths, fixes, strict=True))
    )


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Create every file, with the folders above it; where one fails, those created before it are removed again.

    Files are opened for exclusive creation, so one that another process creates meanwhile is not overwritten either.
    Raises FasttuneError with the system's reason.
    """
    with contextlib.ExitStack() as undo:
        for path, content in contents.items():
            try:
                for parent in reversed([folder for folder in path.parents if not folder.exists()]):
                    parent.mkdir()
                    undo.callback(remove, parent)
                with open(path, "xb") as file:
                    undo.callback(remove, path)
                    file.write(content)
            except OSError as problem:
                reason = problem.strerror or str(problem)
                raise error(
                    "cannot-write",
                    _("the file can't be written: {reason}", reason=reason),
                    where=str(path),
                    fix=_("nothing was written; choose another folder with `--out DIR`, or free some space"),
                ) from problem
        undo.pop_all()


def remove(path: Path) -> None:
    """Remove a file or folder created here; a folder that someone else has put a file into stays."""
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() else path.unlink()
