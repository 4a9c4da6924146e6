"""A GGUF file in llama.cpp: load it, cut text into ids, get logits, and answer.

Everything goes through libllama's C functions as llama-cpp-python binds them; its high-level `Llama` class is not used:
it loses tokens of more than 32 bytes and redirects file descriptors while it loads. llama.cpp's own log is kept in
memory and shown only as the reason of an error.

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

from fasttune.console import _, error
from fasttune.export.weights import FloatArray
from fasttune.training.packing import common_prefix

BATCH = 512
SMALL_BYTES = 64 << 20
log: collections.deque[str] = collections.deque(maxlen=40)


def why_unusable() -> str | None:
    """Why llama_cpp can't be imported here; None where it can."""
    try:
        library()
    except (ImportError, OSError, RuntimeError) as problem:
        return str(problem)
    return None


@functools.cache
def library() -> ModuleType:
    """llama_cpp with its log turned to `log`. Raises ImportError, OSError or RuntimeError where it can't be used."""
    import llama_cpp

    llama_cpp.llama_log_set(keep_log(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def keep_log() -> Any:
    """The C callback; cached, because libllama calls it for as long as the process lives."""
    import llama_cpp

    def keep(level: int, text: bytes, user_data: Any) -> None:
        log.append(text.decode("utf-8", errors="replace"))

    return llama_cpp.llama_log_callback(keep)


def last_log_line() -> str:
    """What llama.cpp said last."""
    lines = [line for line in "".join(log).splitlines() if line.strip()]
    return lines[-1] if lines else _("llama.cpp gave no reason")


class Model:
    """A loaded GGUF, made by `open_gguf`. The last sequence stays in its cache, so that a chat is not read twice."""

    def __init__(self, path: Path, num_ctx: int, vocab_only: bool) -> None:
        self.lib = library()
        self.path = path
        self.cached: list[int] = []
        self.context: Any = None
        settings = self.lib.llama_model_default_params()
        settings.vocab_only = vocab_only
        log.clear()
        self.model = self.lib.llama_model_load_from_file(os.fsencode(path), settings)
        if not self.model:
            raise unloadable(path)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.size = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self.num_ctx = num_ctx
        if not vocab_only:
            self.make_context()

    def make_context(self) -> None:
        settings = self.lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self.num_ctx, BATCH, BATCH
        small = self.path.stat().st_size < SMALL_BYTES  # its products are done before a second thread is awake
        settings.n_threads = settings.n_threads_batch = 1 if small else threads()
        settings.flash_attn_type = self.lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        self.context = self.lib.llama_init_from_model(self.model, settings)
        if not self.context:
            self.close()
            raise unloadable(self.path)
        self.batch = self.lib.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        if self.context:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
            self.context = None
        if self.model:
            self.lib.llama_model_free(self.model)
            self.model = None

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; special tokens in it are read as such, no start token is added."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, False, True)
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one id; nothing for special tokens."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = int(self.lib.llama_token_to_piece(self.vocab, token, buffer, room, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def ends(self, token: int) -> bool:
        """Whether an id ends the answer (<|im_end|>, <|endoftext|>)."""
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    def logits(self, ids: Sequence[int], last: int = 1) -> FloatArray:
        """Logits (last, vocabulary) at the last positions of a sequence; what the cache has is not computed again."""
        keep = common_prefix(self.cached, ids[: len(ids) - last])
        self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, keep, -1)
        rows = []
        for start in range(keep, len(ids), BATCH):
            self.cached = list(ids[:start])
            part = ids[start : start + BATCH]
            wanted = [start + index >= len(ids) - last for index in range(len(part))]
            rows += self.decode(part, start, wanted)
        self.cached = list(ids)
        return np.stack(rows)

    def decode(self, part: Sequence[int], start: int, wanted: Sequence[bool]) -> list[FloatArray]:
        """Run up to BATCH ids at positions from `start`; logits of those wanted."""
        self.batch.n_tokens = len(part)
        for index, token in enumerate(part):
            self.batch.token[index], self.batch.pos[index] = token, start + index
            self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, 0
            self.batch.logits[index] = wanted[index]
        status = self.lib.llama_decode(self.context, self.batch)
        if status != 0:
            raise error("gguf-cannot-run", last_log_line(), where=str(self.path), why=f"llama_decode = {status}")
        pointers = (self.lib.llama_get_logits_ith(self.context, index) for index in range(len(part)) if wanted[index])
        return [np.ctypeslib.as_array(pointer, shape=(self.size,)).copy() for pointer in pointers]


@contextlib.contextmanager
def open_gguf(path: Path, num_ctx: int, *, vocab_only: bool = False) -> Iterator[Model]:
    """A loaded GGUF with a context of so many ids. Raises FasttuneError where llama.cpp can't load it."""
    reason = why_unusable()
    if reason is not None:
        what = _("llama-cpp-python can't be used: {reason}", reason=reason)
        raise error("llama-cpp-missing", what, fix=install_hint())
    model = Model(path, num_ctx, vocab_only)
    try:
        yield model
    finally:
        model.close()


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen: the likeliest at `temperature` 0, else drawn from the likeliest that reach `top_p`."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 0.8
    seed: int = 0


def answer(model: Model, prompt_ids: Sequence[int], sampling: Sampling) -> str:
    """The whole answer to a prompt of ids."""
    return "".join(stream(model, prompt_ids, sampling))


def stream(model: Model, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """Pieces of the answer as they come; a character whose bytes lie in several ids comes out whole.

    Ends at the end token, after `max_new_tokens`, or where the context is full. Raises FasttuneError for a prompt that
    leaves no room.
    """
    if len(prompt_ids) >= model.num_ctx:
        what = _("the prompt has {count} tokens, the context {room}", count=len(prompt_ids), room=model.num_ctx)
        raise error("prompt-too-long", what, fix=_("start a new conversation or raise export.num_ctx"))
    yield from decoded(generate(model, list(prompt_ids), sampling))


def generate(model: Model, ids: list[int], sampling: Sampling) -> Iterator[bytes]:
    """The bytes of one id after the other."""
    random = np.random.default_rng(sampling.seed)
    for _number in range(min(sampling.max_new_tokens, model.num_ctx - len(ids))):
        token = choose(model.logits(ids)[0], sampling, random)
        if model.ends(token):
            break
        ids.append(token)
        yield model.piece(token)


def decoded(pieces: Iterable[bytes]) -> Iterator[str]:
    """UTF-8 text in pieces that never cut a character in two."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def choose(logits: FloatArray, sampling: Sampling, random: np.random.Generator) -> int:
    """The next id."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(-logits)
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / sampling.temperature)
    weights /= weights.sum()
    count = int(np.searchsorted(np.cumsum(weights), sampling.top_p)) + 1
    return int(random.choice(order[:count], p=weights[:count] / weights[:count].sum()))


def threads() -> int:
    """Cores to compute with: the second thread of a core slows matrix products down on larger machines."""
    count = os.cpu_count() or 1
    return count if count <= 4 else count // 2


def unloadable(path: Path) -> Exception:
    return error("gguf-cannot-load", _("llama.cpp can't load it: {reason}", reason=last_log_line()), where=str(path))


def install_hint() -> str:
    """How to get llama-cpp-python."""
    return _("run `make quickstart` again, or `pip install llama-cpp-python` (needs a C++ compiler)")
