"""Answers of a base and an adapter on it, many prompts at once; and the loss of single samples.

The base is loaded once. Its own answers are those of the same model with the adapter switched off.

    model = load(base, recipe.model, run.adapter)
    with adapter_switched(model, on=False):
        texts = generate_batch(model, tokenizer, prompts, max_new_tokens=64)

Prompts of different lengths are padded on the left. That needs an attention with a mask, so on a CPU the packed
attention of engine.py, which has none, is put in only while samples are scored.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fasttune.data.tokenize import Example
from fasttune.recipe.schema import LoraRecipe, ModelRecipe
from fasttune.training import device, engine, packing
from fasttune.training import model as models

Tokens = Generator[int, None, None]
Choose = Callable[[int, torch.Tensor], int]  # the number of a prompt and its logits [V] -> the next token's id


@dataclass(frozen=True)
class SampleScore:
    """The summed loss (nats) of a sample's supervised tokens, how many of them the model ranks first, and their
    number."""

    sample_id: str
    loss: float
    hits: int
    tokens: int


def load(base: Path, recipe: ModelRecipe, adapter: Path | None) -> Any:
    """The base in memory with an adapter folder's weights; without one, with an adapter that changes nothing."""
    models.import_unsloth()  # first: what it leaves is not searched for garbage
    device.release_memory()  # of a training in this process, whose model is part of cycles
    model = models.load_base(base, recipe)
    model = models.add_lora(model, lora_shape(adapter) if adapter else LoraRecipe(r=1, alpha=2), 0, checkpointing=False)
    if adapter:
        models.load_adapter(model, adapter)
    model.eval()
    return model


def lora_shape(adapter: Path) -> LoraRecipe:
    """The shape of the LoRA weights in a folder, by PEFT's adapter_config.json."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    targets = tuple(sorted(config["target_modules"]))
    return LoraRecipe(r=config["r"], alpha=config["lora_alpha"], target_modules=targets)


@contextlib.contextmanager
def adapter_switched(model: Any, *, on: bool) -> Iterator[None]:
    """The model with its adapter inside the block, or without: then it is the base."""
    if on:
        yield
        return
    with model.disable_adapter():
        yield


def generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, choose: Choose | None = None
) -> list[str]:
    """The answers to tokenized prompts, each up to its end token or `max_new_tokens`, without spaces around them.

    Greedy without `choose`; with it, that function takes each next token.
    """
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}  # a base without an end token may say <|endoftext|>
    with torch.no_grad(), models.quiet(), models.inference(model), masked_attention(model):
        if device.device_type() == "cpu":
            answers = decode(model, prompts, max_new_tokens, ends, choose)
        else:
            answers = generate(model, tokenizer, prompts, max_new_tokens, ends, choose)
    model.eval()
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def decode(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: set[int], choose: Choose | None
) -> list[list[int]]:
    """The answers' token ids, on a CPU."""
    answers: list[list[int]] = [[] for _prompt in prompts]
    for row, token in decode_tokens(model, prompts, max_new_tokens, ends, choose):
        answers[row].append(token)
    return answers


