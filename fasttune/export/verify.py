"""Is a file the trained model? Measured on every export (invariant E5), against reference.py's float32.

1. Token ids: llama.cpp must give TEXTS and the rendered check conversation the ids of the training tokenizer.
2. Exactness: an F16 file must be within EXACT of the trained model, in KL(trained ‖ file). Nothing but a fault in
   writing makes it differ. All types that llama.cpp quantizes are made from an F16 file that has passed; a file of
   another type that is written here (q8_0, bf16) must not be DAMAGED.
3. The adapter: a file in a FINE type that is nearer to the base than to the trained model does not hold it.

How much of the training a type keeps is no fault of the file; kept.py measures it and verdict.py says what follows.

A bfloat16 reference would be as far from the trained model as a Q4_K_M file is. Where llama_cpp can't be used nothing
is measured, and the artifact's checks say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fasttune.console import FasttuneError, _, error
from fasttune.data import rendering
from fasttune.export import chatml, llama
from fasttune.export.kept import Distances, Passage, Reference, measure_file
from fasttune.export.weights import Base
from fasttune.training.packing import common_prefix

POSITIONS = 192
MAX_TOKENS = 512  # of the check conversation: of a longer one, with a long system prompt, the last tokens are taken
EXACT = 1e-3  # nats; measured 3e-6 (Qwen2.5-0.5B)
DAMAGED = 1.0  # nats: no type that is written here loses so much by nature (q8_0 2e-3)
FINE = ("f16", "bf16", "q8_0")  # too fine to round an adapter away
LOST = 0.5  # of a training that changed next to nothing, file, base and trained model are equally far apart
# All in Unicode's composed form (NFC): the Hugging Face tokenizer normalizes to it, llama.cpp does not.
TEXTS = (
    "你好，世界！今天天气怎么样？",
    "繁體中文與简体混排，「引号」——破折号……",
    "The quick brown fox doesn't jump over 1234567890 lazy dogs; it's THEIR'S.",
    "日本語のテキストと한국어 텍스트",
    "สวัสดีครับ مرحبا שלום привет",
    "🚀 (normal) 😶‍🌫️ 👨‍👩‍👧‍👦 ✅ 🇨🇳",
    "  leading, trailing  and   inner    spaces \t\ttabs\t ",
    "line\nline\r\nline\n\n\n   indented\n",
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\"  # 注释\n\n\nif __name__ == '__main__':\n\tprint(f(42))",
    '{"键": [1, 2.5, -3e10, null, true], "url": "https://example.org/?q=a&b=c#d"}',
    "<|im_start|>system\n你是林栀。<|im_end|>\n<|im_start|>user\n在吗？<|im_end|>\n<|im_start|>assistant\n",
    "plain <|im_end|> in the middle<|endoftext|>",
    "<b>html</b> < | im_start | > <not_special> [PAD1] ▁ Ġ Ċ",
    "½ ² ℃ ① Ⅷ 〇 ㎏ ﬁ ａｂｃ",
    "零\u200b宽\u200d空\ufeff格 nbsp\u00a0here",
    "C'est l'été à la façade; Straße, naïve, Łódź",
)
CONVERSATION: list[chatml.Message] = [
    {"role": "user", "content": "你好呀，先介绍一下你自己吧。你平时喜欢做什么？"},
    {
        "role": "assistant",
        "content": "你好！很高兴认识你。我喜欢在安静的下午读书，也喜欢听雨声，偶尔会写一点东西。"
        "如果你有烦心事，可以慢慢说给我听。",
    },
    {
        "role": "user",
        "content": "Thanks! Can you write a short Python function that adds up the even numbers of a list?",
    },
    {
        "role": "assistant",
        "content": "Of course:\n\n```python\ndef sum_even(numbers):\n    return sum(n for n in numbers if n % 2 == 0)\n"
        "```\n\nIt goes through the list once and keeps only what two divides.",
    },
    {"role": "user", "content": "谢谢，那 sum_even([1, 2, 3, 4]) 等于多少？今天是2024年5月1日，天气晴，气温23.5℃。"},
    {"role": "assistant", "content": "等于 6，因为 2 + 4 = 6。天气这么好，记得出去走走，晒晒太阳。"},
]


def check_passage(base: Base, tokenizer: chatml.Tokenizer, system: str | None) -> Passage:
    """The check conversation after the system prompt, rendered as in training: the last MAX_TOKENS of its tokens, of
    which the last POSITIONS are measured."""
    opening = [{"role": "system", "content": system}] if system is not None else []
    ids = encode(tokenizer, rendering.render_checked(tokenizer, [*opening, *CONVERSATION]))
    ids = ids[-min(MAX_TOKENS, base.shape.context_length) :]
    return Passage(tuple(ids), ((max(1, len(ids) - POSITIONS), len(ids)),))


def check_tokens(path: Path, tokenizer: chatml.Tokenizer) -> dict[str, Any]:
    """The figures of the token check; raises FasttuneError for a text that llama.cpp tokenizes differently."""
    texts = [*TEXTS, rendering.render_checked(tokenizer, CONVERSATION)]
    with llama.open_gguf(path, 0, vocab_only=True) as model:
        for text in texts:
            compare_ids(path, text, encode(tokenizer, text), model.tokenize(text))
    return {"texts": len(texts), "equal": True}


def compare_ids(path: Path, text: str, expected: list[int], found: list[int]) -> None:
    """Raises FasttuneError where llama.cpp's ids of a text, `found`, differ from the training tokenizer's."""
    if expected == found:
        return
    at = common_prefix(expected, found)
    what = _(
        "llama.cpp tokenizes {text} differently from training, from token {at} on: {found} instead of {expected}",
        text=repr(text[:40]),
        at=at,
        found=found[at : at + 4],
        expected=expected[at : at + 4],
    )
    why = _("llama.cpp would tokenize prompts differently from training")
    fix = _("take tokenizer.json from the model as published")
    raise error("tokens-differ", what, where=path.name, why=why, fix=fix)


def check_file(path: Path, quantization: str, reference: Reference) -> dict[str, Any]:
    """The figures of the exactness of a file on the reference's passages.

    Raises FasttuneError for a file whose logits are not finite, for an F16 file beyond EXACT, for another one that is
    DAMAGED, and for one that does not hold the adapter.
    """
    with llama.open_gguf(path, context_for(reference)) as model:
        found = measure_file(model, reference, from_base=quantization in FINE)
    return check_distances(path, quantization, found)


def check_distances(path: Path, quantization: str, found: Distances) -> dict[str, Any]:
    """As `check_file`, of a file that was measured."""
    kl, limit = float(found.kl.mean()), EXACT if quantization == "f16" else DAMAGED
    if not np.isfinite(found.kl).all():
        raise error("gguf-not-finite", _("its logits are not finite"), where=path.name, fix=_("train again"))
    figures = {"positions": len(found.kl), "kl_mean": kl, "kl_p99": float(np.quantile(found.kl, 0.99)),
               "top1": float(found.same_top.mean())}  # fmt: skip
    if found.from_base is not None:
        figures["kl_from_base"] = float(found.from_base.mean())
        if figures["kl_from_base"] < LOST * kl:
            raise adapter_missing(path, figures["kl_from_base"], kl)
    if quantization in FINE and kl > limit:
        what = _("{quantization} is not the trained model: KL {kl:.2g} (at most {limit:.2g}) over {positions} tokens",
                 quantization=quantization, kl=kl, limit=limit, positions=len(found.kl))  # fmt: skip
        fix = _("export again; if it fails again, please report it with the run's provenance.json")
        raise error("gguf-too-far", what, where=path.name, why=_("it would not answer as trained"), fix=fix)
    return figures


def context_for(reference: Reference) -> int:
    """The context in tokens that the passages of a reference need."""
    return max(len(passage.tokens) for passage in reference.passages) + 1


def adapter_missing(path: Path, from_base: float, from_trained: float) -> FasttuneError:
    """The error for a file that predicts what the base predicts, rather than what the trained model does."""
    what = _("the adapter is not in the file: KL {base:.2g} from the base, {trained:.2g} from the trained model",
             base=from_base, trained=from_trained)  # fmt: skip
    fix = _("please report this with the run's provenance.json")
    return error("adapter-not-in-file", what, where=path.name, why=_("it would answer as the base does"), fix=fix)


def encode(tokenizer: chatml.Tokenizer, text: str) -> list[int]:
    """Token ids of a text; special tokens in it are recognized, none are added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
