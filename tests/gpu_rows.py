"""The child process of test_gpu_rows.py: rows through fasttune's own GPU path, against plain transformers and PEFT.

python gpu_rows.py FOLDER       writes FOLDER/found.json: for each way of computing the step its relative errors of
                                 loss and gradient, and what was called; for a layer the launches by their kind; and
                                 FOLDER/memory.json, of gpu_row_memory.py
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gpu_model  # first: it sets what Unsloth reads

# isort: split
import gpu_attention
import gpu_four_bits
import gpu_row_memory
import gpu_shared_base
import gpu_stand_ins
import gpu_triton
import graph_stand_in
import host_reads
import torch

from fasttune.data.tokenize import Example
from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import (
    attention,
    attention_kernels,
    cuda_graphs,
    engine,
    gradient_checkpointing,
    hub,
    loss_scale,
    packing,
    prefix_check,
)  # fmt: skip
from fasttune.training import model as models

FOLDER = Path(sys.argv[1])
LORA = LoraRecipe(
    r=8, alpha=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
)


def write_base(folder: Path, dtype: torch.dtype, layers: int = 2, hidden: int = 64) -> Path:
    """A Qwen2 of few layers with random weights and with biases that are not zero, and the built-in tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config.from_pretrained(
        hub.TINY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["full_attention"] * layers,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    base.to(dtype).save_pretrained(folder)
    for file in hub.TINY.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    return folder


def examples() -> list[Example]:
    """Five samples on a prefix of 40 tokens, two on another, two that share nothing."""
    chance = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(5, 5000, (count,), generator=chance).tolist()

    made: list[Example] = []
    for prefix, suffixes in ((tokens(40), (11, 23, 5, 40, 17)), (tokens(20), (9, 14)), ([], (30, 9))):
        for count in suffixes:
            whole = (*prefix, *tokens(count))
            made.append(Example(f"x:{len(made)}", whole, ((len(prefix) + 2, len(whole)),)))
    return made


def random_lora(names_and_shapes: list[tuple[str, torch.Size]]) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=chance) * (0.02 if "lora_A" in name else 0.05)
            for name, shape in names_and_shapes}  # fmt: skip


