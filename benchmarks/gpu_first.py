"""Ten minutes with a GPU that fasttune has never run on: does it run, is it exact, how fast is it beside stock Unsloth.

    python benchmarks/gpu_first.py OUT              # at most ten minutes; needs no network
    python benchmarks/gpu_first.py OUT --minutes 30
    python benchmarks/gpu_first.py OUT --cpu        # the same questions on a CPU and a tiny base, to try this script

OUT/answers.jsonl gets one line an answer, as soon as it is known, the most important first; OUT/bench is the folder of
benchmarks/run.py. A question that fails is an answer too, and the others go on; the exit code is 1 then. The benchmark
is left four minutes. Repeated, this asks again what failed or was not reached, and the benchmark goes on.

  imports      versions, GPU, its capability, the kernels that packed attention takes there
  attention    packed attention against dense attention in float64: output and gradients, for the heads of three sizes
  step         one optimizer step's loss and gradients: shared and packed rows against one sample a row
  answers      logits of generated answers against those of a row of the training; again after the weights changed
  trials       three trials in turn on one base in memory, as in a sweep: the last one's step against that on a base of
               its own, seconds of loading, and whether the one before has left anything in memory
  row          milliseconds of a row until the host has launched all and until the GPU has done all; memory a token;
               how often the host waited for the GPU; kernels launched
  graphs       rows as CUDA graphs (train.cuda_graphs), in 16 bit and over NF4: exactness before and after the weights
               change, milliseconds with and without, memory; what is left after a recording that fails
  bench        benchmarks/run.py --cuda: persona samples on 0.5B, 1.5B and 3B shapes, stock Unsloth and fasttune
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_graphs
import shapes
import torch

from fasttune import machine
from fasttune.data.tokenize import Example
from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import attention, attention_kernels, device, engine, generation, packing, prefix_check, watch
from fasttune.training import model as models

HERE = Path(__file__).resolve().parent
HEADS = {"0.5b": (14, 2, 64), "1.5b": (12, 2, 128), "3b": (16, 2, 128)}  # query heads, key heads, width
PROMPT, SAMPLE = 176, 34  # tokens of the persona's system prompt, and of each sample behind it
ROUNDING = 2e-2  # relative, of 16 bit: what attention may be off; the step's is prefix_check.TOLERANCE
ANSWER = 6  # tokens
BENCH_MINUTES = 4.0  # of each call, for the benchmark: no other question begins later
Question = tuple[str, Callable[[], dict[str, Any]]]


class Answers:
    """The file of answers: those of earlier calls, and a new line for each question that is asked."""

    def __init__(self, file: Path) -> None:
        self.file, self.begun, self.failed = file, time.monotonic(), 0
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        self.known = {line["question"] for line in map(json.loads, lines) if "failed" not in line}

    @property
    def minutes(self) -> float:
        """Since the first question of this call."""
        return (time.monotonic() - self.begun) / 60

    def ask(self, question: str, work: Callable[[], dict[str, Any]]) -> None:
        """Ask a question unless it is answered already; an exception is its answer."""
        if question in self.known:
            return
        begun = time.monotonic()
        try:
            found = work()
        except Exception as problem:  # the answer is that it does not work
            self.failed += 1
            found = {"failed": f"{type(problem).__name__}: {problem}"[:800], "where": traceback.format_exc()[-1500:]}
        found = {"question": question, "seconds": round(time.monotonic() - begun, 1), **found}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
        print(json.dumps(found, ensure_ascii=False)[:400], flush=True)


def main() -> int:
    """Ask all questions, and measure in the time that is left; returns 1 where something failed."""
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    answers = Answers(options.out / "answers.jsonl")
    base = shapes.make("tiny" if options.cpu else "0.5b", options.out / "base")
    questions = [("imports", imports), *attention_questions(), *step_questions(base)]
    questions += [] if options.cpu else graph_questions(base)
    kept_for_bench = 0.0 if options.cpu else BENCH_MINUTES
    for question, work in questions:
        if options.minutes - answers.minutes < kept_for_bench:
            print(f"not reached in this call: {question}", flush=True)
        else:
            answers.ask(question, work)
    if not options.cpu:
        left = options.minutes - answers.minutes
        answers.ask(f"bench after {len(answers.known)} answers", lambda: bench(options.out / "bench", left))
    return int(answers.failed > 0)


def arguments() -> argparse.Namespace:
    """The command line; refused where there is no GPU and no --cpu."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the answers")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--cpu", action="store_true", help="on a CPU with a tiny base, without the benchmark")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU; `fasttune doctor` says why, and --cpu tries this script without one")
    return options


