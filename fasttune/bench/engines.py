"""The engines of a benchmark, each as one function from a job to what was measured.

    engine                what trains                                                    batches
    fasttune              `training.train.train`, as `fasttune run` calls it             fasttune's rows
    stock                 Unsloth's model and LoRA, TRL's SFTTrainer                     padded
    stock-padding-free    the same, its fastest way on a GPU                             flat, variable-length attention
    plain                 transformers, PEFT, TRL's SFTTrainer; Unsloth is not imported  padded

Without a GPU the plain engine has transformers' own Trainer with TRL's collator: the loss of TRL 1.15's SFTTrainer is a
Triton kernel there, which Unsloth alone replaces.

All of them train the same steps: the samples of step n are those of `batches.epoch_batches`, tokenized alike, with the
same supervised tokens. What differs is how the engine computes them.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fasttune.bench.flops import attention_pairs
from fasttune.bench.jobs import Job, Measured
from fasttune.bench.measure import Clock
from fasttune.bench.workload import step_samples
from fasttune.data.dataset import Dataset
from fasttune.data.tokenize import Example, tokenize_samples
from fasttune.planning import strategy
from fasttune.recipe.schema import Recipe
from fasttune.runs import history
from fasttune.training import device
from fasttune.training import model as models

IGNORED = -100  # the label of a token that the loss is not taken on


def measured(job: Job, clock: Clock, **figures: Any) -> Measured:
    """The figures of an engine with those of the clock, which must have seen every step."""
    assert len(clock.step_ends) == job.steps == len(figures["losses"]), (len(clock.step_ends), job.steps, figures)
    return Measured(
        device=device.device_type(),
        unsloth="unsloth" in sys.modules,
        precision=clock.precision,
        start_up_seconds=clock.first_forward - job.started,
        step_seconds=clock.step_seconds,
        memory=clock.memory,
        **figures,
    )


# fasttune -----------------------------------------------------------------------------------------------------------


def train_by_fasttune(job: Job, recipe: Recipe, dataset: Dataset, clock: Clock) -> Measured:
    """Train as `fasttune run` does, from the plan to the adapter; the figures are those of the run's history."""
    from fasttune.training.train import train

    for name in job.without:
        setattr(models, name, do_nothing)
    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as root:
        plan = strategy.decide(recipe, dataset, Path(root), allow_overfit=True)
        clock.start()
        record = train(plan, Path(job.base), Path(root))
        lines = history.read_history(record.run)
    tokens_so_far = [0, *(line["num_tokens"] for line in lines)]
    tokens = [after - before for before, after in itertools.pairwise(tokens_so_far)]
    computed = [line["computed_tokens"] for line in lines]
    tokenizer = models.load_tokenizer(Path(job.base))
    examples = tokenize_samples(dataset.trained, tokenizer, recipe.data, recipe.model.max_seq_length).examples
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
            attention_pairs(examples, batch, shared=computed_in_step < tokens_in_step)
            for batch, computed_in_step, tokens_in_step in zip(
                step_samples(examples, recipe, job.steps), computed, tokens, strict=True
            )
        ],
    )


def do_nothing(*_arguments: Any) -> None:
    """Takes the place of a function that an arm leaves out."""


# TRL ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchCounts:
    """What a collated batch holds."""

    samples: int
    tokens: int
    supervised_tokens: int
    computed_tokens: int


@dataclass
class Feed:
    """fasttune's steps for a TRL trainer, each in `micro_batches` parts, and the counts of each part it has taken."""

    steps: list[tuple[int, ...]]
    micro_batches: int
    counts: list[list[BatchCounts]] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [[] for _step in self.steps]

    def loader(self, dataset: Any, collator: Any) -> Any:
        """A loader of the micro-batches in order. A dataset holds the samples of all steps, one after another."""

        def collate(items: list[dict[str, Any]]) -> Any:
            batch = collator(items)
            step = next(parts for parts in self.counts if len(parts) < self.micro_batches)
            step.append(count_batch(batch, len(items)))
            return batch

        sizes = [size for step in self.steps for size in even_parts(len(step), self.micro_batches)]
        ends = [0, *itertools.accumulate(sizes)]
        indices = [list(range(begin, end)) for begin, end in itertools.pairwise(ends)]
        return torch.utils.data.DataLoader(dataset, batch_sampler=indices, collate_fn=collate)

    def sums(self) -> dict[str, list[int]]:
        """Each count of BatchCounts by name, one sum a step."""
        names = [count.name for count in fields(BatchCounts)]
        return {name: [sum(getattr(part, name) for part in step) for step in self.counts] for name in names}


def train_by_trl(job: Job, recipe: Recipe, dataset: Dataset, clock: Clock) -> Measured:
    """Train by TRL's SFTTrainer as a user would write it, given token ids and labels: tokenizing is not compared."""
    tokenizer = models.load_tokenizer(Path(job.base))
    examples = tokenize_samples(dataset.trained, tokenizer, recipe.data, recipe.model.max_seq_length).examples
    steps = step_samples(examples, recipe, job.steps)
    rows = [labelled(examples[i]) for step in steps for i in step]
    feed = Feed(steps, micro_batches(job, recipe))
    model = plain_model(job, recipe) if job.engine == "plain" else stock_model(job, recipe)
    clock.start()
    with tempfile.TemporaryDirectory(prefix="fasttune-bench-") as folder:
        trainer = trl_trainer(feed, trainer_settings(job, recipe, tokenizer, folder), model, tokenizer, rows)
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return measured(
        job,
        clock,
        losses=[line["loss"] for line in lines],
        grad_norms=[line["grad_norm"] for line in lines],
        attention_pairs=[attention_pairs(examples, step, shared=False) for step in steps],
        **feed.sums(),
    )


