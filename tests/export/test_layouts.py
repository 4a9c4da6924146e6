"""Where files go for LM Studio and llama.cpp's server."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from conftest import small_files

from fasttune import machine
from fasttune.console import FasttuneError, UsageError
from fasttune.export import layouts
from fasttune.export.serving import Serving


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without LM Studio, on a Linux that runs in no Windows."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(machine, "is_wsl", lambda: False)
    return folder


def studio(home: Path, downloads: str = "") -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.json").write_text(json.dumps({"downloadsFolder": downloads}), encoding="utf-8")
    return home


def test_lm_studios_folder_is_that_of_its_settings(home: Path, tmp_path: Path) -> None:
    studio(home / ".lmstudio", str(tmp_path / "big" / "models"))
    expected = tmp_path / "big" / "models" / "fasttune" / "linzhi"
    assert layouts.target_folder("lmstudio", "linzhi") == expected


@pytest.mark.parametrize("settings", [None, "", "{", "[1]", '{"downloadsFolder": 7}', '{"downloadsFolder": " "}'])
def test_without_a_setting_it_is_the_one_in_its_home(home: Path, settings: str | None) -> None:
    (home / ".lmstudio").mkdir()
    if settings is not None:
        (home / ".lmstudio" / "settings.json").write_text(settings, encoding="utf-8")
    assert layouts.lm_studio_models() == home / ".lmstudio" / "models"


def test_its_home_is_where_the_pointer_leads(home: Path, tmp_path: Path) -> None:
    studio(tmp_path / "elsewhere")
    (home / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'elsewhere'}\n", encoding="utf-8")
    studio(home / ".lmstudio")
    assert layouts.lm_studio_models() == tmp_path / "elsewhere" / "models"
    (home / ".lmstudio-home-pointer").write_text("/gone\n", encoding="utf-8")
    assert layouts.lm_studio_models() == home / ".lmstudio" / "models"


def test_older_versions_kept_it_among_the_caches(home: Path) -> None:
    studio(home / ".cache" / "lm-studio")
    assert layouts.lm_studio_models() == home / ".cache" / "lm-studio" / "models"


def test_under_wsl2_it_is_the_one_in_windows(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = tmp_path / "Users"
    studio(users / "lin" / ".lmstudio", "D:\\models\\gguf")
    (users / "Public" / ".lmstudio").mkdir(parents=True)
    monkeypatch.setattr(layouts, "WINDOWS_USERS", users)
    with pytest.raises(UsageError):
        layouts.lm_studio_models()
    monkeypatch.setattr(machine, "is_wsl", lambda: True)
    assert layouts.lm_studio_models() == Path("/mnt/d/models/gguf")


def test_no_lm_studio_is_one_message(home: Path) -> None:
    with pytest.raises(UsageError) as caught:
        layouts.target_folder("lmstudio", "linzhi")
    (finding,) = caught.value.findings
    assert finding.code == "no-lm-studio" and str(home / ".lmstudio") in finding.what and "--to FOLDER" in finding.fix


def test_a_folder_that_is_a_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for to in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError) as caught:
            layouts.target_folder(str(to), "linzhi")
        assert caught.value.findings[0].code == "not-a-folder"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "linzhi-Q8_0.gguf"
    path.write_bytes(bytes(range(256)) * 400)
    return path


def test_a_copy_is_whole_and_another_file_stays(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "linzhi"
    target = layouts.copy_file(file, folder)
    assert target == folder / file.name and target.read_bytes() == file.read_bytes()
    assert layouts.copy_file(file, folder) == target  # the same is taken as it is
    target.write_bytes(b"another")
    with pytest.raises(FasttuneError, match="already exists and is another file"):
        layouts.copy_file(file, folder)
    assert target.read_bytes() == b"another"


def test_a_disk_that_fills_up_leaves_nothing(file: Path, tmp_path: Path) -> None:
    with small_files(20_000), pytest.raises(OSError) as caught:
        layouts.copy_file(file, tmp_path / "models")
    assert caught.value.errno == errno.EFBIG and list((tmp_path / "models").iterdir()) == []


def test_the_command_of_llama_cpps_server_is_complete() -> None:
    command = layouts.llama_server(Path("my models/x.gguf"), 4096, Serving(0.7, 20, 0.8, 1.1, 512))
    assert command == (
        "llama-server --model 'my models/x.gguf' --jinja --ctx-size 4096 --temp 0.7 --top-k 20 --top-p 0.8 "
        "--repeat-penalty 1.1 --predict 512"
    )
