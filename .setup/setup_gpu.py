"""CPU or CUDA: what the set-up installs torch for, by FASTTUNE_DEVICE, nvidia-smi and the PCI bus."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from setup_messages import _
from setup_steps import DRIVER, SetupError

WSL_NVIDIA_SMI = Path("/usr/lib/wsl/lib/nvidia-smi")  # where Windows' driver puts it; not on every PATH
PCI_DEVICES = Path("/sys/bus/pci/devices")


def decide_device(
    environ: Mapping[str, str], wsl_nvidia_smi: Path = WSL_NVIDIA_SMI, pci_devices: Path = PCI_DEVICES
) -> tuple[str, str]:
    """`cpu` or `cuda`, and the reason in words.

    Raises SetupError where a GPU seems to be there but its driver doesn't answer: a CPU build would be a silent loss.
    """
    override = environ.get("FASTTUNE_DEVICE", "")
    if override:
        if override not in ("cpu", "cuda"):
            raise SetupError(
                _("FASTTUNE_DEVICE is {value!r}", value=override), _("set it to cpu or cuda, or leave it out")
            )
        return override, _("FASTTUNE_DEVICE says so")
    path = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if path is None and wsl_nvidia_smi.exists():
        path = str(wsl_nvidia_smi)
    if path is not None:
        return "cuda", list_gpus(path)
    if has_nvidia_gpu(pci_devices):
        raise SetupError(
            _("this machine has an NVIDIA GPU but no driver for it (there is no nvidia-smi)"),
            _(
                "install NVIDIA's driver, version {driver} or newer (on WSL2: in Windows, never inside Linux), or set "
                "FASTTUNE_DEVICE=cpu to train on the CPU",
                driver=DRIVER,
            ),
        )
    return "cpu", _("no NVIDIA GPU found")


def list_gpus(nvidia_smi: str) -> str:
    """The GPUs' names, joined by commas. Raises SetupError where the driver doesn't answer or lists none."""
    try:
        answer = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        output, gpus = str(error), []
    else:
        output = (answer.stdout + answer.stderr).strip()
        gpus = re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", answer.stdout, re.MULTILINE)
        if answer.returncode == 0 and gpus:
            return ", ".join(gpus)
    raise SetupError(
        _("{program} lists no GPU: {output}", program=nvidia_smi, output=output or _("it prints nothing")),
        _(
            "repair the NVIDIA driver ({driver} or newer; on WSL2 it is installed in Windows, then `wsl --shutdown`), "
            "or set FASTTUNE_DEVICE=cpu to train on the CPU",
            driver=DRIVER,
        ),
    )


def has_nvidia_gpu(pci_devices: Path) -> bool:
    """Whether a display controller (class 0x03) of NVIDIA (vendor 0x10de) is on the PCI bus."""
    for device in pci_devices.glob("*"):
        vendor, kind = device / "vendor", device / "class"
        known = vendor.is_file() and kind.is_file()
        if known and vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            return True
    return False
