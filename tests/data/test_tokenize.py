"""Token ids and supervised spans: those of the template on ordinary text, and right where the template's are not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from fasttune.console import FasttuneError
from fasttune.data.dataset import Message, Sample, load_dataset
from fasttune.data.tokenize import (
    Example,
    chat_tokens,
    estimate_tokens,
    pieces,
    prompt_tokens,
    tokenize_sample,
    tokenize_samples,
)
from fasttune.recipe.schema import DataRecipe

TINY = Path(__file__).parents[2] / "fasttune" / "tiny"
# Qwen2's way to split text into words; `\s*[\r\n]+` is what would join a header's line break with an answer's.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TRIMS = CHATML.replace("m.content", "(m.content | trim)")
DROPS_SYSTEM = CHATML.replace("in messages %}", "in messages if m.role != 'system' %}")
THINKS_LAST = CHATML.replace("m.content", "('<think>' if loop.last and m.role == 'assistant' else '') + m.content")
NO_END = CHATML.replace("<|im_end|>\n' }}{%- endfor", "\n' }}{%- endfor")
NO_SYSTEM_ROLE = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
NO_DEFAULT = CHATML[CHATML.index("{%- for") :]
WORD_LIST = ["你好", "世界", "the", " quick", "fox ", "\n", "\n\n", "  ", "\t", "<b>", "12345", "🐼", "é", "。", "'s"]


def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Qwen2's kind of tokenizer, made here: byte-level BPE, ChatML tokens, and <tool_call>, added but not special."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    corpus = ["user\n\nassistant\n\nsystem\n\n你好世界 the quick fox\n\n\n12345 <|im_end|> <tool_call>"] * 9
    backend.train_from_iterator(corpus, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    made.chat_template = CHATML
    return made


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTTUNE_LANG", "en")


@pytest.fixture(scope="module", params=["made here", "builtin:tiny"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return small_tokenizer() if request.param == "made here" else transformers.AutoTokenizer.from_pretrained(TINY)


def sample(*messages: tuple[str, str], id: str = "t.jsonl:1") -> Sample:
    return Sample(id, tuple(Message(role, content) for role, content in messages))


def chat(*contents: str, system: str | None = None, id: str = "t.jsonl:1") -> Sample:
    turns = [("user" if number % 2 == 0 else "assistant", content) for number, content in enumerate(contents)]
    return sample(*([] if system is None else [("system", system)]), *turns, id=id)


def template_ids(given: Sample, tokenizer: Any, *, prompt: bool = False) -> tuple[int, ...]:
    conversation = [{"role": message.role, "content": message.content} for message in given.messages]
    return tuple(tokenizer.apply_chat_template(conversation, return_dict=False, add_generation_prompt=prompt))


def supervised_texts(example: Example, tokenizer: Any) -> list[str]:
    return [tokenizer.backend_tokenizer.decode(list(example.tokens[start:end]), skip_special_tokens=False)
            for start, end in example.supervised]  # fmt: skip


def problems(samples: list[Sample], tokenizer: Any, limit: int = 2048) -> list[tuple[str, str]]:
    with pytest.raises(FasttuneError) as caught:
        tokenize_samples(samples, tokenizer, DataRecipe(train=("t.jsonl",)), limit)
    return [(f.code, f.where) for f in caught.value.findings if f.level == "error"]


def with_template(template: str) -> Any:
    made = small_tokenizer()
    made.chat_template = template
    return made


# --- ordinary text: the template's own ids ---------------------------------------------------------------


def test_ids_are_those_of_the_template(tokenizer: Any) -> None:
    chance = random.Random(5)

    def text() -> str:
        # An answer doesn't begin with white space here; what happens then is tested below.
        return "A" + "".join(chance.choice(WORD_LIST) for _ in range(chance.randint(0, 40)))

    samples = []
    for number in range(200):
        contents = [text() for _ in range(2 * chance.randint(1, 3))]
        samples.append(chat(*contents, system=chance.choice([None, text()]), id=f"t:{number}"))
    examples = tokenize_samples(samples, tokenizer, DataRecipe(train=("t",)), 10_000).examples
    assert [example.sample_id for example in examples] == [given.id for given in samples]
    assert [example.tokens for example in examples] == [template_ids(given, tokenizer) for given in samples]
    for given, example in zip(samples, examples, strict=True):
        answers = [message.content + "<|im_end|>" for message in given.messages if message.role == "assistant"]
        assert supervised_texts(example, tokenizer) == answers
        assert tokenize_sample(given, tokenizer) == example


def test_questions_may_begin_with_anything(tokenizer: Any) -> None:
    for start in ("\n", "\n\n x", " ", " \n", "\t", "\u3000"):
        given = chat(start + "q", "a", start + "q", "a", system=start + "s")
        assert tokenize_sample(given, tokenizer).tokens == template_ids(given, tokenizer)


# --- where plain tokenizing goes wrong -------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["\nx", "\n\n", " x", " \n x", "\u2028x"])
def test_the_prompt_before_an_answer_is_the_prompt_that_is_served(answer: str, tokenizer: Any) -> None:
    given = chat("q", "a", "q", answer)
    example = tokenize_sample(given, tokenizer)
    for index, (start, _end) in zip((1, 3), example.supervised, strict=True):
        served = template_ids(Sample("", given.messages[:index]), tokenizer, prompt=True)
        assert example.tokens[:start] == served
    assert supervised_texts(example, tokenizer) == ["a<|im_end|>", answer + "<|im_end|>"]


def test_the_cut_before_an_answer_is_needed() -> None:
    """The whole text at once makes one token of the header's line break and the answer's: this is what is avoided."""
    made, given = small_tokenizer(), chat("q", "\nx")
    served = template_ids(Sample("", given.messages[:1]), made, prompt=True)
    assert template_ids(given, made)[: len(served)] != served


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<tool_call>"])
def test_text_that_looks_like_a_control_token_stays_text(token: str) -> None:
    made = small_tokenizer()
    controls = set(made.backend_tokenizer.get_added_tokens_decoder())
    plain, odd = chat("a", "b", system="s"), chat(f"a{token}\nb", f"{token}c{token}", system=f"s{token}")
    own_controls = [id for id in tokenize_sample(odd, made).tokens if id in controls]
    assert own_controls == [id for id in tokenize_sample(plain, made).tokens if id in controls]
    assert supervised_texts(tokenize_sample(odd, made), made) == [f"{token}c{token}<|im_end|>"]
    assert made.backend_tokenizer.decode(list(tokenize_sample(odd, made).tokens), skip_special_tokens=False) == (
        f"<|im_start|>system\ns{token}<|im_end|>\n<|im_start|>user\na{token}\nb<|im_end|>\n"
        f"<|im_start|>assistant\n{token}c{token}<|im_end|>\n"
    )
    naive = [id for id in template_ids(odd, made) if id in controls]
    assert len(naive) > len(own_controls)  # what this is there for
    (finding,) = tokenize_samples([odd], made, DataRecipe(train=("t",)), 999).findings
    assert (finding.code, finding.level, finding.where) == ("control-text", "warning", odd.id)


# --- what is supervised ----------------------------------------------------------------------------------


def test_learn_all_is_every_token_that_something_predicts(tokenizer: Any) -> None:
    given = chat("q", "a", "q", "a")
    example = tokenize_sample(given, tokenizer, learn="all")
    assert example.supervised == ((1, len(example.tokens)),)
    assert example.tokens == tokenize_sample(given, tokenizer).tokens
    through_recipe = tokenize_samples([given], tokenizer, DataRecipe(train=("t",), learn="all"), 999).examples
    assert through_recipe == (example,)


def test_prompt_tokens_are_what_training_has_before_the_answer(tokenizer: Any) -> None:
    for system in (None, "", "s"):
        example = tokenize_sample(chat("q?", "a", system=system), tokenizer)
        prompt = prompt_tokens("q?", system, tokenizer)
        assert prompt == example.tokens[: example.supervised[0][0]]
        assert prompt == template_ids(Sample("", chat("q?", system=system).messages), tokenizer, prompt=True)
    talk = chat("q", "a", "q")
    assert chat_tokens(talk.messages, tokenizer) == template_ids(talk, tokenizer, prompt=True)


# --- the template's own system prompt --------------------------------------------------------------------


def test_a_default_system_prompt_is_named_once() -> None:
    samples = [chat("q", "a", id="t:1"), chat("q", "a", system="s", id="t:2"), chat("q", "a", "q", "a", id="t:3")]
    recipe = DataRecipe(train=("t",))
    (finding,) = tokenize_samples(samples, small_tokenizer(), recipe, 999).findings
    assert (finding.code, finding.level, finding.where) == ("template-default-system", "info", "t:1")
    assert finding.what.startswith("2 samples") and "'Be kind.'" in finding.what
    assert tokenize_samples(samples[1:2], small_tokenizer(), recipe, 999).findings == ()
    general = chat("q", "a", id="fasttune/general/train-en.jsonl:1")  # is to have the template's own
    assert tokenize_samples([general], small_tokenizer(), recipe, 999).findings == ()
    assert tokenize_samples([chat("q", "a", system="")], small_tokenizer(), recipe, 999).findings == ()
    assert tokenize_samples(samples, with_template(NO_DEFAULT), recipe, 999).findings == ()
    assert len(tokenize_samples([samples[0]], with_template(NO_SYSTEM_ROLE), recipe, 999).examples) == 1


# --- refusals --------------------------------------------------------------------------------------------


def test_every_sample_that_can_not_be_tokenized_comes_at_once() -> None:
    samples = [chat("q", "a" * 90, id="t:1"), chat("q", "a", id="t:2"), sample(("user", "q"), id="t:3"),
               chat("q", "b" * 99, id="t:4")]  # fmt: skip
    found = problems(samples, small_tokenizer(), limit=60)
    assert found == [("too-long", "t:1"), ("nothing-to-learn", "t:3"), ("too-long", "t:4")]


def test_a_sample_of_exactly_the_limit_passes(tokenizer: Any) -> None:
    given = chat("q", "a")
    length = len(tokenize_sample(given, tokenizer).tokens)
    assert tokenize_samples([given], tokenizer, DataRecipe(train=("t",)), length).examples
    assert problems([given], tokenizer, length - 1) == [("too-long", given.id)]


def test_no_samples_are_no_examples(tokenizer: Any) -> None:
    assert tokenize_samples([], tokenizer, DataRecipe(train=("t",)), 99).examples == ()


# --- to be read ------------------------------------------------------------------------------------------


def test_pieces_are_readable_and_hold_every_token_once(tokenizer: Any) -> None:
    example = tokenize_sample(chat("龘🐼?", "柒🐼<|im_end|>\n好"), tokenizer)
    shown = pieces(example, tokenizer)
    assert tuple(token for piece in shown for token in piece.tokens) == example.tokens
    assert "\ufffd" not in "".join(piece.text for piece in shown)
    assert "".join(piece.text for piece in shown if piece.supervised) == "柒🐼<|im_end|>\n好<|im_end|>"
    assert (
        sum(len(piece.tokens) for piece in shown if piece.supervised)
        == example.supervised[0][1] - example.supervised[0][0]
    )


# --- estimated without a tokenizer -----------------------------------------------------------------------


def test_the_estimate_is_near_what_qwen_makes_of_a_data_set() -> None:
    """Qwen2.5's tokenizer makes 301 tokens a sample of data/linzhi (docs/benchmarks.md), 5 of them around a message."""
    train = load_dataset(DataRecipe(train=(str(TINY.parents[1] / "data/linzhi/train.jsonl"),)), seed=0).train
    contents = [message.content for given in train for message in given.messages]
    estimate = (sum(map(estimate_tokens, contents)) + 5 * len(contents)) / len(train)
    assert estimate == pytest.approx(301, rel=0.05)


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("four letters", 3), ("1234", 4), ("{}", 2), ("你好世界", 3), ("ёж", 1.5), ("🐼", 2)]
)
def test_the_estimate_of_a_text(text: str, tokens: float) -> None:
    assert estimate_tokens(text) == tokens


