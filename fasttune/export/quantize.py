"""F16 GGUF to a K-quant GGUF by llama.cpp's own quantizer, in a process of its own.

llama_model_quantize decides which tensor gets which type; that mix is llama.cpp's, not ours. It may abort the process
on a broken input and takes memory of its own, so it runs as a child; its log is kept there and only the last line of a
failure comes back.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import fasttune
from fasttune.console import _, error
from fasttune.export.llama import last_log_line, library, threads

# llama.h, enum llama_ftype. F16 and Q8_0 are written directly (write.py).
K_TYPES = {
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
    "q6_k": 18,
}  # fmt: skip
CHILD = "import sys; from fasttune.export.quantize import main; sys.exit(main(*sys.argv[1:]))"
BUFFER_BYTES = 64 << 20


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write `target` as `kind`, a key of K_TYPES, from the F16 file `source`; FasttuneError with llama.cpp's reason."""
    home = str(Path(fasttune.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(target), kind],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()
        reason = lines[-1] if lines else _("it ended with status {status}", status=done.returncode)
        raise error("quantize-failed", _("llama.cpp could not quantize: {reason}", reason=reason), where=kind)


def main(source: str, target: str, kind: str) -> int:
    """What the child runs: 0, or 1 with llama.cpp's last log line on stderr."""
    lib = library()
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = K_TYPES[kind]
    settings.nthread = threads()
    settings.max_buf_size = BUFFER_BYTES
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(settings)) == 0:
        return 0
    sys.stderr.write(last_log_line() + "\n")
    return 1
