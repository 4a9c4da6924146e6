"""GPU, free memory and package versions without torch: what nvidia-smi, the kernel and the installation say."""

from __future__ import annotations

import gc
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fasttune import machine
from fasttune.machine import free_gpu_gib, free_memory, free_ram_gib, package_versions, visible_gpu

LISTS_TWO = """\
import sys
if sys.argv[1] == "-L":
    print("GPU 0: NVIDIA Test (UUID: GPU-1)\\nGPU 1: NVIDIA Other (UUID: GPU-2)")
else:
    assert "--query-gpu=memory.free" in sys.argv
    print("2048\\n7168")
"""
FAILS = "import sys\nprint('NVIDIA-SMI has failed')\nsys.exit(9)\n"
HAS_NO_FIGURE = "print('[N/A]')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the PATH; no nvidia-smi of this machine is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "WSL_NVIDIA_SMI", str(tmp_path / "wsl-nvidia-smi"))
    return tmp_path


def install(path: Path, program: str) -> None:
    path.write_text(f"#!{sys.executable}\n{program}", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["nvidia-smi", "wsl-nvidia-smi"])
def test_the_first_gpu_and_the_most_free_memory(folder: Path, name: str) -> None:
    install(folder / name, LISTS_TWO)
    assert visible_gpu() == "GPU 0: NVIDIA Test"
    assert free_gpu_gib() == 7.0


@pytest.mark.parametrize("program", [FAILS, HAS_NO_FIGURE, ""])
def test_a_driver_that_lists_no_gpu_counts_as_none(folder: Path, program: str) -> None:
    assert free_gpu_gib() is None and visible_gpu() == ""
    install(folder / "nvidia-smi", program)
    assert free_gpu_gib() is None
    if program == FAILS:
        assert visible_gpu() == ""


