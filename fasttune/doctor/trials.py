"""What is tried in a process of its own, because it can hang, can end the process, or takes long to import: torch,
Triton, bitsandbytes, CUDA, llama.cpp, the client of Ollama.

    python -m fasttune.doctor.trials NAME…      one JSON line a check on stdout, as soon as its result is known

child.py starts such a process and reads it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from fasttune import machine
from fasttune.console import FasttuneError, _
from fasttune.doctor import services
from fasttune.doctor.outcome import Check, crashed, from_error, ok
from fasttune.machine import bfloat16_instructions

GIB = 2**30
EXACT = 256  # rows and columns of the product that is compared; its integers stay below 2^11, which 16 bits hold
TIMED = {"cpu": 1024, "cuda": 8192}  # rows and columns of the product that is timed
NF4_ERROR = 0.15  # mean |error| / mean |weight| of normal weights; measured 0.10 (blocks of 64, arXiv 2305.14314)
PINNED_GIB = (1, 4, 8)
PINNED_ENOUGH_GIB = 1  # fasttune pins single rows, which are far smaller
BEYOND_FREE = GIB


def matrix_product() -> Check:
    """A product of integers, compared exactly with the processor's, then a large one, timed."""
    import torch

    from fasttune.training import device

    kind = device.device_type()
    instructions = bfloat16_instructions()
    dtype = torch.bfloat16 if instructions else torch.float32
    if kind == "cuda":
        dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-1, 2, (EXACT, EXACT), generator=generator) for _side in range(2))
    expected = a @ b
    found = (a.to(kind, dtype) @ b.to(kind, dtype)).cpu().long()
    where = torch.cuda.get_device_name() if kind == "cuda" else _("the processor")
    if not torch.equal(found, expected):
        what = _("{device} multiplies wrongly: {wrong} of {all} numbers differ", device=where,
                 wrong=int((found != expected).sum()), all=expected.numel())  # fmt: skip
        fix = _("take back overclocking, then test the memory of GPU or computer")
        return Check("matrix-product", "error", what, _("its results can't be trusted"), fix)
    number_type = str(dtype).removeprefix("torch.")
    rate = products_per_second(kind, number_type)
    what = _("{device}: {rate:,.0f} GFLOP/s in {dtype}", device=where, rate=rate, dtype=number_type)
    if kind == "cpu":
        what += "; " + auto_type(instructions)
    return ok("matrix-product", what)


def auto_type(instructions: str) -> str:
    """What model.dtype = "auto" is on a processor that multiplies bfloat16 by these instructions ("": by none)."""
    if not instructions:
        return _('model.dtype = "auto" trains in float32: it has neither AMX nor AVX512-BF16')
    return _('model.dtype = "auto" trains in bfloat16: it has {instructions}', instructions=instructions)


def products_per_second(kind: str, dtype: str) -> float:
    """GFLOP/s of a square product of TIMED rows; the best of three, after one that loads the library."""
    import torch

    size = TIMED[kind]
    x = torch.ones(size, size, device=kind, dtype=getattr(torch, dtype))
    times = []
    for _turn in range(4):
        began = time.monotonic()
        (x @ x)[0, 0].item()  # waits for the device
        times.append(time.monotonic() - began)
    return float(2 * size**3 / min(times[1:]) / 1e9)


def triton_kernel() -> Check:
    """A kernel that Triton compiles for this GPU, compared with torch."""
    began = time.monotonic()
    try:
        from fasttune.doctor import triton_kernel as kernel

        difference = kernel.error_of_kernel("cuda")
    except Exception as problem:  # Triton raises errors of many kinds: no compiler, no Python.h, no libcuda.so
        what = _("Triton can't compile or run a kernel: {reason}", reason=first_line(problem))
        why = _("Unsloth's layers are Triton kernels")
        return Check("triton-kernel", "error", what, why, "`sudo apt install -y build-essential python3-dev`")
    if difference:
        what = _("a Triton kernel computes wrongly: off by {difference:.3g}", difference=difference)
        return Check("triton-kernel", "error", what, fix=_("remove what it has compiled: `rm -rf ~/.triton/cache`"))
    return ok("triton-kernel", _("compiled and right in {seconds:.1f} s", seconds=time.monotonic() - began))


