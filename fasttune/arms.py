"""One arm of a benchmark, in a process of its own: `python -m fasttune.arms JOB.json RESULT.json` (bench.py starts it).

    engine                what trains                                                    batches
    fasttune              train.train, as `fasttune run` calls it                        fasttune's rows
    stock                 Unsloth's model and LoRA, trl's SFTTrainer                     padded
    stock-padding-free    the same, its fastest way on a card                            flat, variable-length attention
    plain                 transformers, peft, trl's SFTTrainer; no Unsloth is imported   padded

Without a card the plain arm has transformers' own Trainer with trl's collator: the loss of trl 1.15's SFTTrainer is a
Triton kernel there, which Unsloth replaces and nobody else does.

All of them train the same steps: the samples of step n are those of packing.epoch_batches, rendered by render.py, with
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from fasttune import data, packing, recipe, runs, strategy
from fasttune import model as models
from fasttune.recipe import Recipe
from fasttune.render import Example, render_all

Engine = Literal["fasttune", "stock", "stock-padding-free", "plain", "limit"]
IGNORED = -100  # a label that the loss is not taken on
GIB = 1024**3
SQUARE = {"cpu": 4096, "cuda": 8192}  # rows and columns of the matrices that the limit is measured with


@dataclass(frozen=True)
class Job:
    """What an arm is asked to do. `started` is time.monotonic() just before its process was started."""

    engine: Engine
    recipe: str
    overrides: tuple[str, ...]
    base: str
    steps: int
    started: float


@dataclass(frozen=True)
class Measured:
    """What an arm did; lists have one entry a step, the warm-up included.

    `step_seconds` end with an optimizer step; the first one begins with the first forward pass, which is what
    `start_up_seconds` (since the process was started) end with. `computed_tokens` are those that went through the
    model: padding counts, a shared prefix counts once. `memory` in GiB, at its peak until the last step's end.
    """

    device: str
    unsloth: bool
    start_up_seconds: float
    step_seconds: list[float]
    losses: list[float]
    grad_norms: list[float]
    samples: list[int]
    tokens: list[int]
    supervised_tokens: list[int]
    computed_tokens: list[int]
    memory: dict[str, float]


@dataclass
class Clock:
    """When the first forward pass began and each optimizer step ended, and the memory until then."""

    began: float = math.nan
    ends: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Wait for the first forward pass and for optimizer steps, whoever makes them."""
        from transformers import PreTrainedModel

        def first_forward(module: Any, _inputs: Any) -> None:
            if isinstance(module, PreTrainedModel):
                self.began = time.monotonic()
                handle.remove()

        def step_ended(*_step: Any) -> None:
            if models.device() == "cuda":
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
    if models.device() == "cuda":
        allocated = torch.cuda.max_memory_allocated()
        return {"reserved_gib": models.used_memory() / GIB, "allocated_gib": allocated / GIB}
    return {"rss_gib": models.used_memory() / GIB}


# fasttune -----------------------------------------------------------------------------------------------------------


def fasttune(job: Job, wanted: Recipe, dataset: data.Dataset, clock: Clock) -> Measured:
    """The product's own path, from plan to trained adapter; figures from the history it writes."""
    from fasttune.train import train

    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as root:
        plan = strategy.decide(wanted, dataset, Path(root), allow_overfit=True)
        clock.start()
        record = train(plan, Path(job.base), Path(root))
        lines = runs.read_history(record.run)
    seen = [0, *(line["num_tokens"] for line in lines)]
    return measured(
        job,
        clock,
        losses=[line["loss"] for line in lines],
        grad_norms=[line["grad_norm"] for line in lines],
        samples=[round(line["samples_per_second"] * line["step_seconds"]) for line in lines],
        tokens=[after - before for before, after in itertools.pairwise(seen)],
        supervised_tokens=[round(line["supervised_tokens_per_second"] * line["step_seconds"]) for line in lines],
        computed_tokens=[line["computed_tokens"] for line in lines],
    )


# trl ----------------------------------------------------------------------------------------------------------------


def rival(job: Job, wanted: Recipe, dataset: data.Dataset, clock: Clock) -> Measured:
    """trl's SFTTrainer as a user would write it, given tokens and labels, so that preparing data is no difference."""
    tokenizer = models.load_tokenizer(Path(job.base))
    examples = render_all(dataset.train, tokenizer, wanted.data, wanted.model.max_seq_length).examples
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
        **{name: [count[name] for count in counts[: job.steps]] for name in counts[0]},
    )