def imports() -> dict[str, Any]:
    """What is installed, and what packed attention will compute with."""
    models.import_unsloth()
    name = device.device_type()
    found: dict[str, Any] = {"packages": machine.package_versions(), "device": name}
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
    query = torch.empty(1, 1, 64, device=name, dtype=torch.bfloat16)
    kernel = attention_kernels.kernel_for(query)
    return found | {"kernel": kernel.forward.__name__.removesuffix("_forward")}


# Attention ------------------------------------------------------------------------------------------------------------


def attention_questions() -> list[Question]:
    """Packed attention for each size's heads, in a persona's row and in one of several groups."""
    suffixes = [SAMPLE] * 24
    layouts = {
        "persona": attention.layout([(PROMPT, suffixes)], []),
        "mixed": attention.layout([(61, [18, 31, 44]), (130, [57, 70, 83]), (1, [2, 1])], [17, 109, 1]),
    }
    return [
        (f"attention: {size}, {name} row", functools.partial(attention_error, HEADS[size], layout))
        for size in HEADS
        for name, layout in layouts.items()
    ]


def attention_error(shape: tuple[int, int, int], layout: attention.Layout) -> dict[str, Any]:
    """How far packed attention and its gradients in bfloat16 are from dense attention in float64, relative."""
    torch.manual_seed(0)
    heads, key_heads, width = shape
    where, tokens = torch.device(device.device_type()), layout.own.queries
    inputs = [torch.randn(tokens, n, width).bfloat16() for n in (heads, key_heads, key_heads)]
    upstream = torch.randn(tokens, heads, width).bfloat16()
    on_device = layout.with_tensors([tensor.to(where) for tensor in layout.tensors()])
    query, key, value = (tensor.to(where).requires_grad_() for tensor in inputs)
    made = attention.packed_attention(query, key, value, on_device, width**-0.5)
    found = [made, *torch.autograd.grad(made, (query, key, value), upstream.to(where))]
    again = attention.packed_attention(query, key, value, on_device, width**-0.5)
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    expected = dense_attention(exact, attention.dense_mask(layout)[0])
    wanted = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
    errors = dict(zip(("output", "query", "key", "value"), map(relative_error, found, wanted), strict=True))
    if not max(errors.values()) < ROUNDING:
        raise ArithmeticError(f"packed attention is not dense attention: {errors}")
    return {"errors": errors, "repeats_bit_for_bit": torch.equal(made, again)}


