"""One arm of a benchmark, in a process of its own: `python -m fasttune.arms JOB.json RESULT.json` (bench.py starts it).

    engine                what trains                                                    batches
    fasttune              train.train, as `fasttune run` calls it                        fasttune's rows
    stock                 Unsloth's model and LoRA, trl's SFTTrainer                     padded
    stock-padding-free    the same, its fastest way on a card                            flat, variable-length attention
    plain                 transformers, peft, trl's SFTTrainer; no Unsloth is imported   padded

Without a card the plain arm has transformers' own Trainer with trl's collator: the loss of trl 1.15's SFTTrainer is a
Triton kernel there, which Unsloth replaces and nobody else does.

All of them train the same steps: the samples of step n are those of batches.epoch_batches, tokenized alike, with
the same supervised tokens. What differs is what the engine makes of them. Time is taken by hooks that every engine
passes (the first forward pass of a model, each step of an optimizer), so no engine's own clock is trusted.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from fasttune import files
from fasttune.data import batches
from fasttune.data.dataset import Dataset, load_dataset
from fasttune.data.tokenize import Example, tokenize_samples
from fasttune.planning import strategy
from fasttune.recipe.load import load_recipe, with_values
from fasttune.recipe.schema import Recipe
from fasttune.runs import history
from fasttune.training import device, packing
from fasttune.training import model as models

Engine = Literal["fasttune", "stock", "stock-padding-free", "plain", "limit"]
IGNORED = -100  # a label that the loss is not taken on
GIB = 1024**3
ROWS = {"cpu": 4096, "cuda": 16384}  # of the products that the machine's limit is measured with


@dataclass(frozen=True)
class Job:
    """What an arm is asked to do. `started` is time.monotonic() just before its process was started.

    `warmup_samples` are those of the first step where it is to be a short one (0: a whole step). `micro_batch` is how
    many samples trl's trainer takes at a time (0: the whole step). `without` names functions of model.py that make
    fasttune's model faster and that this arm does not call.
    """

    engine: Engine
    recipe: str
    overrides: tuple[str, ...]
    base: str
    steps: int
    started: float
    warmup_samples: int = 0
    micro_batch: int = 0
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What an arm did; lists have one entry a step, the warm-up included.

    `step_seconds` end with an optimizer step; the first one begins with the first forward pass, which is what
    `start_up_seconds` (since the process was started) end with. `computed_tokens` are those that went through the
    model: padding counts, a shared prefix counts once. `attention_pairs` are the pairs of a token and one it sees that
    the samples need. `memory` in GiB, at its peak until the last step's end; `precision` is the embeddings' type.
    """

    device: str
    unsloth: bool
    precision: str
    start_up_seconds: float
    step_seconds: list[float]
    losses: list[float]
    grad_norms: list[float]
    samples: list[int]
    tokens: list[int]
    supervised_tokens: list[int]
    computed_tokens: list[int]
    attention_pairs: list[int]
    memory: dict[str, float]


@dataclass
class Clock:
    """When the first forward pass began, in which type, when each optimizer step ended, and the memory until then."""

    began: float = math.nan
    precision: str = ""
    ends: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Wait for the first forward pass and for optimizer steps, whoever makes them."""
        from transformers import PreTrainedModel

        def first_forward(module: Any, _inputs: Any) -> None:
            if isinstance(module, PreTrainedModel):
                self.began = time.monotonic()
                self.precision = str(module.get_input_embeddings().weight.dtype).removeprefix("torch.")
                handle.remove()

        def step_ended(*_step: Any) -> None:
            if device.device_type() == "cuda":
                torch.cuda.synchronize()
            self.ends.append(time.monotonic())
            self.memory = peak_memory()

        handle = torch.nn.modules.module.register_module_forward_pre_hook(first_forward)
        register_optimizer_step_post_hook(step_ended)

    @property
    def step_seconds(self) -> list[float]:
        return [end - begin for begin, end in zip([self.began, *self.ends], self.ends, strict=False)]


def peak_memory() -> dict[str, float]:
    """GiB: of the card, reserved and allocated, or resident."""
    if device.device_type() == "cuda":
        allocated = torch.cuda.max_memory_allocated()
        return {"reserved_gib": device.used_memory() / GIB, "allocated_gib": allocated / GIB}
    return {"rss_gib": device.used_memory() / GIB}


# fasttune -----------------------------------------------------------------------------------------------------------


def fasttune(job: Job, wanted: Recipe, dataset: Dataset, clock: Clock) -> Measured:
    """The product's own path, from plan to trained adapter; figures from the history it writes."""
    from fasttune.training.train import train

    for name in job.without:
        setattr(models, name, nothing)
    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as root:
        plan = strategy.decide(wanted, dataset, Path(root), allow_overfit=True)
        clock.start()
        record = train(plan, Path(job.base), Path(root))
        lines = history.read_history(record.run)
    seen = [0, *(line["num_tokens"] for line in lines)]
    tokens = [after - before for before, after in itertools.pairwise(seen)]
    computed = [line["computed_tokens"] for line in lines]
    tokenizer = models.load_tokenizer(Path(job.base))
    examples = tokenize_samples(dataset.train, tokenizer, wanted.data, wanted.model.max_seq_length).examples
    return measured(
        job,
        clock,
        losses=[line["loss"] for line in lines],
        grad_norms=[line["grad_norm"] for line in lines],
        samples=[round(line["samples_per_second"] * line["step_seconds"]) for line in lines],
        tokens=tokens,
        supervised_tokens=[round(line["supervised_tokens_per_second"] * line["step_seconds"]) for line in lines],
        computed_tokens=computed,
        attention_pairs=[
            attention_pairs(examples, batch, shared=few < many)
            for batch, few, many in zip(step_samples(examples, wanted, job.steps), computed, tokens, strict=True)
        ],
    )