def stock_model(job: Job, recipe: Recipe) -> Any:
    """Base and LoRA by Unsloth, with its own gradient checkpointing unless the recipe says false."""
    fast_language_model = models.import_unsloth()
    model, _tokenizer = fast_language_model.from_pretrained(
        model_name=job.base,
        max_seq_length=recipe.model.max_seq_length,
        dtype=device.compute_dtype(recipe.model),
        load_in_4bit=recipe.model.load_in_4bit,
        use_exact_model_name=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return fast_language_model.get_peft_model(
        model,
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=list(recipe.lora.target_modules),
        bias="none",
        use_gradient_checkpointing="unsloth" if recipe.train.gradient_checkpointing else False,
        random_state=recipe.train.seed,
    )


def plain_model(job: Job, recipe: Recipe) -> Any:
    """Base by transformers and LoRA by PEFT; with model.load_in_4bit the same NF4 as Unsloth's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    dtype = device.compute_dtype(recipe.model)
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype=dtype,
        quantization_config=nf4(dtype) if recipe.model.load_in_4bit else None,
        device_map={"": device.device_type()},
        trust_remote_code=False,
    )
    config = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=list(recipe.lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    set_seed(recipe.train.seed)  # the same first LoRA weights as Unsloth draws
    return get_peft_model(model, config)


def nf4(dtype: torch.dtype) -> Any:
    """The quantization that Unsloth loads a base with: NF4, its scales quantized again, products in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


@dataclass(frozen=True)
class TrainerSettings:
    """The trainer's class and arguments, and its collator (None: the trainer's own)."""

    trainer: type
    args: Any
    collator: Any


def trainer_settings(job: Job, recipe: Recipe, tokenizer: Any, folder: str) -> TrainerSettings:
    """TRL's SFTTrainer; transformers' Trainer with TRL's collator for the plain engine without a GPU."""
    from transformers import Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if job.engine == "plain" and device.device_type() == "cpu":
        collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
        return TrainerSettings(Trainer, TrainingArguments(**training_arguments(job, recipe, folder)), collator)
    return TrainerSettings(SFTTrainer, SFTConfig(**sft_arguments(job, recipe, folder)), None)


def trl_trainer(
    feed: Feed, settings: TrainerSettings, model: Any, tokenizer: Any, rows: list[dict[str, list[int]]]
) -> Any:
    """The trainer over `rows`, which it takes as `feed` says."""
    import datasets

    class FeedTrainer(settings.trainer):  # type: ignore[name-defined]
        """Takes its batches in order; at an epoch's end they differ in size, which no sampler of TRL's allows."""

        def get_train_dataloader(self) -> Any:
            return feed.loader(self.train_dataset, self.data_collator)

    return FeedTrainer(
        model=model,
        args=settings.args,
        data_collator=settings.collator,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def sft_arguments(job: Job, recipe: Recipe, folder: str) -> dict[str, Any]:
    """SFTConfig's arguments; gradient checkpointing is left to its defaults and to Unsloth, unless it is off."""
    common = training_arguments(job, recipe, folder)
    del common["gradient_checkpointing_kwargs"]
    if common["gradient_checkpointing"]:
        del common["gradient_checkpointing"]
    flat = job.engine == "stock-padding-free"
    # Tokenizing has cut or refused what is too long already, and TRL takes no max_length beside padding_free.
    return common | {
        "max_length": None if flat else recipe.model.max_seq_length,
        "packing": False,
        "padding_free": flat,
    }


def training_arguments(job: Job, recipe: Recipe, folder: str) -> dict[str, Any]:
    """TrainingArguments' arguments, with gradient checkpointing, as TRL, unless the recipe says false."""
    settings = recipe.train
    return {
        "output_dir": folder,
        "max_steps": job.steps,
        "per_device_train_batch_size": settings.samples_per_step // micro_batches(job, recipe),
        "gradient_accumulation_steps": micro_batches(job, recipe),
        "gradient_checkpointing": bool(settings.gradient_checkpointing),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": settings.peak_learning_rate,
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
        "bf16": False,  # TRL's default is true, whatever the model's type
        **device.precision(recipe.model),
    }


def micro_batches(job: Job, recipe: Recipe) -> int:
    """How many micro-batches a step is accumulated from."""
    return math.ceil(recipe.train.samples_per_step / job.micro_batch) if job.micro_batch else 1


def even_parts(samples: int, parts: int) -> list[int]:
    """Sizes of `parts` parts that differ by at most one. Raises ValueError where a part would be empty."""
    if samples < parts:
        raise ValueError(f"a step of {samples} samples can't be trained in {parts} micro-batches")
    return [samples // parts + (part < samples % parts) for part in range(parts)]


def labelled(example: Example) -> dict[str, list[int]]:
    """An example as TRL takes it: token ids, and labels of the same length, -100 where no loss is taken."""
    labels = [IGNORED] * len(example.tokens)
    for start, end in example.supervised:
        labels[start:end] = example.tokens[start:end]
    return {"input_ids": list(example.tokens), "labels": labels}


def count_batch(batch: Any, samples: int) -> BatchCounts:
    """Counts of a collated batch; a flat one has no attention mask and no padding."""
    computed = batch["input_ids"].numel()
    return BatchCounts(
        samples=samples,
        tokens=int(batch["attention_mask"].sum()) if "attention_mask" in batch else computed,
        supervised_tokens=int((batch["labels"] != IGNORED).sum()),
        computed_tokens=computed,
    )
