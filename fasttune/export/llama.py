"""A GGUF file in llama.cpp: load it, tokenize text, compute logits, and generate answers.

Everything goes through libllama's C functions as llama-cpp-python binds them. Its high-level `Llama` class is not used,
because it loses tokens of more than 32 bytes and redirects file descriptors while it loads. llama.cpp's log is kept in
memory; its last line is the reason in an error.

    with open_gguf(path, num_ctx=2048) as model:
        print(answer(model, prompt_ids, Sampling(max_new_tokens=200)))
        for piece in stream(model, prompt_ids, Sampling(max_new_tokens=200, temperature=0.7)):
            print(piece, end="")
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import ctypes
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fasttune.console import FasttuneError, _, error
from fasttune.export.source_files import FloatArray
from fasttune.training.packing import common_prefix

BATCH_TOKENS = 512
SMALL_BYTES = 64 << 20
REPEAT_LAST_N = 64  # tokens; llama.cpp's and Ollama's default
log: collections.deque[str] = collections.deque(maxlen=40)


def import_failure() -> str | None:
    """Why llama_cpp can't be used on this machine; None where it can."""
    try:
        library()
    except (ImportError, OSError, RuntimeError) as failure:
        return str(failure)
    return None


@functools.cache
def library() -> ModuleType:
    """llama_cpp, with its log going to `log`. Raises ImportError, OSError or RuntimeError where it can't be used."""
    import llama_cpp

    llama_cpp.llama_log_set(log_callback(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def log_callback() -> Any:
    """The C callback that appends to `log`; cached, because libllama calls it for as long as the process lives."""
    import llama_cpp

    def append(level: int, text: bytes, user_data: Any) -> None:
        log.append(text.decode("utf-8", errors="replace"))

    return llama_cpp.llama_log_callback(append)


def last_log_line() -> str:
    """The last line of llama.cpp's log."""
    lines = [line for line in "".join(log).splitlines() if line.strip()]
    return lines[-1] if lines else _("llama.cpp gave no reason")


class Model:
    """A loaded GGUF, made by `open_gguf`; `num_ctx` is the context length in tokens, `vocab_size` the number of logits.

    The keys and values of the last sequence stay in the cache, so a chat's next turn computes only its new tokens.
    """

    def __init__(self, path: Path, num_ctx: int, vocab_only: bool, lora: Path | None = None) -> None:
        self.lib = library()
        self.path = path
        self.cached_ids: list[int] = []
        self.context: Any = None
        settings = self.lib.llama_model_default_params()
        settings.vocab_only = vocab_only
        log.clear()
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), settings)
        if not self.model:
            raise load_error(path)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.vocab_size = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self.num_ctx = num_ctx
        if not vocab_only:
            self.make_context()
        if lora is not None:
            self.add_lora(lora)

    def make_context(self) -> None:
        """Allocate the cache and the batch. Raises FasttuneError where llama.cpp can't."""
        settings = self.lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self.num_ctx, BATCH_TOKENS, BATCH_TOKENS
        small = self.path.stat().st_size < SMALL_BYTES  # waking a second thread takes longer than its products
        settings.n_threads = settings.n_threads_batch = 1 if small else thread_count()
        settings.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        self.context = self.lib.llama_init_from_model(self.model, settings)
        if not self.context:
            self.close()
            raise load_error(self.path)
        self.batch = self.lib.llama_batch_init(BATCH_TOKENS, 0, 1)

    def add_lora(self, path: Path) -> None:
        """Use a GGUF adapter with the model. Raises FasttuneError where llama.cpp does not take it."""
        adapter = self.lib.llama_adapter_lora_init(self.model, os.fsencode(path))  # freed with the model
        adapters = (self.lib.llama_adapter_lora_p_ctypes * 1)(adapter)
        if not adapter or self.lib.llama_set_adapters_lora(self.context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
            self.close()
            raise load_error(path)

    def close(self) -> None:
        """Free what llama.cpp holds; harmless when called again."""
        if self.context:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
            self.context = None
        if self.model:
            self.lib.llama_model_free(self.model)
            self.model = None

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it are recognized, no start token is added."""
        data = text.encode("utf-8")
        capacity = len(data) + 8
        ids = (self.lib.llama_token * capacity)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, capacity, False, True)
        return list(ids[:count])

    def token_bytes(self, token: int) -> bytes:
        """The text of a token as bytes, which may be a part of a character; empty for special tokens."""
        capacity = 256
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = int(self.lib.llama_token_to_piece(self.vocab, token, buffer, capacity, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count

    def ends_generation(self, token: int) -> bool:
        """Whether a token ends the answer (<|im_end|>, <|endoftext|>)."""
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    def logits(self, ids: Sequence[int], last: int = 1) -> FloatArray:
        """Logits (last, vocab_size) at the last positions of a sequence. The prefix that it shares with the last call's
        sequence is not computed again. Raises FasttuneError where llama.cpp can't compute it."""
        keep = common_prefix(self.cached_ids, ids[: len(ids) - last])
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, keep, -1)
        rows = []
        for start in range(keep, len(ids), BATCH_TOKENS):
            self.cached_ids = list(ids[:start])
            batch = ids[start : start + BATCH_TOKENS]
            rows += self.decode(batch, start, first_output=len(ids) - last - start)
        self.cached_ids = list(ids)
        return np.stack(rows)

    def decode(self, ids: Sequence[int], start: int, first_output: int) -> list[FloatArray]:
        """Run up to BATCH_TOKENS ids at the positions from `start`; logits (vocab_size) of those from index
        `first_output` on."""
        self.batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            self.batch.token[index], self.batch.pos[index] = token, start + index
            self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, 0
            self.batch.logits[index] = index >= first_output
        status = self.lib.llama_decode(self.context, self.batch)
        if status != 0:
            raise error("gguf-cannot-run", last_log_line(), where=str(self.path), why=f"llama_decode = {status}")
        outputs = range(max(0, first_output), len(ids))
        pointers = (self.lib.llama_get_logits_ith(self.context, index) for index in outputs)
        return [np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).copy() for pointer in pointers]