def nothing(*_arguments: Any) -> None:
    """Stands in for a function that an arm goes without."""


# trl ----------------------------------------------------------------------------------------------------------------


def rival(job: Job, wanted: Recipe, dataset: Dataset, clock: Clock) -> Measured:
    """trl's SFTTrainer as a user would write it, given tokens and labels, so that preparing data is no difference."""
    tokenizer = models.load_tokenizer(Path(job.base))
    examples = tokenize_samples(dataset.train, tokenizer, wanted.data, wanted.model.max_seq_length).examples
    net = plain_model(job, wanted) if job.engine == "plain" else stock_model(job, wanted)
    clock.start()
    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as folder:
        trainer, counts = rival_trainer(job, wanted, net, tokenizer, examples, folder)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return measured(
        job,
        clock,
        losses=[line["loss"] for line in lines],
        grad_norms=[line["grad_norm"] for line in lines],
        attention_pairs=[
            attention_pairs(examples, batch, shared=False) for batch in step_samples(examples, wanted, job.steps)
        ],
        **{name: [sum(part[name] for part in step) for step in counts] for name in counts[0][0]},
    )


def stock_model(job: Job, wanted: Recipe) -> Any:
    """Base and LoRA by Unsloth, with its own gradient checkpointing unless the recipe says false."""
    fast_language_model = models.import_unsloth()
    net, _tokenizer = fast_language_model.from_pretrained(
        model_name=job.base,
        max_seq_length=wanted.model.max_seq_length,
        dtype=device.compute_dtype(wanted.model),
        load_in_4bit=wanted.model.load_in_4bit,
        use_exact_model_name=True,
        local_files_only=True,
    )
    return fast_language_model.get_peft_model(
        net,
        r=wanted.lora.r,
        lora_alpha=wanted.lora.alpha,
        lora_dropout=wanted.lora.dropout,
        target_modules=list(wanted.lora.target_modules),
        bias="none",
        use_gradient_checkpointing="unsloth" if wanted.train.gradient_checkpointing else False,
        random_state=wanted.train.seed,
    )