def set_lora(model: Any) -> None:
    trained = {name: p for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, value in random_lora([(name, p.shape) for name, p in trained.items()]).items():
            trained[name].copy_(value)


def plain_peft(base: Path) -> Any:
    """The base with the same LoRA weights by plain transformers and PEFT, in float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=8, lora_alpha=16, bias="none", task_type="CAUSAL_LM", target_modules=list(LORA.target_modules)
    )
    model: Any = get_peft_model(plain, config)
    set_lora(model)
    return model


Reference = tuple[float, dict[str, torch.Tensor]]


def reference(model: Any) -> Reference:
    """Mean loss and gradients of the step by a plain model, one sample a forward pass."""
    step, total = examples(), 0.0
    supervised = sum(end - start for example in step for start, end in example.supervised)
    model.zero_grad()
    for example in step:
        (start, _end), ids = example.supervised[0], torch.tensor([example.tokens])
        logits = model(input_ids=ids).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="sum")
        (losses / supervised).backward()
        total += losses.item() / supervised
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def write_memory() -> None:
    (FOLDER / "memory.json").write_text(json.dumps(gpu_row_memory.measure(hub.TINY, FOLDER / "memory")))


def in_fork(measure: Callable[[], None]) -> None:
    """Measure in a fork of this process: the stand-ins and models of the other stages are left out of it, and importing
    Unsloth once more would take longer than measuring."""
    child = multiprocessing.get_context("fork").Process(target=measure)
    child.start()
    child.join()
    assert child.exitcode == 0, f"{measure.__name__} failed"


def prompt_logits(model: Any) -> list[tuple[str, torch.Tensor]]:
    """The logits of a prompt by a model, by the same one with larger LoRA weights, and without its adapter."""
    prompt, found = torch.tensor([examples()[0].tokens]), []
    unsloth = hasattr(model, "adapter_copies")
    for state in ("fresh", "changed", "base alone"):
        with (
            models.inference(model) if unsloth else contextlib.nullcontext(),
            torch.inference_mode() if unsloth else torch.no_grad(),
            model.disable_adapter() if state == "base alone" else contextlib.nullcontext(),
        ):
            found.append((state, model(input_ids=prompt).logits.double()))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.mul_(-40 if "lora_B" in name else 1)
    return found


PLAIN = plain_peft(write_base(FOLDER / "base", torch.float32))  # before Unsloth, which patches transformers
EXPECTED = reference(PLAIN)
HOW_ANSWERED = {
    "float32": (FOLDER / "base", "float32"),
    "bfloat16": (write_base(FOLDER / "answers", torch.bfloat16), "bfloat16"),
}
EXPECTED_ANSWERS = {
    name: [logits for _state, logits in prompt_logits(plain_peft(base))] for name, (base, _) in HOW_ANSWERED.items()
}
NF4_WEIGHTS = gpu_four_bits.round_to_nf4(PLAIN)
EXPECTED_NF4 = reference(PLAIN)
gpu_model.import_unsloth()
in_fork(write_memory)
gpu_stand_ins.install()
FOUND: dict[str, Any] = {"kernels": gpu_triton.errors()}  # before they are stood in for
OPERATORS = gpu_attention.Operators()


def use_own_kernels() -> None:
    """Kernels and operators that count nothing: those of a count hide from a recording what they do."""
    gpu_stand_ins.use_kernels(lambda _name, kernel: kernel)
    attention_kernels.aten = OPERATORS


def load(base: Path, *, dtype: Any = "float32", load_in_4bit: bool = False, **how: Any) -> Any:
    recipe = ModelRecipe(base=str(base), max_seq_length=2048, dtype=dtype, load_in_4bit=load_in_4bit)
    model = models.add_lora(models.load_base(base, recipe), LORA, 0, **how)
    set_lora(model)
    return model.train()


def compute(
    name: str, model: Any, kernel: str, budget: int, *, shares: bool = True, expected: Reference = EXPECTED
) -> None:
    """The step in rows of at most `budget` tokens by one attention kernel: its errors, and what was called."""
    expected_loss, gradients = expected
    attention_kernels.kernel_for = lambda query: getattr(attention_kernels, kernel)
    OPERATORS.calls.clear()
    models.drop_gradients(model)
    step, total = packing.plan_step(examples(), range(9), budget, shared_prefix=shares), 0.0
    for row in step.rows:
        batch = engine.collate(row, examples())
        loss, _hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
        (loss / step.supervised).backward()
        models.collect_gradients(model)
        total += loss.item() / step.supervised
    named = dict(model.named_parameters())
    apart = sum((named[n].grad.double() - g.double()).square().sum().item() for n, g in gradients.items())
    whole = sum(g.double().square().sum().item() for g in gradients.values())
    FOUND[name] = {
        "rows": len(step.rows), "loss": abs(total / expected_loss - 1), "gradient": (apart / whole) ** 0.5,
        "calls": dict(OPERATORS.calls), "float32": all(named[n].grad.dtype == torch.float32 for n in gradients),
    }  # fmt: skip


def exactness() -> None:
    model = load(FOLDER / "base", checkpointing=False)
    compute("shared", model, "FLASH", 4096)
    compute("shared, efficient", model, "EFFICIENT", 4096)
    compute("cut", model, "FLASH", 90)
    compute("packed", model, "FLASH", 4096, shares=False)
    compute("single", model, "FLASH", 0)
    with model.disable_adapter(), torch.no_grad():
        FOUND["base alone"] = {"changed": bool((hidden(model) - with_adapter(model)).abs().max() > 1e-3)}
    gradient_checkpointing.enable(model)  # what the trainer does where memory ran out
    compute("after out of memory", model, "FLASH", 4096)
    compute("after out of memory, packed", model, "FLASH", 4096, shares=False)
    by = torch.utils.checkpoint.checkpoint.__name__
    offloading = load(FOLDER / "base", checkpointing=True, offload=True)
    FOUND["offloaded by"] = [by, torch.utils.checkpoint.checkpoint.__name__]
    compute("offloading", offloading, "FLASH", 4096)
    compute("offloading, single", offloading, "FLASH", 0)


def four_bits() -> None:
    """QLoRA: the ways of computing a step over NF4 weights, against plain PEFT over what these stand for."""
    gpu_four_bits.use_four_bits()
    model = load(FOLDER / "base", load_in_4bit=True, checkpointing=False)
    compute("NF4, shared", model, "FLASH", 4096, expected=EXPECTED_NF4)
    launches = dict(gpu_four_bits.LAUNCHES)
    compute("NF4, packed", model, "FLASH", 4096, shares=False, expected=EXPECTED_NF4)
    compute("NF4, single", model, "FLASH", 0, expected=EXPECTED_NF4)
    gradient_checkpointing.enable(model)
    compute("NF4, after out of memory", model, "FLASH", 4096, expected=EXPECTED_NF4)
    FOUND["NF4"] = {
        "linears": gpu_four_bits.same_weights(model, NF4_WEIGHTS), "launches": launches,
        "repeated": gpu_four_bits.LAUNCHES["scratch, repeated"], "rounded": abs(EXPECTED_NF4[0] / EXPECTED[0] - 1),
    }  # fmt: skip


def hidden(model: Any) -> torch.Tensor:
    (row,) = packing.plan_step(examples(), range(9), 4096).rows
    return models.hidden_states(model, engine.collate(row, examples()))


def answers() -> None:
    """How Unsloth reads the prompt of an answer: in a model that has computed no row, and after its weights changed."""
    attention_kernels.kernel_for = lambda query: attention_kernels.FLASH
    for name, (base, dtype) in HOW_ANSWERED.items():
        model = load(base, dtype=dtype, checkpointing=False)
        FOUND[f"answers: {name}"] = {
            state: float((made - expected).norm() / expected.norm())
            for (state, made), expected in zip(prompt_logits(model), EXPECTED_ANSWERS[name], strict=True)
        }
        hidden(model).float().square().mean().backward()  # what was made in inference mode could not be trained with


def checked(model: Any, examples: list[Example]) -> dict[str, list[float]]:
    """What the check before the first step finds: with the layout as it is, and with suffixes that see one token of
    another sample in place of the first one of their prefix."""
    dtype, layouts = models.lm_head_weight(model).dtype, cast(Any, attention.Layout)
    right = layouts.keys

    def row_loss(examples: list[Example], row: packing.Row) -> Any:
        batch = engine.collate(row, examples)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)

    recipe = SimpleNamespace(model=ModelRecipe(base="", dtype="float32" if dtype == torch.float32 else "bfloat16"))
    trainer: Any = SimpleNamespace(
        model=model, examples=examples, row_loss=row_loss, plan=SimpleNamespace(recipe=recipe)
    )
    found = {}
    for name, pair in (("shared", prefix_check.shared_pair(examples)), ("packed", prefix_check.packed_pair(examples))):
        assert pair is not None
        for keys in (right, property(lambda layout: slice(1, layout.prefix_tokens + 1))):
            layouts.keys = keys
            difference = prefix_check.measure(trainer, pair)
            assert difference is not None
            found[name if keys is right else f"{name}, wrong"] = [difference.loss, difference.gradient]
    layouts.keys = right
    return found


def float16() -> None:
    """A GPU without bfloat16: what Unsloth loads there, and a row's gradient under the first loss scale."""
    before = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda *_device: (7, 5)
    attention_kernels.kernel_for = lambda query: attention_kernels.EFFICIENT
    model = load(write_base(FOLDER / "float16", torch.float16), dtype="auto", checkpointing=False)
    torch.cuda.get_device_capability = before
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    step = packing.plan_step(examples(), range(9), 4096)
    for row in step.rows:
        batch = engine.collate(row, examples())
        with torch.autocast("cpu", torch.float16):
            loss, _hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
        (loss / step.supervised * loss_scale.FIRST_SCALE).backward()
        models.collect_gradients(model)
    apart = sum(
        (weights[name].grad / loss_scale.FIRST_SCALE - gradient).square().sum().item()
        for name, gradient in EXPECTED[1].items()
    )
    whole = sum(gradient.square().sum().item() for gradient in EXPECTED[1].values())
    FOUND["float16"] = {
        "base": str(models.lm_head_weight(model).dtype), "copies": str(model.adapter_copies.dtype),
        "trained": sorted({str(weight.dtype) for weight in weights.values()}), "gradient": (apart / whole) ** 0.5,
    }  # fmt: skip


def prefix_checks() -> None:
    attention_kernels.kernel_for = lambda query: attention_kernels.FLASH
    FOUND["check: float32"] = checked(load(FOLDER / "base", checkpointing=False), examples())
    FOUND["check: bfloat16"] = checked(half_precision(2), examples())
    FOUND["check: NF4"] = checked(load(FOLDER / "base", load_in_4bit=True, checkpointing=False), examples())


def first_questions() -> None:
    """The steps of benchmarks/gpu_first.py in 16 bit, where gradients lie in the copies until they are collected."""
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu_first

    attention_kernels.kernel_for = lambda query: attention_kernels.FLASH
    model = half_precision(2)
    samples = gpu_first.persona_samples(4, 5000)
    loss, gradients = gpu_first.step(model, samples, 0, False)
    shared_loss, shared = gpu_first.step(model, samples, 8192, True)
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    FOUND["first questions"] = {
        "loss": abs(shared_loss / loss - 1), "gradient": gpu_first.relative_error(shared, gradients),
        "values": len(gradients), "weights": weights,
    }  # fmt: skip


def shared_base() -> None:
    """Trials of a sweep on one base, in bfloat16."""
    attention_kernels.kernel_for = lambda query: attention_kernels.FLASH

    def step(model: Any) -> list[torch.Tensor]:
        models.drop_gradients(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = hidden(model).float().square().mean()
        loss.backward()
        models.collect_gradients(model)
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    def answers(model: Any) -> list[torch.Tensor]:
        prompt = torch.tensor([examples()[0].tokens])
        with torch.no_grad(), models.inference(model):  # the first token alone: the next one is computed by kernels
            made = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        return [made.logits[0], *(logits[:, -1] for _state, logits in prompt_logits(model))]

    FOUND["shared base"] = gpu_shared_base.measure(FOLDER / "answers", set_lora, step, answers)


def with_adapter(model: Any) -> torch.Tensor:
    model.base_model.enable_adapter_layers()
    try:
        return hidden(model)
    finally:
        model.base_model.disable_adapter_layers()


# What launches nothing on a GPU: views and allocations.
FREE = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select", "squeeze", "unsqueeze",
    "as_strided", "detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "split",
    "split_with_sizes", "unbind", "lift_fresh", "unfold", "_reshape_alias", "is_pinned", "_pin_memory", "unsafe_split",
    "_has_compatible_shallow_copy_type", "result_type", "is_same_size",
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "repeat_interleave", "unique_consecutive"}
BACKWARD_LAUNCHES = 3  # of a flash kernel: row sums of output times gradient, the kernel, the conversion of grad_query


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts every operator that writes, and whatever waits for the GPU: operators, and reading a tensor's values. All
    tensors lie on a CPU here; of those that do on a GPU too, the lengths of rows, a row reads none, so any read counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Any:
        self.reads = host_reads.noticed(lambda name: self.waits.update([name]))
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self.reads.__exit__(*failure)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[-1]
        self.launches[name] += name not in FREE
        self.waits[name] += name in WAITS
        return function(*args, **(kwargs or {}))

    def as_one(self, name: str, function: Callable[..., Any], launches: int = 1) -> Callable[..., Any]:
        """A stand-in that counts as so many launches, whatever it does."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.launches[name] += launches
            with torch.utils._python_dispatch._disable_current_modes():
                return function(*args, **kwargs)

        return call


class Counted:
    """torch's attention operators as launches."""

    def __init__(self, count: Count) -> None:
        self.count = count

    def __getattr__(self, name: str) -> Any:
        return self.count.as_one(name, getattr(OPERATORS, name), BACKWARD_LAUNCHES if "backward" in name else 1)


@functools.cache
def half_precision(layers: int) -> Any:
    """A model in bfloat16, loaded once for all that is counted and measured on it."""
    return load(write_base(FOLDER / f"{layers}", torch.bfloat16, layers), dtype="bfloat16", checkpointing=False)


def launches(layers: int) -> dict[str, Counter[str]]:
    """What a row of one group launches in the second step, by part: the first one warms caches."""
    model = half_precision(layers)
    attention_kernels.kernel_for = lambda query: attention_kernels.FLASH
    (row,) = packing.plan_step(examples()[:5], range(5), 4096).rows
    batch, found = engine.collate(row, examples()), {}
    for _turn in range(2):
        count = Count()
        gpu_stand_ins.use_kernels(count.as_one)
        attention_kernels.aten = Counted(count)
        models.drop_gradients(model)
        with count:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                states = models.hidden_states(model, batch)
            found["forward"] = Counter(count.launches)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, _hits = engine.loss(states, models.lm_head_weight(model), batch)
            found["loss"] = count.launches - found["forward"]
            before = Counter(count.launches)
            (loss / 80).backward()
            found["backward"] = count.launches - before
            before = Counter(count.launches)
            models.collect_gradients(model)
            found["collect"] = count.launches - before
        found["waits"] = +count.waits
    return found


def waits_of(samples: range, budget: int, shares: bool) -> Counter[str]:
    """What rows of some samples wait for, once caches are warm."""
    model, found = half_precision(2), Counter[str]()
    for row in packing.plan_step(examples(), samples, budget, shared_prefix=shares).rows:
        batch = engine.collate(row, examples())
        for _turn in range(2):
            count = Count()
            gpu_stand_ins.use_kernels(count.as_one)
            attention_kernels.aten = Counted(count)
            with count, torch.autocast("cpu", dtype=torch.bfloat16):
                loss, _hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
            with count:
                loss.backward()
                models.collect_gradients(model)
        found += count.waits
    return found


def count_launches() -> None:
    two, three = launches(2), launches(3)
    for part in two:
        layer = three[part] - two[part]
        FOUND[f"launches of {part}"] = {
            "layer": layer.total(), "beside": two[part].total() - 2 * layer.total(), "kinds": dict(layer.most_common()),
        }  # fmt: skip
    FOUND["waits"] = {
        "several prefixes": waits_of(range(9), 4096, True), "cut": waits_of(range(9), 90, True),
        "packed": waits_of(range(9), 4096, False), "single": waits_of(range(1), 0, False),
    }  # fmt: skip
    use_own_kernels()


def update() -> None:
    """After a step of the optimizer the copies are those of the new weights, and a second row adds its gradient."""
    model = half_precision(2)
    models.drop_gradients(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    broken = model.adapter_copies.copies[0].register_hook(lambda _gradient: 1 / 0)  # the last one of a backward pass
    with torch.autocast("cpu", dtype=torch.bfloat16), contextlib.suppress(ZeroDivisionError):
        hidden(model).square().mean().backward()
    broken.remove()
    begun = sum(copy.grad is not None for copy in model.adapter_copies.copies)
    models.drop_gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden(model).square().mean().backward()
    models.collect_gradients(model)
    once = [p.grad.clone() for p in weights if p.grad is not None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden(model).square().mean().backward()
    models.collect_gradients(model)
    twice = [p.grad for p in weights if p.grad is not None]
    torch.optim.AdamW(weights, lr=1e-2, fused=True).step()
    hidden(model)
    copies = model.adapter_copies
    FOUND["update"] = {
        "begun": begun, "weights": len(weights), "with a gradient": len(once),
        "twice": all(torch.equal(2 * a, b) for a, b in zip(once, twice, strict=True)),
        "fresh": all(torch.equal(copy, linear.weight.to(copy.dtype))
                     for copy, linear in zip(copies.copies, copies.linears, strict=True)),
        "left": sum(copy.grad is not None for copy in copies.copies),
    }  # fmt: skip


class Recorded:
    """torch's attention operators, each one call of a recording."""

    def __getattr__(self, name: str) -> Any:
        return graph_stand_in.as_one(getattr(OPERATORS, name))


def like_them() -> list[Example]:
    """Other samples of about the same lengths: their row falls into the same bucket, and its segments lie elsewhere."""
    chance, made = torch.Generator().manual_seed(5), list[Example]()
    prefixes = {n: torch.randint(5, 5000, (n,), generator=chance).tolist() for n in (39, 21, 0)}
    for prefix, suffixes in ((39, (13, 21, 6, 40, 17)), (21, (8, 14)), (0, (27, 12))):
        for count in suffixes:
            whole = (*prefixes[prefix], *torch.randint(5, 5000, (count,), generator=chance).tolist())
            made.append(Example(f"y:{len(made)}", whole, ((prefix + 2, len(whole)),)))
    return made


def replayed(base: Path, kernel: str, dtype: torch.dtype, load_in_4bit: bool = False) -> dict[str, Any]:
    """Rows as CUDA graphs: how far a replayed row, and one after the weights were changed, are from the row itself."""
    name = str(dtype).removeprefix("torch.")
    model: Any = load(base, dtype=name, load_in_4bit=load_in_4bit, checkpointing=False)
    attention_kernels.kernel_for, attention_kernels.aten = lambda query: getattr(attention_kernels, kernel), Recorded()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def autocast(_handler: Any = None) -> Any:
        return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)

    def batch_loss(batch: engine.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast():
            return engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)

    trainer: Any = SimpleNamespace(
        model=model, trained_parameters=weights, batch_loss=batch_loss, examples=like_them(), gradient_checkpointing=False,
        plan=SimpleNamespace(recipe=SimpleNamespace(train=SimpleNamespace(cuda_graphs=True), lora=LORA)),
        accelerator=SimpleNamespace(autocast=autocast, backward=lambda loss: loss.backward()),
        args=SimpleNamespace(device=torch.device("cpu")), step_watch=SimpleNamespace(has_spoken=False),
        is_rank_zero=False,
    )  # fmt: skip

    def step(train_row: Callable[..., Any]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        (row,) = packing.plan_step(trainer.examples, range(9), 4096).rows
        models.drop_gradients(model)
        loss, _hits = train_row(row, 200)
        return loss, [weight.grad.clone() for weight in weights if weight.grad is not None]

    def eagerly(row: packing.Row, supervised: int) -> Any:
        return cuda_graphs.compute_eagerly(trainer, engine.collate(row, trainer.examples), supervised)

    differences = []
    with graph_stand_in.cuda_graphs_here() as made:
        graphs = cuda_graphs.RowGraphs(trainer)
        for number in range(1, 8):  # the first two make no graph, the next two and the sixth are compared
            if number == 5:
                trainer.examples = examples()
            if number == 7:
                torch.optim.SGD(weights, lr=1.0).step()
            found = step(graphs.train_row)
            graphs.end_step()
            if number in (5, 7):
                differences.append(asdict(prefix_check.relative_difference(found, step(eagerly))))
    return {"state": graphs.state, "rows": made.replays, "graphs": len(made.made), "differences": differences}


def graphs() -> None:
    half = write_base(FOLDER / "graphs", torch.bfloat16, 2)
    for name, base, kernel, dtype in (
        ("flash", FOLDER / "base", "FLASH", torch.float32), ("efficient", FOLDER / "base", "EFFICIENT", torch.float32),
        ("bfloat16", half, "FLASH", torch.bfloat16),
    ):  # fmt: skip
        FOUND[f"graphs: {name}"] = replayed(base, kernel, dtype)
    FOUND["graphs: NF4"] = replayed(FOLDER / "base", "FLASH", torch.float32, load_in_4bit=True)


use_own_kernels()
for stage in (
    exactness, four_bits, count_launches, update, answers, float16, prefix_checks, first_questions, shared_base, graphs
):  # fmt: skip
    stage()
    (FOLDER / "found.json").write_text(json.dumps(FOUND))