@torch.no_grad()
def decode_tokens(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, ends: set[int], choose: Choose | None
) -> Iterator[tuple[int, int]]:
    """(number of the prompt, token id) of all answers as they are decoded, on a CPU: what all prompts begin with is
    computed once, and an answer that has ended leaves the batch. transformers' own loop does neither; where arithmetic
    is scarce that is most of the time."""
    shared = shared_tokens(prompts)
    cache = cached_prefix(model, prompts[0][:shared], len(prompts))
    ids, mask = left_padded([prompt[shared:] for prompt in prompts], padding=min(ends))
    mask = torch.cat((torch.ones(len(prompts), shared, dtype=mask.dtype), mask), dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
    rows = list(range(len(prompts)))  # the prompts that are still answered, by their place in the batch
    for _number in range(max_new_tokens):
        state = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        logits = model(input_ids=ids, logits_to_keep=1, **state).logits[:, -1]
        chosen = logits.argmax(dim=1).tolist()
        if choose:
            chosen = [choose(row, one) for row, one in zip(rows, logits, strict=True)]
        going = [at for at, token in enumerate(chosen) if token not in ends]
        yield from ((rows[at], chosen[at]) for at in going)
        if not going:
            break
        if len(going) < len(rows):
            cache.batch_select_indices(torch.tensor(going))
            mask, positions, rows = mask[going], positions[going], [rows[at] for at in going]
        ids = torch.tensor([[chosen[at]] for at in going])
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
        positions = positions[:, -1:] + 1


def cached_prefix(model: Any, prefix: Sequence[int], count: int) -> Any:
    """A cache that holds the keys and values of a prefix, computed once, for `count` sequences that begin with it."""
    from transformers import DynamicCache

    cache = DynamicCache()
    if prefix:
        model(input_ids=torch.tensor([list(prefix)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(count)
    return cache


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, less than the shortest has; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    lowest, highest = (
        min(map(tuple, prompts)),
        max(map(tuple, prompts)),
    )  # what these two share, all that lie between them share
    return min(packing.common_prefix(lowest, highest), min(map(len, prompts)) - 1)


def left_padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] with `padding` before those of shorter prompts, and the mask [B, T] that says where it is: 0."""
    width = max(map(len, prompts))
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: set[int],
    choose: Choose | None,
) -> list[list[int]]:
    """The answers' token ids, on a GPU: by Unsloth's fast inference, which is behind transformers' `generate`."""
    from transformers import LogitsProcessorList

    ids, mask = left_padded(prompts, tokenizer.pad_token_id)
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
        logits_processor=LogitsProcessorList([chooser(choose)] if choose else []),
    )
    answers: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return answers


def chooser(choose: Choose) -> Any:
    """A logits processor that leaves each row only the token that was chosen for it."""
    from transformers import LogitsProcessor

    class Chooser(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            chosen = torch.full_like(scores, -torch.inf)
            for row, logits in enumerate(scores):
                chosen[row, choose(row, logits)] = 0.0
            return chosen

    return Chooser()


def stream(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int, choose: Choose) -> Tokens:
    """The token ids of one answer as they are generated, up to its end token or `max_new_tokens`.

    Closing the iterator stops the generation.
    """
    fast_language_model = models.import_unsloth()
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    with masked_attention(model):
        with models.quiet():
            fast_language_model.for_inference(model)
        try:
            if device.device_type() == "cpu":
                yield from (token for _row, token in decode_tokens(model, [prompt], max_new_tokens, ends, choose))
            else:
                yield from generate_in_thread(model, tokenizer, prompt, max_new_tokens, ends, choose)
        finally:
            with models.quiet():
                fast_language_model.for_training(model)
            model.eval()


def generate_in_thread(
    model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int, ends: set[int], choose: Choose
) -> Tokens:
    """The token ids of one answer by `generate`, which returns only when it is done and so runs in a thread of its own.

    An error of that thread is raised here.
    """
    tokens: queue.Queue[int | BaseException | None] = queue.Queue()
    closed = threading.Event()

    def choose_and_send(row: int, logits: torch.Tensor) -> int:
        token = min(ends) if closed.is_set() else choose(row, logits)
        tokens.put(token)
        return token

    def work() -> None:
        try:
            with torch.no_grad():  # not quiet(), which would take stdout from all threads
                generate(model, tokenizer, [prompt], max_new_tokens, ends, choose_and_send)
            tokens.put(None)
        except BaseException as failure:
            tokens.put(failure)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (token := tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if token not in ends:
                yield token
    finally:
        closed.set()
        thread.join()


@contextlib.contextmanager
def masked_attention(model: Any) -> Iterator[None]:
    """On a CPU: torch's own attention with a mask inside the block, and the packed one after it."""
    if device.device_type() != "cpu":
        yield
        return
    model.get_base_model().set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.get_base_model().set_attn_implementation(models.ATTENTION)


def score_samples(model: Any, examples: Sequence[Example], recipe: ModelRecipe) -> Iterator[SampleScore]:
    """The score of each example, computed alone in a row of its own."""
    dtype = device.compute_dtype(recipe)
    for example in examples:
        (row,) = packing.plan_step([example], [0], 0).rows
        batch = engine.collate(row, [example]).to(model.device)
        with torch.no_grad(), torch.autocast(device.device_type(), dtype, enabled=dtype != torch.float32):
            loss, hits = engine.loss(models.hidden_states(model, batch), models.lm_head_weight(model), batch)
        tokens = sum(end - start for start, end in example.supervised)
        yield SampleScore(example.sample_id, float(loss), int(hits), tokens)