# --- messages that their file excludes from training -----------------------------------------------------


def test_the_loss_is_not_taken_on_a_message_that_its_file_excludes(tokenizer: Any) -> None:
    """The tokens are the same, and so is the span of the other answer; with learn = "all" too."""
    plain = chat("q", "bad answer", "again", "good answer")
    question, bad, again, good = plain.messages
    masked = Sample(plain.id, (question, Message("assistant", bad.content, learn=False), again, good))
    learned, whole = tokenize_sample(masked, tokenizer), tokenize_sample(plain, tokenizer)
    assert learned.tokens == whole.tokens and learned.supervised == whole.supervised[1:]
    assert supervised_texts(learned, tokenizer) == ["good answer<|im_end|>"]
    everything = supervised_texts(tokenize_sample(masked, tokenizer, "all"), tokenizer)
    assert "good answer<|im_end|>" in everything[-1] and not any("bad answer" in text for text in everything)
    unasked = Sample(plain.id, (Message("user", "q", learn=False), bad, again, good))
    assert tokenize_sample(unasked, tokenizer) == whole


@pytest.mark.parametrize(
    "system", [(), (Message("system", "You are Pip."),)], ids=["no system prompt", "a system prompt"]
)
def test_a_character_may_speak_first(tokenizer: Any, system: tuple[Message, ...]) -> None:
    """Its greeting is an answer like any other: learned, with the prompt before it that the template writes."""
    messages = (*system, Message("assistant", "late."), Message("user", "Sorry."), Message("assistant", "gulls."))
    example = tokenize_sample(Sample("t:1", messages), tokenizer)
    learned = [tokenizer.decode(list(example.tokens[start:end])) for start, end in example.supervised]
    assert learned == ["late.<|im_end|>", "gulls.<|im_end|>"]
    before = tokenizer.decode(list(example.tokens[: example.supervised[0][0]]))
    assert before.endswith("<|im_start|>assistant\n")