def dense_attention(inputs: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Query [T, H, D] over key and value [T, H_kv, D] by a mask [1, T, T]."""
    query, key, value = (states.transpose(0, 1) for states in inputs)
    key, value = (states.repeat_interleave(len(query) // len(states), 0) for states in (key, value))
    scores = (query @ key.transpose(1, 2)) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(0, 1)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|, 2-norms, to three digits."""
    expected = expected.double().cpu()
    return float(f"{((found.detach().double().cpu() - expected).norm() / expected.norm()).item():.2e}")


# A step of the whole model --------------------------------------------------------------------------------------------


def step_questions(base: Path) -> list[Question]:
    """Exactness with and without checkpointing, then what rows of three lengths cost."""
    exact: list[Question] = [
        (f"step: checkpointing {checkpointing}", functools.partial(step_error, base, checkpointing))
        for checkpointing in (False, True)
    ]
    exact += [("answers", functools.partial(answer_error, base)), ("trials", functools.partial(trial_error, base))]
    sizes = (16, 50, 230) if device.device_type() == "cuda" else (4,)
    costs: list[Question] = [
        (
            f"row: {count} samples, checkpointing {checkpointing}",
            functools.partial(row_cost, base, count, checkpointing),
        )
        for checkpointing in (False, True)
        for count in sizes
    ]
    return exact + costs


def step_error(base: Path, checkpointing: bool) -> dict[str, Any]:
    """Loss and gradients of 16 samples: shared, and packed without sharing, against one sample a row."""
    model = loaded(base, checkpointing)
    examples = persona_samples(16, model.config.vocab_size)
    ways = {"single": (0, False), "packed": (8192, False), "shared": (8192, True)}
    made = {name: step(model, examples, *way) for name, way in ways.items()}
    loss, gradients = made.pop("single")
    errors = {
        name: {"loss": abs(one / loss - 1), "gradient": relative_error(other, gradients)}
        for name, (one, other) in made.items()
    }
    allowed = prefix_check.TOLERANCE[torch.bfloat16]
    if not all(error["loss"] < ROUNDING and error["gradient"] < allowed for error in errors.values()):
        raise ArithmeticError(f"rows change the step: {errors}")
    return {"loss": loss, "errors": errors}


def answer_error(base: Path) -> dict[str, Any]:
    """How far the logits of two answers, generated together, are from those of the same tokens as rows of the training:
    in a model that has computed no row, and after its weights have changed."""
    model, tokenizer = loaded(base, checkpointing=False), models.load_tokenizer(base)
    prompts = [sample.tokens[:length] for sample, length in zip(persona_samples(2, 5000), (70, 90), strict=True)]
    errors = {}
    for state in ("fresh", "changed"):
        seen: list[list[torch.Tensor]] = [[] for _prompt in prompts]

        def choose(row: int, logits: torch.Tensor, seen: list[list[torch.Tensor]] = seen) -> int:
            seen[row].append(logits.float().cpu())
            return int(logits[:5000].argmax())

        generation.generate_batch(model, tokenizer, prompts, ANSWER, choose)
        errors[state] = max(
            relative_error(torch.stack(made), row_logits(model, prompt, made))
            for prompt, made in zip(prompts, seen, strict=True)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(-3 if "lora_B" in name else 1)
    if not max(errors.values()) < prefix_check.TOLERANCE[torch.bfloat16]:
        raise ArithmeticError(f"answers are not those of the trained model: {errors}")
    return {"errors": errors}


def row_logits(model: Any, prompt: Sequence[int], made: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits that a row of the training gives for each token of an answer, from the prompt and those before it."""
    tokens = (*prompt, *(int(logits[:5000].argmax()) for logits in made[:-1]))
    example = Example("answer", tokens, ((len(prompt), len(tokens)),))
    (row,) = packing.plan_step([example], [0], 0).rows
    batch, head = engine.collate(row, [example]).to(model.device), models.lm_head_weight(model)
    with torch.no_grad(), torch.autocast(model.device.type, head.dtype, enabled=head.dtype != torch.float32):
        states = models.hidden_states(model, batch)[0, len(prompt) - 1 : len(tokens)]
    return states.float() @ head.float().T


def trial_error(base: Path) -> dict[str, Any]:
    """How far the step of a third trial on a shared base is from the same on a base that was loaded for it. What stays
    in memory after the first step of all, as cuBLAS's workspace does, is there when the second trial begins."""
    shared, seconds, used = watch.SharedBase(), list[float](), list[int]()
    for checkpointing in (False, False, True):
        begun = time.perf_counter()
        model = loaded(base, checkpointing, load=shared.load)
        synchronize()
        seconds.append(round(time.perf_counter() - begun, 2))
        used.append(device.reset_peak())
        examples = persona_samples(16, model.config.vocab_size)
        loss, gradients = step(model, examples, 8192, True)
        torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0).step()
        del model
    shared.drop()
    device.release_memory()
    alone_loss, alone = step(loaded(base, True), examples, 8192, True)
    errors = {"loss": abs(loss / alone_loss - 1), "gradient": relative_error(gradients, alone)}
    if not max(errors.values()) < ROUNDING:
        raise ArithmeticError(f"a shared base is not the base: {errors}")
    if device.device_type() == "cuda" and used[2] > 1.01 * used[1]:
        raise MemoryError(f"a trial has left something: {used} bytes")
    return {"errors": errors, "seconds_to_load": seconds, "bytes": used}


def loaded(base: Path, checkpointing: bool, load_in_4bit: bool = False, load: Callable[..., Any] | None = None) -> Any:
    """The base, by models.load_base unless by `load`, with an adapter whose second factors are not zero, so that every
    gradient is there."""
    recipe = ModelRecipe(base=str(base), load_in_4bit=load_in_4bit)
    model = models.add_lora(
        (load or models.load_base)(base, recipe), LoraRecipe(r=16, alpha=32), 3407, checkpointing=checkpointing
    )
    model.train()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def persona_samples(count: int, vocabulary: int, seed: int = 1) -> list[Example]:
    """Samples behind one prompt, of random tokens; half of each answer is supervised."""
    chosen = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(0, vocabulary, (length,), generator=chosen).tolist()

    prompt = draw(PROMPT)
    rows = [(*prompt, *draw(SAMPLE)) for _sample in range(count)]
    return [Example(f"s{i}", row, ((PROMPT + SAMPLE // 2, len(row)),)) for i, row in enumerate(rows)]


def step(model: Any, examples: Sequence[Example], budget: int, share: bool) -> tuple[float, torch.Tensor]:
    """The mean loss of one step, and its gradients in one vector."""
    models.drop_gradients(model)
    total = backward(model, examples, budget, share)
    gradients = [parameter.grad.flatten().float() for parameter in model.parameters() if parameter.grad is not None]
    return float(total), torch.cat(gradients)


def backward(model: Any, examples: Sequence[Example], budget: int, share: bool) -> torch.Tensor:
    """Loss and gradients of one step as the trainer computes them; returns the mean loss, on the device."""
    planned = packing.plan_step(examples, range(len(examples)), budget, shared_prefix=share)
    losses, dtype = [], models.lm_head_weight(model).dtype
    for row in planned.rows:
        batch = engine.collate(row, examples).to(model.device)
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            loss, _hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
        (loss / planned.supervised).backward()
        models.collect_gradients(model)
        losses.append(loss.detach())
    return torch.stack(losses).sum() / planned.supervised


def row_cost(base: Path, count: int, checkpointing: bool) -> dict[str, Any]:
    """What one row of so many samples takes."""
    model = loaded(base, checkpointing)
    examples = persona_samples(count, model.config.vocab_size)
    tokens = packing.plan_step(examples, range(count), 10**6).computed_tokens

    def work() -> None:
        models.drop_gradients(model)
        backward(model, examples, 10**6, share=True)

    work()
    before = device.reset_peak()
    host, whole = times(work)
    taken = device.peak_memory() - before
    return {
        "tokens": tokens, "host_ms": host, "whole_ms": whole, "mb_a_token": round(taken / tokens / 2**20, 3),
        **(waits_and_launches(work) if device.device_type() == "cuda" else {}),
    }  # fmt: skip


def times(work: Callable[[], None], repeats: int = 6) -> tuple[float, float]:
    """Median milliseconds until the host has launched all, and until the device has done all."""
    launched, done = [], []
    for _turn in range(repeats):
        synchronize()
        begun = time.perf_counter()
        work()
        launched.append(time.perf_counter() - begun)
        synchronize()
        done.append(time.perf_counter() - begun)
    return round(statistics.median(launched) * 1e3, 1), round(statistics.median(done) * 1e3, 1)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if device.device_type() == "cuda":
        torch.cuda.synchronize()


def waits_and_launches(work: Callable[[], None]) -> dict[str, Any]:
    """Where the host waits for the GPU, and the kernels of a row with the time that they take (ms)."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    torch.cuda.set_sync_debug_mode("default")
    places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        work()
        synchronize()
    kernels = [event for event in seen.events() or () if str(event.device_type).endswith("CUDA")]
    spent: dict[str, float] = {}
    for event in kernels:
        spent[event.name[:60]] = spent.get(event.name[:60], 0.0) + event.time_range.elapsed_us() / 1e3
    longest = sorted(spent.items(), key=lambda item: -item[1])[:12]
    return {
        "waits": places, "kernels": len(kernels), "kernel_ms": round(sum(spent.values()), 2),
        "longest": {name: round(spent_ms, 2) for name, spent_ms in longest},
    }  # fmt: skip


# Graphs ---------------------------------------------------------------------------------------------------------------


def graph_questions(base: Path) -> list[Question]:
    """Rows of two lengths in 16 bit, one over NF4; the recording that fails comes last: it may leave CUDA broken."""
    rows = [(16, False), (50, False), (16, True)]
    made: list[Question] = [
        (f"graphs: {count} samples, NF4 {four_bits}", functools.partial(graph_row, base, count, four_bits))
        for count, four_bits in rows
    ]
    return [*made, ("graphs: a recording that fails", functools.partial(failed_recording, base))]


def graph_row(base: Path, count: int, load_in_4bit: bool = False) -> dict[str, Any]:
    """A row of so many samples as a graph."""
    model = loaded(base, checkpointing=False, load_in_4bit=load_in_4bit)
    return gpu_graphs.graph_row(model, sample_sets(count, model), times)


def failed_recording(base: Path) -> dict[str, Any]:
    """What is left after a recording that fails."""
    model = loaded(base, checkpointing=False)
    return gpu_graphs.failed_recording(model, sample_sets(16, model))


def sample_sets(count: int, model: Any) -> list[list[Example]]:
    """Samples of two steps, whose rows are of the same lengths."""
    return [persona_samples(count, model.config.vocab_size, seed) for seed in (1, 2)]


def bench(folder: Path, minutes: float) -> dict[str, Any]:
    """The matrix of benchmarks/run.py for so many minutes; goes on where an earlier call ended."""
    command = [
        sys.executable, str(HERE / "run.py"), "--name", "gpu-first", "--cuda", "--out", str(folder),
        "--minutes", f"{max(0.1, minutes):.1f}", "--cases", "persona",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = folder / "result.json"
    if not result.is_file():
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no result")
    entries = json.loads(result.read_text(encoding="utf-8"))["entries"]
    arms = {f"{e['base']} {e['dtype']}": {a["name"]: a.get("samples_per_second") for a in e["arms"]} for e in entries}
    return {"entries": arms, "exit_code": done.returncode}


if __name__ == "__main__":
    sys.exit(main())