@contextlib.contextmanager
def open_gguf(path: Path, num_ctx: int, *, vocab_only: bool = False, lora: Path | None = None) -> Iterator[Model]:
    """A loaded GGUF with a context of `num_ctx` tokens, with the GGUF adapter in `lora`.

    Raises FasttuneError where llama.cpp can't load them.
    """
    reason = import_failure()
    if reason is not None:
        what = _("llama-cpp-python can't be used: {reason}", reason=reason)
        raise error("llama-cpp-missing", what, fix=install_hint())
    model = Model(path, num_ctx, vocab_only, lora)
    try:
        yield model
    finally:
        model.close()


@dataclass(frozen=True)
class Sampling:
    """How a token is sampled: the likeliest one at temperature 0, else from the `top_k` likeliest (0: all), and of
    these from the most probable that add up to `top_p`. Before that, `repeat_penalty` lowers the score of each token
    that is among the last REPEAT_LAST_N, as llama.cpp does it (1: it does not)."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 0.8
    seed: int = 0
    top_k: int = 0
    repeat_penalty: float = 1.0

    @property
    def is_plain_greedy(self) -> bool:
        """Whether each token is simply the one with the highest logit."""
        return self.temperature <= 0 and self.repeat_penalty == 1.0


def answer(model: Model, prompt_ids: Sequence[int], sampling: Sampling) -> str:
    """The whole answer to a prompt of token ids. Raises FasttuneError as `stream` does."""
    return "".join(stream(model, prompt_ids, sampling))


def stream(model: Model, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """Pieces of the answer as they are generated; a character whose bytes are split among tokens comes in one piece.

    Ends at the end token, after `max_new_tokens`, or where the context is full. Raises FasttuneError for a prompt that
    fills the context.
    """
    return (text for text in token_texts(model, prompt_ids, sampling) if text)


def token_texts(model: Model, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """The same with one text a token: "" for a token in the middle of a character."""
    if len(prompt_ids) >= model.num_ctx:
        raise prompt_too_long(len(prompt_ids), model.num_ctx)
    yield from decode_utf8(generate(model, list(prompt_ids), sampling))


def prompt_too_long(count: int, room: int) -> FasttuneError:
    """The error for a prompt of `count` tokens that fills a context of `room`."""
    what = _("the prompt has {count} tokens, the context {room}", count=count, room=room)
    return error("prompt-too-long", what, fix=_("start a new conversation or raise export.num_ctx"))


def generate(model: Model, ids: list[int], sampling: Sampling) -> Iterator[bytes]:
    """The bytes of each generated token, which is appended to `ids`."""
    random = random_numbers(sampling)
    for _number in range(min(sampling.max_new_tokens, model.num_ctx - len(ids))):
        token = next_token(model.logits(ids)[0], ids, sampling, random)
        if model.ends_generation(token):
            break
        ids.append(token)
        yield model.token_bytes(token)


def random_numbers(sampling: Sampling) -> np.random.Generator:
    """The random numbers of one answer, from their beginning."""
    return np.random.default_rng(sampling.seed)


def decode_utf8(pieces: Iterable[bytes]) -> Iterator[str]:
    """The text of each piece, whole characters alone: "" where one goes on in the next piece. Bytes that are no UTF-8
    become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        yield decoder.decode(piece)
    if text := decoder.decode(b"", final=True):
        yield text


def next_token(logits: FloatArray, ids: Sequence[int], sampling: Sampling, random: np.random.Generator) -> int:
    """The token after a sequence, prompt included, from its logits (vocab_size): penalized, then sampled."""
    return sample_token(penalized(logits, ids, sampling.repeat_penalty), sampling, random)


def penalized(logits: FloatArray, ids: Sequence[int], penalty: float) -> FloatArray:
    """Logits (vocab_size) with those of the last REPEAT_LAST_N tokens of a sequence made smaller: a positive one is
    divided by the penalty, a negative one multiplied (llama-sampler.cpp, llama_sampler_penalties_apply)."""
    if penalty == 1.0:
        return logits
    recent = np.unique(np.asarray(ids[-REPEAT_LAST_N:], dtype=np.int64))
    lowered = logits.copy()
    lowered[recent] = np.where(logits[recent] <= 0, logits[recent] * penalty, logits[recent] / penalty)
    return lowered


def sample_token(logits: FloatArray, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token by temperature, top-k and nucleus (top-p) sampling from logits (vocab_size)."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)[: sampling.top_k or None]
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / sampling.temperature)
    weights /= weights.sum()
    count = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
    return int(random.choice(order[:count], p=weights[:count] / weights[:count].sum()))


def thread_count() -> int:
    """Threads to compute with: above 4 logical cores one for two of them, as a core's second thread slows products."""
    count = os.cpu_count() or 1
    return count if count <= 4 else count // 2


def load_error(path: Path) -> FasttuneError:
    """The error for a file that llama.cpp can't load, with its reason."""
    return error("gguf-cannot-load", _("llama.cpp can't load it: {reason}", reason=last_log_line()), where=str(path))


def install_hint() -> str:
    """How to get llama-cpp-python."""
    return _("run `make quickstart` again, or `pip install llama-cpp-python` (needs a C++ compiler)")