def nf4_round_trip(kind: str = "cuda") -> Check:
    """Weights quantized to NF4 by bitsandbytes and back, their error compared with what NF4 loses."""
    import torch

    name = "nf4-round-trip"
    try:
        from bitsandbytes import functional

        weights = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).to(kind, torch.float16)
        packed, state = functional.quantize_4bit(weights, quant_type="nf4")
        back = functional.dequantize_4bit(packed, state)
        lost = float((back - weights).abs().float().mean() / weights.abs().float().mean())
    except Exception as problem:  # a missing library, a build for another CUDA, a kernel that fails
        what = _("bitsandbytes can't hold weights in 4 bits: {reason}", reason=first_line(problem))
        fix = "`python -m pip install --force-reinstall --no-deps bitsandbytes`"
        return Check(name, "error", what, _("`load_in_4bit` needs it"), fix)
    what = _("{lost:.1%} of a weight is lost on average", lost=lost)
    if not 0 < lost < NF4_ERROR:
        return Check(name, "error", what, _("NF4 loses 10 %; `load_in_4bit` would train on damaged weights"))
    return ok(name, what)


def pinned_memory() -> Check:
    """How much memory CUDA can pin: 1, 4 and 8 GiB under WSL2, which limits it; elsewhere 1 GiB."""
    import torch

    sizes = PINNED_GIB if machine.is_wsl() else PINNED_GIB[:1]

    def pin(gib: int) -> bool:
        try:
            torch.empty(gib * GIB, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # CUDA says "out of memory" for it, as for its own
            return False
        return True

    pinned = [gib for gib in sizes if gib < 0.8 * machine.free_ram_gib() and pin(gib)]
    return judge_pinned(sizes, pinned)


def judge_pinned(tried: Sequence[int], pinned: Sequence[int]) -> Check:
    """The result where of these sizes in GiB some could be pinned."""
    largest = max(pinned, default=0)
    what = _("{most} GiB at once; tried: {tried}", most=largest, tried=", ".join(map(str, tried)))
    if largest >= PINNED_ENOUGH_GIB:
        return ok("pinned-memory", what)
    why = _("each row waits for its copy to the GPU")
    fix = _("give Linux more memory in %USERPROFILE%\\.wslconfig: `memory=12GB` under [wsl2], then `wsl --shutdown`")
    return Check("pinned-memory", "warning", what, why, fix)


def memory_spill() -> Check:
    """Whether the driver refuses more memory than is free on the GPU. Windows' driver may take RAM in its place, which
    takes ten times as long; training keeps within what is free at its start (device.refuse_spilling)."""
    import torch

    free, _total = torch.cuda.mem_get_info()
    try:
        torch.empty(free + BEYOND_FREE, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return judge_spill(free / GIB, spills=False)
    return judge_spill(free / GIB, spills=True)


def judge_spill(free_gib: float, *, spills: bool) -> Check:
    """The result where the driver gives more than the free memory (`spills`), or refuses it."""
    if not spills:
        return ok("memory-spill", _("more than the {free:.1f} GiB that are free is refused", free=free_gib))
    what = _("the driver gave more than the {free:.1f} GiB that are free: the rest is RAM", free=free_gib)
    why = _("a training takes no more than is free when it starts, but where another program takes GPU memory later it "
            "gets ten times slower instead of making its rows smaller")  # fmt: skip
    fix = _("in Windows, NVIDIA Control Panel, Manage 3D settings: CUDA - Sysmem Fallback Policy = Prefer No Sysmem "
            "Fallback")  # fmt: skip
    return Check("memory-spill", "warning", what, why, fix)


def llama_cpp() -> Check:
    """Whether llama.cpp loads."""
    from fasttune.export import llama

    failure = llama.import_failure()
    if failure:
        what = _("llama.cpp does not load: {reason}", reason=failure.splitlines()[0])
        why = _("exports are verified, and `fasttune chat` answers, by llama.cpp")
        fix = "`python -m pip install --force-reinstall --no-deps --no-binary :all: llama-cpp-python`"
        return Check("llama-cpp", "error", what, why, fix)
    found = machine.installed_version("llama-cpp-python")
    return ok("llama-cpp", _("llama-cpp-python {version} loads", version=found))


def first_line(problem: BaseException) -> str:
    """An error's kind and the first line that says something."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__


WORK: dict[str, Callable[[], Check]] = {
    "matrix-product": matrix_product,
    "triton-kernel": triton_kernel,
    "nf4-round-trip": nf4_round_trip,
    "pinned-memory": pinned_memory,
    "memory-spill": memory_spill,
    "llama-cpp": llama_cpp,
    "ollama": services.ollama,
}


def main(names: Sequence[str]) -> None:
    """Do the checks of these names. stdout is for the results alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name in names:
        began = time.monotonic()
        try:
            result = WORK[name]()
        except FasttuneError as problem:
            result = from_error(name, problem)
        except Exception as problem:
            result = crashed(name, problem)
        answers.write(json.dumps(asdict(replace(result, seconds=time.monotonic() - began))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
