"""Does a file predict what the trained model predicts? Measured on every export (invariant E5).

1. Token ids: llama.cpp must give TEXTS and the rendered check conversation the ids of the training tokenizer.
2. Logits at the last POSITIONS of the check conversation. An F16 file must be within THRESHOLDS: KL(trained ‖ file) and
   the share of equal top-1 tokens; nothing but a fault in writing it makes it differ. Of a file in one of
   the FINE types, KL(base ‖ file) must be at least LOST * KL(trained ‖ file), or the adapter is not in it. A file in a
   coarser type that is beyond its THRESHOLDS, or nearer to the base, is written all the same, with a warning: that
   loss is the type's own on this base, and the user asked for the type.

The trained model's logits are those of reference.py, float32 from base and adapter; a bfloat16 reference would be as
far from the trained model as a Q4_K_M file is.

Where llama_cpp can't be used nothing is measured, and the artifact's checks say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fasttune.console import FasttuneError, Finding, _, error
from fasttune.data import rendering
from fasttune.export import chatml, llama
from fasttune.export.reference import forward, log_softmax
from fasttune.export.source_files import FloatArray
from fasttune.export.weights import Base, Loras
from fasttune.training.packing import common_prefix

POSITIONS = 192
MAX_TOKENS = 512  # of the check conversation: of a longer one, with a long system prompt, the last tokens are taken
# Quantization type -> (largest mean KL in nats, smallest share of equal top-1 tokens). Measured with Qwen2.5-0.5B on
# 193 positions of Chinese, English and code: F16 3e-6 and 100 %, Q8_0 7e-4 and 98 %, Q4_K_M 5e-3 and 96 %, Q3_K_M 4e-2
# and 91 %, Q2_K 7e-2 and 88 %. The thresholds leave about a factor of ten for smaller models and other data.
THRESHOLDS = {
    "f16": (1e-3, 0.99),
    "q8_0": (5e-3, 0.95),
    "q6_k": (2e-2, 0.92),
    "q5_k_m": (5e-2, 0.90),
    "q5_k_s": (5e-2, 0.90),
    "q4_k_m": (5e-2, 0.85),
    "q4_k_s": (6e-2, 0.85),
    "q3_k_l": (2e-1, 0.75),
    "q3_k_m": (2e-1, 0.75),
    "q3_k_s": (3e-1, 0.70),
    "q2_k": (5e-1, 0.60),
}
FINE = ("f16", "q8_0")  # too fine to round an adapter away
LOST = 0.5  # of a training that changed next to nothing, file, base and trained model are equally far apart
BROKEN = 1.0  # nats: no type loses so much (Q2_K: 0.07); the file is damaged
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


@dataclass(frozen=True)
class Divergence:
    """How far a file is from the trained model over `positions` tokens: KL in nats, share of equal top-1 tokens."""

    positions: int
    kl_mean: float
    kl_p99: float
    top1: float


@dataclass(frozen=True)
class Reference:
    """The trained model's `logits` (positions, vocab_size) at the last positions of the sequence `ids`, and those of
    the base without its adapter; None where there is no adapter."""

    ids: list[int]
    logits: FloatArray
    base_logits: FloatArray | None = None


def check_ids(base: Base, tokenizer: chatml.Tokenizer, system: str | None) -> list[int]:
    """Token ids of the check conversation after the system prompt, rendered as in training; the last MAX_TOKENS."""
    opening = [{"role": "system", "content": system}] if system is not None else []
    rendered = rendering.render_checked(tokenizer, [*opening, *CONVERSATION])
    ids = encode(tokenizer, rendered)
    return ids[-min(MAX_TOKENS, base.shape.context_length) :]


def compute_reference(base: Base, loras: Loras, ids: list[int]) -> Reference:
    """The reference outputs at the last POSITIONS of `ids`, in float32."""
    count = min(POSITIONS, len(ids))
    return Reference(ids, forward(base, loras, ids, count), forward(base, {}, ids, count) if loras else None)


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


def check_logits(path: Path, quantization: str, reference: Reference) -> dict[str, Any]:
    """The figures of the logits check. Raises FasttuneError for an F16 file beyond its THRESHOLDS, for a file that
    holds no adapter, and for one that is BROKEN."""
    with llama.open_gguf(path, len(reference.ids) + 1) as model:
        logits = model.logits(reference.ids, last=len(reference.logits))
    if not np.isfinite(logits).all():
        raise error("gguf-not-finite", _("its logits are not finite"), where=path.name, fix=_("train again"))
    measured = divergence(reference.logits, logits)
    from_base = kl_from_base(reference, logits)
    if quantization in FINE and from_base < LOST * measured.kl_mean:
        raise adapter_missing(path, from_base, measured.kl_mean)
    kl_limit, top1_limit = THRESHOLDS[quantization]
    is_far = measured.kl_mean > kl_limit or measured.top1 < top1_limit
    if is_far and (quantization == "f16" or measured.kl_mean > BROKEN):
        what = _(
            "{quantization} is too far from the trained model: KL {kl:.2g} (at most {kl_limit:.2g}), same top-1 token "
            "{top1:.1%} (at least {top1_limit:.0%}) over {positions} tokens",
            quantization=quantization,
            kl=measured.kl_mean,
            kl_limit=kl_limit,
            top1=measured.top1,
            top1_limit=top1_limit,
            positions=measured.positions,
        )
        fix = _("export a larger type (q8_0, f16); if f16 fails too, please report it")
        raise error("gguf-too-far", what, where=path.name, why=_("it would not answer as trained"), fix=fix)
    figures = {**asdict(measured), "kl_limit": kl_limit, "top1_limit": top1_limit}
    return figures if math.isinf(from_base) else {**figures, "kl_from_base": from_base}


def kl_from_base(reference: Reference, logits: FloatArray) -> float:
    """The mean KL(base ‖ file) in nats; infinite where there is no adapter."""
    return math.inf if reference.base_logits is None else divergence(reference.base_logits, logits).kl_mean


def adapter_missing(path: Path, from_base: float, from_trained: float) -> FasttuneError:
    """The error for a file that predicts what the base predicts, rather than what the trained model does."""
    what = _("the adapter is not in the file: KL {base:.2g} from the base, {trained:.2g} from the trained model",
             base=from_base, trained=from_trained)  # fmt: skip
    fix = _("please report this with the run's provenance.json")
    return error("adapter-not-in-file", what, where=path.name, why=_("it would answer as the base does"), fix=fix)


def type_loss(name: str, quantization: str, figures: Mapping[str, Any]) -> Finding | None:
    """The warning that a quantized file is beyond its THRESHOLDS, or has lost what was learned."""
    is_near = figures["kl_mean"] <= figures["kl_limit"] and figures["top1"] >= figures["top1_limit"]
    from_base = figures.get("kl_from_base", math.inf)
    why = _("a base whose weights were quantized to this type before loses the adapter when they are rounded again")
    fix = _("compare its answers; a larger type keeps more: export.gguf = q6_k or q8_0")
    if from_base < LOST * figures["kl_mean"] and not is_near:
        what = _("{quantization} rounds the training away, the file answers nearly as the base does: KL {base:.2g} "
                 "from the base, {trained:.2g} from the trained model", quantization=quantization, base=from_base,
                 trained=figures["kl_mean"])  # fmt: skip
        return Finding("gguf-loses-training", "warning", name, what, why, fix)
    if is_near:
        return None
    what = _("{quantization} loses much of this model: KL {kl:.2g} (usually below {kl_limit:.2g}), same top-1 token "
             "{top1:.1%}", quantization=quantization, kl=figures["kl_mean"], kl_limit=figures["kl_limit"],
             top1=figures["top1"])  # fmt: skip
    return Finding("gguf-loses-much", "warning", name, what, why, fix)


def divergence(trained: FloatArray, measured: FloatArray) -> Divergence:
    """KL(trained ‖ measured) and top-1 agreement of two arrays of logits (positions, vocab_size)."""
    kl = np.array([row_divergence(one, other) for one, other in zip(trained, measured, strict=True)])
    same = trained.argmax(axis=1) == measured.argmax(axis=1)
    return Divergence(len(kl), float(kl.mean()), float(np.quantile(kl, 0.99)), float(same.mean()))


def row_divergence(trained: FloatArray, measured: FloatArray) -> float:
    """KL in nats of logits (vocab_size) at one position; float64, as 150,000 rounded float32 terms sum to 1e-5."""
    one, other = log_softmax(trained.astype(np.float64)), log_softmax(measured.astype(np.float64))
    return float((np.exp(one) * (one - other)).sum())


def encode(tokenizer: chatml.Tokenizer, text: str) -> list[int]:
    """Token ids of a text; special tokens in it are recognized, none are added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
