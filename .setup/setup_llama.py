"""The wheel of llama-cpp-python, compiled once for all clones of a user: there is none to download."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import tempfile
from pathlib import Path

from setup_messages import _
from setup_steps import Place, SetupError, find_pin, run

COMPILE_GIB = 0.6  # of memory for one compiler
LLAMA_DEFINES = (
    "-DGGML_NATIVE=OFF",  # a kept wheel must also run on another processor
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib",  # else everything is installed a second time into site-packages/lib
    "-DCMAKE_INSTALL_INCLUDEDIR=llama_cpp/include",
    "-DCMAKE_INSTALL_BINDIR=llama_cpp/lib",
)


def llama_wheel(place: Place) -> Path:
    """Where the wheel lies, once made: one folder for all that decides what the compiler writes."""
    version = find_pin(place, "llama-cpp-python").split("==")[1]
    inputs = [*LLAMA_DEFINES, (place.locks / "nocommon.cmake").read_text(encoding="utf-8"), *platform.libc_ver()]
    digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:12]
    machine = platform.machine()
    return place.wheels / f"{machine}-{digest}" / f"llama_cpp_python-{version}-py3-none-linux_{machine}.whl"


def build_llama(place: Place, wheel: Path) -> None:
    """Compiles llama.cpp's library for the CPU, without its command line tools; an interrupted build leaves no wheel.

    On CUDA machines too: it checks, quantizes and probes, which a CPU does well, and so no CUDA compiler is needed.
    pip's own cache is left out: it would hand over a wheel that was built with other options.
    """
    snippet = shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={place.locks / 'nocommon.cmake'}")
    environ = {"CMAKE_ARGS": " ".join([*LLAMA_DEFINES, snippet]), "CMAKE_BUILD_PARALLEL_LEVEL": str(compile_jobs())}
    options = ["--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python", "--verbose"]
    options += ["--build-constraint", str(place.locks / "requirements-build.lock")]
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [str(place.python), "-m", "pip", "wheel", *options, "--wheel-dir", folder]
        run(place, _("llama-cpp-python (compiling)"), [*command, find_pin(place, "llama-cpp-python")], environ)
        made = list(Path(folder).glob("*.whl"))
        if [path.name for path in made] != [wheel.name]:
            raise SetupError(
                _("expected {wheel}, got {found}", wheel=wheel.name, found=[path.name for path in made]),
                _("read {log}", log=place.log),
            )
        made[0].replace(wheel)


def compile_jobs() -> int:
    """As many compilers as there are cores, and memory for."""
    words = Path("/proc/meminfo").read_text(encoding="utf-8")
    available = re.search(r"^MemAvailable:\s+(\d+) kB", words, re.MULTILINE)
    gib = int(available[1]) / 2**20 if available else 1.0
    return max(1, min(len(os.sched_getaffinity(0)), int(gib / COMPILE_GIB)))