def stock_model(job: Job, wanted: Recipe) -> Any:
    """Base and LoRA by Unsloth, with its own gradient checkpointing unless the recipe says false."""
    fast_language_model = models.import_unsloth()
    net, _tokenizer = fast_language_model.from_pretrained(
        model_name=job.base,
        max_seq_length=wanted.model.max_seq_length,
        dtype=models.compute_dtype(wanted.model),
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

    dtype, four_bit = models.compute_dtype(wanted.model), None
    if wanted.model.load_in_4bit:
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    net = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=dtype, quantization_config=four_bit, device_map={"": models.device()}
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
) -> tuple[Any, list[dict[str, int]]]:
    """A trainer over fasttune's steps, and the list it fills with what each batch holds."""
    import datasets
    from transformers import Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batches = step_samples(examples, wanted, job.steps)
    rows = [labelled(examples[i]) for batch in batches for i in batch]
    counts: list[dict[str, int]] = []
    by_trl = job.engine != "plain" or models.device() == "cuda"

    class Fed(SFTTrainer if by_trl else Trainer):  # type: ignore[misc]
        """Takes its batches in order; they may differ in size at an epoch's end, which no sampler of trl's does."""

        def get_train_dataloader(self) -> Any:
            ends = [sum(len(batch) for batch in batches[:n]) for n in range(len(batches) + 1)]
            indices = [list(range(begin, end)) for begin, end in itertools.pairwise(ends)]
            return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=indices, collate_fn=self.counted)

        def counted(self, items: list[dict[str, Any]]) -> Any:
            batch = self.data_collator(items)
            counts.append(count(batch, len(items)))
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
    return common | {
        "max_length": wanted.model.max_seq_length,
        "packing": False,
        "padding_free": job.engine == "stock-padding-free",
    }


def arguments(job: Job, wanted: Recipe, folder: str) -> dict[str, Any]:
    """The recipe in TrainingArguments' words, with gradient checkpointing, as trl, unless the recipe says false."""
    settings = wanted.train
    return {
        "output_dir": folder,
        "max_steps": job.steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": 1,
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
        "use_cpu": models.device() == "cpu",
        "dataloader_pin_memory": False,
        "bf16": False,  # trl's default is true, whatever the model's type
        **models.precision(wanted.model),
    }


def step_samples(examples: Sequence[Example], wanted: Recipe, steps: int) -> list[tuple[int, ...]]:
    """The samples of each step, over as many epochs as the steps take: those that fasttune trains on."""
    size, seed = wanted.train.batch_size, wanted.train.seed
    per_epoch = packing.steps_per_epoch(len(examples), size)
    return [
        packing.epoch_batches(len(examples), size, seed, step // per_epoch)[step % per_epoch] for step in range(steps)
    ]


def labelled(example: Example) -> dict[str, list[int]]:
    """A sample as trl takes it: its tokens, and labels that are -100 wherever nothing is learned."""
    labels = [IGNORED] * len(example.tokens)
    for start, end in example.learn:
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
        device=models.device(),
        unsloth="unsloth" in sys.modules,
        start_up_seconds=clock.began - job.started,
        step_seconds=clock.step_seconds,
        memory=clock.memory,
        **figures,
    )


def matmul_limit(dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a large square matrix product, by each of the ways torch has for it; the best of three.

    On processors that are not Intel's, torch.matmul's float32 (MKL) can be half as fast as oneDNN's.
    """
    size, where = SQUARE[models.device()], models.device()
    left, right = torch.randn(2, size, size, device=where).to(dtype)
    ways = {"torch.matmul": lambda: left @ right}
    if where == "cpu" and torch.backends.mkldnn.is_available():
        ways["mkldnn linear"] = lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return {name: 2 * size**3 / min(seconds(way) for _turn in range(3)) / 1e9 for name, way in ways.items()}


def seconds(way: Any) -> float:
    """How long one call takes, the device's work included."""
    begun = time.monotonic()
    way()
    if models.device() == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - begun


def read_recipe(job: Job) -> tuple[Recipe, data.Dataset]:
    """The recipe with a benchmark's fixed values, and its training samples; nothing is evaluated."""
    wanted = recipe.with_values(recipe.load(job.recipe, job.overrides), fixed_values(job.steps), "bench")
    return wanted, replace(data.load(wanted.data, wanted.train.seed), val=())


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
    job = Job(**document | {"overrides": tuple(document["overrides"])})
    wanted, dataset = read_recipe(job)
    if job.engine == "limit":
        result: dict[str, Any] = matmul_limit(models.compute_dtype(wanted.model))
    else:
        arm = fasttune if job.engine == "fasttune" else rival
        result = asdict(arm(job, wanted, dataset, Clock()))
    runs.write_json(Path(arguments[1]), result)


if __name__ == "__main__":
    main(sys.argv[1:])
