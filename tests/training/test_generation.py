"""Answers in batches, and the loss of single samples: those of one prompt, and those of training, at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Quickstart

from fasttune.data.dataset import read_samples
from fasttune.data.tokenize import prompt_tokens, tokenize_sample
from fasttune.recipe.schema import ModelRecipe
from fasttune.runs import documents
from fasttune.runs.store import Run
from fasttune.training import generation, hub
from fasttune.training import model as models

TINY = ModelRecipe(base="builtin:tiny")
QUESTIONS = ["你是谁？", "Who are you?", "什么是勇气？我想了很久，一直没有想明白，你怎么看？", "在吗"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.load_tokenizer(hub.TINY)


@pytest.fixture(scope="module")
def model(quickstart: Quickstart) -> Iterator[Any]:
    yield generation.load(hub.TINY, TINY, quickstart.folder / "adapter")


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[tuple[int, ...]]:
    """Of very different lengths: with and without a system prompt."""
    return [prompt_tokens(text, None if at % 2 else "你是小灯。", tokenizer) for at, text in enumerate(QUESTIONS)]


def test_the_model_of_a_training_is_gone_before_another_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a sweep, in whose process answers are asked for: a model is part of cycles."""
    models.import_unsloth()
    trained = weakref.ref(models.load_base(hub.TINY, TINY))

    def load(*_what: Any) -> Any:
        raise AssertionError("another is loaded beside it" if trained() else "gone")

    monkeypatch.setattr(models, "load_base", load)
    with pytest.raises(AssertionError, match="gone"):
        generation.load(hub.TINY, TINY, None)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_batch_answers_as_one_prompt_at_a_time(
    model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], adapter: bool
) -> None:
    with generation.adapter_switched(model, on=adapter):
        together = generation.generate_batch(model, tokenizer, prompts, 32)
        alone = [models.generate(model, tokenizer, prompt, 32) for prompt in prompts]
    assert together == alone and len(set(together)) > 1


def test_the_base_answers_otherwise(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]]) -> None:
    trained = generation.generate_batch(model, tokenizer, prompts, 16)
    with generation.adapter_switched(model, on=False):
        assert generation.generate_batch(model, tokenizer, prompts, 16) != trained


def test_chosen_tokens_are_taken(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]]) -> None:
    def choose(row: int, logits: Any) -> int:
        return int(logits.argmin() if row == 1 else logits.argmax())

    greedy = generation.generate_batch(model, tokenizer, prompts, 8)
    chosen = generation.generate_batch(model, tokenizer, prompts, 8, choose)
    assert [at for at, pair in enumerate(zip(greedy, chosen, strict=True)) if pair[0] != pair[1]] == [1]


@pytest.mark.parametrize("chosen", [False, True])
def test_both_loops_give_the_same_answers(
    model: Any, tokenizer: Any, prompts: list[tuple[int, ...]], chosen: bool
) -> None:
    """The one of the CPU and transformers' own, which a GPU uses."""

    def second(_row: int, logits: torch.Tensor) -> int:
        return int(logits.topk(2).indices[1])

    ends, choose = {tokenizer.eos_token_id, tokenizer.pad_token_id}, second if chosen else None
    with torch.no_grad(), generation.masked_attention(model):
        ours = generation.decode(model, prompts, 12, ends, choose)
        theirs = generation.generate(model, tokenizer, prompts, 12, ends, choose)
    texts = tokenizer.batch_decode(theirs, skip_special_tokens=True)
    assert tokenizer.batch_decode(ours, skip_special_tokens=True) == texts and len(set(texts)) > 1


def test_a_shared_prompt_is_computed_once_and_an_ended_answer_leaves_the_batch(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick start's system prompt before four questions, of which one is answered in fewer tokens."""
    computed: list[tuple[int, int]] = []
    forward = type(model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        computed.append(tuple(kwargs["input_ids"].shape))
        return forward(self, *args, **kwargs)

    system = "你是小灯，一只住在灯塔里的猫。" * 4
    prompts = [prompt_tokens(question, system, tokenizer) for question in QUESTIONS]
    monkeypatch.setattr(type(model), "forward", counted)
    with torch.no_grad(), generation.masked_attention(model):
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        answers = generation.decode(model, prompts, 40, ends, None)
    shared = generation.shared_tokens(prompts)
    assert shared > 30 and computed[0] == (1, shared)
    assert computed[1] == (4, max(map(len, prompts)) - shared)
    lengths = sorted(map(len, answers))
    assert lengths[0] < lengths[-1]
    assert sum(batch for batch, _width in computed[2:]) == sum(min(length, 39) for length in lengths)


@pytest.mark.parametrize(
    ("prompts", "count"),
    [([(1, 2, 3)], 0), ([(1, 2, 3), (1, 2, 4, 5)], 2), ([(1, 2), (1, 2)], 1), ([(1,), (2, 1)], 0)],
)
def test_what_prompts_begin_with(prompts: list[tuple[int, ...]], count: int) -> None:
    assert generation.shared_tokens(prompts) == count


def test_a_shape_is_read_from_the_adapter(quickstart: Quickstart) -> None:
    shape = generation.lora_shape(quickstart.folder / "adapter")
    assert (shape.r, shape.alpha, len(shape.target_modules)) == (16, 32, 7)


def test_samples_score_as_the_training_evaluated_them(model: Any, tokenizer: Any, quickstart: Quickstart) -> None:
    run = Run(quickstart.folder.parent.parent, "quickstart/001-fresh")
    (last,) = [line for line in documents.read_trainer_state(run).log_history if "eval_loss" in line][-1:]
    reading = read_samples(str(REPOSITORY / "data/quickstart/val.jsonl"))
    scores = [
        *generation.score_samples(model, [tokenize_sample(sample, tokenizer) for sample in reading.samples], TINY)
    ]
    tokens = sum(score.tokens for score in scores)
    assert sum(score.loss for score in scores) / tokens == pytest.approx(last["eval_loss"], rel=1e-4)
    assert sum(score.hits for score in scores) / tokens == pytest.approx(last["eval_mean_token_accuracy"], rel=1e-6)
    assert [score.sample_id for score in scores] == [sample.id for sample in reading.samples]


def streamed(model: Any, tokenizer: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    return list(generation.stream(model, tokenizer, prompt, count, lambda _row, logits: int(logits.argmax())))


def test_a_streamed_answer_is_that_of_a_batch(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]]) -> None:
    batch = generation.generate_batch(model, tokenizer, prompts[:1], 32)
    ids = streamed(model, tokenizer, prompts[0], 32)
    assert [tokenizer.decode(ids, skip_special_tokens=True).strip()] == batch and len(ids) > 4


def test_the_thread_of_a_gpu_streams_the_same(model: Any, tokenizer: Any, prompts: list[tuple[int, ...]]) -> None:
    """On a GPU `generate` runs in a thread of its own; here it is asked on the CPU."""
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}

    def in_thread(choose: generation.Choose) -> generation.Tokens:
        return generation.generate_in_thread(model, tokenizer, prompts[0], 32, ends, choose)

    with generation.masked_attention(model):
        assert list(in_thread(lambda _row, logits: int(logits.argmax()))) == streamed(model, tokenizer, prompts[0], 32)
        asked = []

        def ramble(_row: int, logits: torch.Tensor) -> int:
            asked.append(int(logits.argmin()))
            return asked[-1]

        tokens = in_thread(ramble)
        next(tokens)
        tokens.close()  # ends the thread, which would go on for 32 tokens
        assert len(asked) < 32

        def fail(_row: int, logits: torch.Tensor) -> int:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(in_thread(fail))