def plain_model(job: Job, wanted: Recipe) -> Any:
    """Base by transformers and LoRA by peft; the same NF4 as Unsloth's where 4 bits are asked for."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    dtype, four_bit = device.compute_dtype(wanted.model), None
    if wanted.model.load_in_4bit:
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    net = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=dtype, quantization_config=four_bit, device_map={"": device.device_type()}
    )
    config = LoraConfig(
        r=wanted.lora.r,
        lora_alpha=wanted.lora.alpha,
        lora_dropout=wanted.lora.dropout,
        target_modules=list(wanted.lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    set_seed(wanted.train.seed)  # the same first weights as Unsloth draws
    return get_peft_model(net, config)


def rival_trainer(
    job: Job, wanted: Recipe, net: Any, tokenizer: Any, examples: Sequence[Example], folder: str
) -> tuple[Any, list[list[dict[str, int]]]]:
    """A trainer over fasttune's steps, and a list that gets what each micro-batch of each step holds."""
    import datasets
    from transformers import Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batches = step_samples(examples, wanted, job.steps)
    rows = [labelled(examples[i]) for batch in batches for i in batch]
    parts = accumulated(job, wanted)
    counts: list[list[dict[str, int]]] = [[] for _batch in batches]
    by_trl = job.engine != "plain" or device.device_type() == "cuda"

    class Fed(SFTTrainer if by_trl else Trainer):  # type: ignore[misc]
        """Takes its batches in order; they may differ in size at an epoch's end, which no sampler of trl's does."""

        def get_train_dataloader(self) -> Any:
            sizes = [size for batch in batches for size in even(len(batch), parts)]
            ends = [0, *itertools.accumulate(sizes)]
            indices = [list(range(begin, end)) for begin, end in itertools.pairwise(ends)]
            return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=indices, collate_fn=self.counted)

        def counted(self, items: list[dict[str, Any]]) -> Any:
            batch = self.data_collator(items)
            next(step for step in counts if len(step) < parts).append(count(batch, len(items)))
            return batch

    trainer = Fed(
        model=net,
        args=SFTConfig(**sft_arguments(job, wanted, folder))
        if by_trl
        else TrainingArguments(**arguments(job, wanted, folder)),
        data_collator=None if by_trl else DataCollatorForLanguageModeling(tokenizer.pad_token_id),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return trainer, counts


def sft_arguments(job: Job, wanted: Recipe, folder: str) -> dict[str, Any]:
    """What SFTConfig has besides; gradient checkpointing is left to its defaults and to Unsloth, unless it is off."""
    common = arguments(job, wanted, folder)
    del common["gradient_checkpointing_kwargs"]
    if common["gradient_checkpointing"]:
        del common["gradient_checkpointing"]
    flat = job.engine == "stock-padding-free"
    # render.py has cut or refused what is too long, and trl takes no length beside padding_free
    return common | {
        "max_length": None if flat else wanted.model.max_seq_length,
        "packing": False,
        "padding_free": flat,
    }


def arguments(job: Job, wanted: Recipe, folder: str) -> dict[str, Any]:
    """The recipe in TrainingArguments' words, with gradient checkpointing, as trl, unless the recipe says false."""
    settings = wanted.train
    return {
        "output_dir": folder,
        "max_steps": job.steps,
        "per_device_train_batch_size": settings.batch_size // accumulated(job, wanted),
        "gradient_accumulation_steps": accumulated(job, wanted),
        "gradient_checkpointing": bool(settings.gradient_checkpointing),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": settings.optim,
        "seed": settings.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.device_type() == "cpu",
        "dataloader_pin_memory": False,
        "bf16": False,  # trl's default is true, whatever the model's type
        **device.precision(wanted.model),
    }


def accumulated(job: Job, wanted: Recipe) -> int:
    """Micro-batches of a step."""
    return math.ceil(wanted.train.batch_size / job.micro_batch) if job.micro_batch else 1


def even(samples: int, parts: int) -> list[int]:
    """So many samples in parts whose sizes differ by at most one; none may be empty."""
    if samples < parts:
        raise ValueError(f"a step of {samples} samples can't be trained in {parts} micro-batches")
    return [samples // parts + (part < samples % parts) for part in range(parts)]


def step_samples(examples: Sequence[Example], wanted: Recipe, steps: int) -> list[tuple[int, ...]]:
    """The samples of each step, over as many epochs as the steps take: those that fasttune trains on."""
    size, seed = wanted.train.batch_size, wanted.train.seed
    per_epoch = batches.steps_per_epoch(len(examples), size)
    return [
        batches.epoch_batches(len(examples), size, seed, step // per_epoch)[step % per_epoch] for step in range(steps)
    ]


def attention_pairs(examples: Sequence[Example], samples: Sequence[int], *, shared: bool) -> int:
    """Pairs of a token and one that it sees (itself too) in a step's samples, those of a shared prefix counted once."""
    whole = sum(len(examples[i].tokens) for i in samples)
    (row,) = packing.plan_step(examples, samples, whole, shared_prefix=shared).rows
    return sum(group_pairs(group.prefix, [len(examples[i].tokens) for i in group.members]) for group in row.groups)


def group_pairs(prefix: int, lengths: Sequence[int]) -> int:
    """Causal pairs inside a prefix, then for each sample its other tokens with the prefix and among themselves."""
    return prefix * (prefix + 1) // 2 + sum((n * (n + 1) - prefix * (prefix + 1)) // 2 for n in lengths)


def labelled(example: Example) -> dict[str, list[int]]:
    """A sample as trl takes it: its tokens, and labels that are -100 wherever nothing is learned."""
    labels = [IGNORED] * len(example.tokens)
    for start, end in example.supervised:
        labels[start:end] = example.tokens[start:end]
    return {"input_ids": list(example.tokens), "labels": labels}


def count(batch: Any, samples: int) -> dict[str, int]:
    """What a collated batch holds; a flat one has no attention mask and no padding."""
    computed = batch["input_ids"].numel()
    return {
        "samples": samples,
        "tokens": int(batch["attention_mask"].sum()) if "attention_mask" in batch else computed,
        "supervised_tokens": int((batch["labels"] != IGNORED).sum()),
        "computed_tokens": computed,
    }


# The process --------------------------------------------------------------------------------------------------------


def measured(job: Job, clock: Clock, **figures: Any) -> Measured:
    """The result of an arm that came to its end; its clock must have seen every step."""
    assert len(clock.ends) == job.steps == len(figures["losses"]), (len(clock.ends), job.steps, figures)
    return Measured(
        device=device.device_type(),
        unsloth="unsloth" in sys.modules,
        precision=clock.precision,
        start_up_seconds=clock.began - job.started,
        step_seconds=clock.step_seconds,
        memory=clock.memory,
        **figures,
    )


def matmul_limit(base: Path, dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of products of the base's layers' shapes, by each of the ways torch has for them; the best of three.

    On processors that are not Intel's, F.linear's float32 (MKL) can be half as fast as oneDNN's.
    """
    on, found, shapes = device.device_type(), {}, layer_shapes(base)
    for inputs, outputs in (shapes[name] for name in ("o_proj", "up_proj", "down_proj")):
        rows = torch.randn(ROWS[on], inputs, device=on).to(dtype)
        weight = torch.randn(outputs, inputs, device=on).to(dtype)
        for name, product in ways(on).items():
            best = min(seconds(product, rows, weight) for _turn in range(3))
            found[f"{name} {inputs} to {outputs}"] = 2 * ROWS[on] * inputs * outputs / best / 1e9
    return found


def ways(device: str) -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """How torch multiplies rows [T, K] by a weight [N, K]."""
    known: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"F.linear": torch.nn.functional.linear}
    if device == "cpu" and torch.backends.mkldnn.is_available():
        known["oneDNN"] = lambda x, weight: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return known


def layer_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer of a decoder layer."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, feed, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    keys = size * config.get("num_key_value_heads", heads)
    return {
        "q_proj": (hidden, heads * size),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (heads * size, hidden),
        "gate_proj": (hidden, feed),
        "up_proj": (hidden, feed),
        "down_proj": (feed, hidden),
    }


def seconds(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *operands: torch.Tensor) -> float:
    """How long one call takes, the device's work included."""
    begun = time.monotonic()
    product(*operands)
    if device.device_type() == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - begun


def read_recipe(job: Job) -> tuple[Recipe, Dataset]:
    """The recipe with a benchmark's fixed values, and its training samples; nothing is evaluated."""
    wanted = with_values(load_recipe(job.recipe, job.overrides), fixed_values(job.steps), "bench")
    return wanted, replace(load_dataset(wanted.data, wanted.train.seed), held_out=())


def shorten_warm_up(samples: int) -> None:
    """Make the first step of this process one of so many samples; every engine takes its steps from epoch_batches.

    Where a step of stock takes minutes, a few samples do what a warm-up is for: imports, memory, kernels.
    """
    whole = batches.epoch_batches

    def shortened(count: int, size: int, seed: int, epoch: int) -> tuple[tuple[int, ...], ...]:
        first, *others = whole(count, size, seed, epoch)
        return (first if epoch else first[:samples], *others)

    batches.epoch_batches = shortened  # type: ignore[assignment]


def fixed_values(steps: int) -> dict[str, Any]:
    """What every arm trains with, whatever the recipe says: so many whole steps and nothing beside them.

    The learning rate is constant, so that the first step moves the weights and the later losses tell whether it did so
    in the same way.
    """
    return {
        "strategy": "fresh",
        "train.max_steps": steps,
        "train.lr_scheduler_type": "constant",
        "train.warmup_steps": 0.0,
        "train.logging_steps": 1,
        "train.save_steps": 1_000_000_000,
        "train.eval_steps": 0,
        "train.early_stopping_patience": 0,
        "train.until.loss": None,
        "train.until.token_accuracy": None,
        "train.report_to": ["none"],
        "export.gguf": [],
        "probe.questions": [],
    }


def main(arguments: Sequence[str]) -> None:
    """Reads a job, does it, writes what was measured; `limit` as engine measures the machine instead."""
    document = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    job = Job(**document | {name: tuple(document[name]) for name in ("overrides", "without")})
    wanted, dataset = read_recipe(job)
    if job.engine == "limit":
        result: dict[str, Any] = matmul_limit(Path(job.base), device.compute_dtype(wanted.model))
    else:
        if job.warmup_samples:
            shorten_warm_up(job.warmup_samples)
        arm = fasttune if job.engine == "fasttune" else rival
        result = asdict(arm(job, wanted, dataset, Clock()))
    files.write_json(Path(arguments[1]), result)


if __name__ == "__main__":
    main(sys.argv[1:])