def test_free_ram_is_part_of_the_ram(folder: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert 0 < free_ram_gib() <= whole
    assert free_memory().gpu_gib is None and 0 < free_memory().ram_gib <= whole


def test_versions_of_installed_packages_in_the_given_order() -> None:
    names = ["pytest", "no-such-package", "gguf"]
    assert list(package_versions(names).items()) == [(n, metadata.version(n)) for n in ("pytest", "gguf")]
    assert package_versions()["torch"] == metadata.version("torch")
    assert set(package_versions()) <= set(machine.TRAINING_PACKAGES)


DETAILED = """\
import sys
fields = sys.argv[1].partition("=")[2]
if sys.argv[1].startswith("--query-compute-apps"):
    print("4711, 1024, /usr/bin/python3\\n4712, [N/A], C:\\\\Windows\\\\game.exe")
elif fields.endswith("compute_cap"):
    sys.exit(OLD)
    print("unreachable")
print("0, GPU-a, 580.95, 8188, 500, NVIDIA GeForce RTX 4060") if OLD and "uuid" in fields else None
"""
NEW = """\
import sys
if sys.argv[1].startswith("--query-compute-apps"):
    print("4711, 1024, /usr/bin/python3\\n4712, [N/A], C:\\\\Windows\\\\game.exe")
else:
    print("0, GPU-a, 580.95, 8188, 500, NVIDIA GeForce RTX 4060, 8.9\\n1, GPU-b, 580.95, 16303, [N/A], RTX 5080, 12.0")
"""


def test_gpus_in_detail(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        machine.list_gpus()
    install(folder / "nvidia-smi", NEW)
    first, second = machine.list_gpus()
    assert (first.name, first.total_mib, first.used_mib, first.capability) == (
        "NVIDIA GeForce RTX 4060", 8188, 500, (8, 9),
    )  # fmt: skip
    assert (second.capability, second.used_mib) == ((12, 0), 0)
    assert [(one.pid, one.mib) for one in machine.gpu_processes()] == [(4711, 1024), (4712, None)]
    install(folder / "nvidia-smi", DETAILED.replace("OLD", "1"))  # a driver that does not know compute_cap
    assert [one.capability for one in machine.list_gpus()] == [None]


def test_the_gpu_that_cuda_calls_0(folder: Path) -> None:
    install(folder / "nvidia-smi", NEW)
    gpus = machine.list_gpus()
    chosen = {visible: machine.first_visible(gpus, visible) for visible in (None, "1", "1,0", "GPU-b", "", "-1", "7")}
    names = {visible: gpu.index if gpu else None for visible, gpu in chosen.items()}
    assert names == {None: 0, "1": 1, "1,0": 1, "GPU-b": 1, "": None, "-1": None, "7": None}


def test_hardware_without_a_driver(tmp_path: Path) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x040300\n")  # the sound of a GPU
    assert not machine.has_nvidia_hardware(tmp_path)
    (device / "class").write_text("0x030000\n")
    assert machine.has_nvidia_hardware(tmp_path)


def test_the_build_of_torch_without_importing_it() -> None:
    import torch

    assert machine.torch_cuda() == (torch.version.cuda or "")


def test_a_linux_in_windows(tmp_path: Path) -> None:
    version, mounts, routes = tmp_path / "version", tmp_path / "mounts", tmp_path / "route"
    assert not machine.is_wsl(version)
    version.write_text("Linux version 6.6.87.2-microsoft-standard-WSL2 (root@x) (gcc …)")
    assert machine.is_wsl(version)
    version.write_text("Linux version 6.8.0-generic")
    assert not machine.is_wsl(version)
    mounts.write_text(
        "rootfs / ext4 rw 0 0\nC:\\134 /mnt/c 9p rw 0 0\n/dev/sdc / ext4 rw 0 0\nD: /mnt/my\\040drive drvfs rw 0 0\n"
    )
    kinds = {path: machine.filesystem(Path(path), mounts) for path in ("/home/x", "/mnt/c/Users", "/mnt/my drive/y")}
    assert list(kinds.values()) == ["ext4", "9p", "drvfs"]
    assert machine.filesystem(Path("/x"), tmp_path / "none") == ""
    routes.write_text("Iface\tDestination\tGateway\neth0\t00000000\t010014AC\t0003\neth0\t000014AC\t00000000\t0001\n")
    assert machine.default_gateway(routes) == "172.20.0.1"
    assert machine.default_gateway(tmp_path / "none") == ""
    assert machine.total_ram_gib() >= free_ram_gib()


def test_a_path_as_windows_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path("/home/me/report.html")
    monkeypatch.setattr(machine, "is_wsl", lambda: True)
    assert machine.windows_path(page) is None  # there is no wslpath
    program = folder / "wslpath"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint('W:' + sys.argv[2].replace('/', chr(92)))\n")
    program.chmod(0o755)
    assert machine.windows_path(page) == r"W:\home\me\report.html"
    monkeypatch.setattr(machine, "is_wsl", lambda: False)
    assert machine.windows_path(page) is None


@pytest.mark.parametrize(
    ("flags", "found"),
    [("fpu avx2", ""), ("fpu avx512f avx512_bf16", "AVX512-BF16"), ("avx512_bf16 amx_bf16 amx_tile", "AMX"),
     ("avx512_bf16x", "")],
)  # fmt: skip
def test_what_the_processor_multiplies_bfloat16_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, found: str
) -> None:
    """The flags of /proc/cpuinfo, or those that FASTTUNE_CPU_FLAGS names in their place; none where it is no Linux."""
    monkeypatch.delenv("FASTTUNE_CPU_FLAGS")
    cpuinfo = tmp_path / "cpuinfo"
    assert machine.bfloat16_instructions(cpuinfo) == ""
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: a CPU\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert machine.bfloat16_instructions(cpuinfo) == found
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "")
    assert machine.bfloat16_instructions(cpuinfo) == ""
    monkeypatch.setenv("FASTTUNE_CPU_FLAGS", "amx_bf16")
    assert machine.bfloat16_instructions(cpuinfo) == "AMX"


def test_a_block_without_the_collector_leaves_it_as_it_was() -> None:
    with pytest.raises(KeyError), machine.without_collector():
        assert not gc.isenabled()
        with machine.without_collector():
            pass
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
