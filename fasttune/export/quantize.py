"""F16 GGUF to a K-quant GGUF by llama.cpp's own quantizer, in a child process.

llama_model_quantize decides which tensor gets which type, so the mix is llama.cpp's. It runs in a child process because
it may abort its process on a broken input and takes much memory; of the child's log the last line of a failure is
reported.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gguf

import fasttune
from fasttune.console import _, error
from fasttune.export import imatrix
from fasttune.export.llama import last_log_line, library, thread_count

# Quantization type -> enum llama_ftype of llama.h. F16, BF16 and Q8_0 are written directly (write.py).
K_TYPES = {
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17,
    "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30,
}  # fmt: skip
CHILD = "import sys; from fasttune.export.quantize import main; sys.exit(main(*sys.argv[1:]))"
BUFFER_BYTES = 64 << 20


def quantize(source: Path, target: Path, quantization: str, importance: Path | None = None) -> None:
    """Write the F16 file `source` as `target` in a quantization type, a key of K_TYPES, with the importance matrix in a
    file where one is given.

    Raises FasttuneError with llama.cpp's reason where it can't.
    """
    package_parent = str(Path(fasttune.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(target), quantization, str(importance or "")],
        # Safe: a folder "fasttune" of another version in the current directory would be imported first.
        env={**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()
        reason = lines[-1] if lines else _("it ended with status {status}", status=done.returncode)
        raise error("quantize-failed", _("llama.cpp could not quantize: {reason}", reason=reason), where=quantization)


def main(source: str, target: str, quantization: str, importance: str = "") -> int:
    """Quantize in the child process; returns its exit status: 0, or 1 with llama.cpp's last log line on stderr."""
    lib = library()
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = K_TYPES[quantization]
    settings.nthread = thread_count()
    settings.max_buf_size = BUFFER_BYTES
    columns = imatrix.load(Path(importance)) if importance else {}
    entries = (lib.llama_model_imatrix_data * (len(columns) + 1))()  # the last one, without a name, ends the array
    for entry, (name, values) in zip(entries, columns.items(), strict=False):
        entry.name, entry.size = name.encode("utf-8"), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if columns:
        settings.imatrix = ctypes.cast(entries, ctypes.POINTER(lib.llama_model_imatrix_data))
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(settings)) == 0:
        return 0
    sys.stderr.write(last_log_line() + "\n")
    return 1


def tensor_types(path: Path) -> dict[str, int]:
    """How many matrices of a GGUF file are stored in each type, the most frequent first: {"Q5_0": 132, "Q8_0": 13}."""
    found = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1)
    return dict(found.most_common())
