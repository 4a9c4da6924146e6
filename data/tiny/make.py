"""Make `builtin:tiny`: a Qwen2-architecture base of 4.5 million parameters, trained from scratch on the text in here.

    python data/tiny/make.py                      # everything, into fasttune/tiny/
    python data/tiny/make.py --steps 100 --out X  # a short training into another folder

The stages, in order: read the hand-written files and let `grammar.py` write the rest (`corpus`), train a byte-level BPE
with exactly Qwen2's normalizer and pre-tokenizer (`make_tokenizer`), lay whole documents into rows (`rows_of`), train a
`Qwen2ForCausalLM` in float32 on the CPU (`train`), save it in bfloat16 (`save`) and score what was saved on held-out
documents (`held_out_loss`). It needs torch, transformers and tokenizers only. README.md has the figures it reached.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from grammar import CHARACTERS, SENTENCE, Chat, exercise, filled, generate, read_blocks
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "fasttune" / "tiny"
SEED = 3407
VOCABULARY = 5120
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROW = 256  # tokens; a document that is longer is cut here
HELD_OUT = 25  # every 25th document is never trained on

# The Split expression of Qwen2's tokenizer.json, character for character: llama.cpp's "qwen2" pre-tokenizer.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- if not messages or messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Bland system prompts; None is the template's own. Weighted by repetition.
SYSTEMS = (
    None,
    None,
    None,
    "你是一个有用的助手。",
    "你是一个乐于助人的助手，请用简短的话回答。",
    "You are a helpful assistant.",
    "You are a polite assistant. Answer briefly.",
    "请回答用户的问题。",
)

OPENINGS_EN = ("", "", "", "", "Please tell me: ", "I have a question. ")
OPENINGS_ZH = ("", "", "", "", "", "请问，", "我想问一下，", "请告诉我，")


@dataclass(frozen=True)
class Corpus:
    """Documents as text: chats already rendered in ChatML, plain texts ending with `<|endoftext|>`."""

    train: list[str]
    held_out: list[str]
    plain: list[str]  # what the tokenizer is trained on: no special tokens


def written_chats() -> list[Chat]:
    """The hand-written chats: lines of a block alternate between user and assistant, `|` separates wordings."""
    blocks = [block for path in sorted(HERE.glob("chats.*.txt")) for block in read_blocks(path)]
    odd = [block for block in blocks if len(block) % 2]
    if odd:
        raise ValueError(f"a chat block needs an even number of lines: {odd[0]}")
    return blocks


def written_texts() -> list[str]:
    """The hand-written stories and descriptions, one document a block."""
    return ["\n".join(block) for path in sorted(HERE.glob("texts.*.txt")) for block in read_blocks(path)]


def chatml(chat: Chat, system: str | None) -> str:
    """The text the chat template makes of a chat."""
    turns = [("system", system or "You are a helpful assistant.")]
    turns += [(("user", "assistant")[index % 2], line) for index, line in enumerate(chat)]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def joined(chats: list[Chat], rng: random.Random) -> Chat:
    """One to three chats after one another as one conversation, the questions put in one of a few ways."""
    lines: list[str] = []
    wordings = [1 + chat[0].count("|") for chat in chats]  # a chat with more wordings comes more often
    for chat in rng.choices(chats, wordings, k=rng.choice((1, 1, 1, 2, 2, 3))):
        zh = not chat[0].isascii()
        question, *rest = filled(chat, zh, rng)
        lines += [rng.choice(OPENINGS_ZH if zh else OPENINGS_EN) + question, *rest]
    return tuple(lines)


def corpus(size: int, repeats: int) -> Corpus:
    """`size` generated documents and the hand-written ones `repeats` times, shuffled.

    Every HELD_OUT-th generated document and text is held out (before anything is repeated, so that none is on both
    sides); of the hand-written chats, each one of its kind, none is.
    """
    rng = random.Random(SEED)
    made_chats, made_texts = generate(size, rng)
    made = [chatml(chat, rng.choice(SYSTEMS)) for chat in made_chats] + [text + SPECIAL[0] for text in made_texts]
    chats, texts = written_chats(), written_texts()
    rng.shuffle(made)
    rng.shuffle(texts)
    made_cut, text_cut = len(made) // HELD_OUT, len(texts) // HELD_OUT
    held_out = made[:made_cut] + [text + SPECIAL[0] for text in texts[:text_cut]]
    texts = texts[text_cut:]
    talks = [joined(chats, rng) for _ in range(len(chats) * repeats)]
    talks += [exercise(text, rng) for text in texts * repeats * 4 if len(SENTENCE.findall(text)) > 1]
    train = made[made_cut:] + [text + SPECIAL[0] for text in texts] * repeats
    train += [chatml(talk, rng.choice(SYSTEMS)) for talk in talks]
    rng.shuffle(train)
    plain = [*(wording for chat in chats for line in chat for wording in line.split("|")), *texts] * 10
    plain += [*(line for chat in made_chats[::5] for line in chat), *made_texts[::5]]
    return Corpus(train, sorted(set(held_out) - set(train)), plain)


def make_tokenizer(lines: list[str], out: Path) -> None:
    """Train the BPE and write tokenizer.json, tokenizer_config.json and chat_template.jinja into `out`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,  # four Chinese characters: longer merges would only memorize the grammar's phrases
        show_progress=False,
    )
    # Each common character is a line of its own too, so that it gets a token even where the corpus hardly has it.
    tokenizer.train_from_iterator([*lines, *CHARACTERS * 40], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the corpus is too small for {VOCABULARY} tokens: {tokenizer.get_vocab_size()}")
    write(out / "tokenizer.json", tokenizer.to_str(pretty=False))
    write(out / "tokenizer_config.json", json.dumps(tokenizer_config(), indent=2) + "\n")
    write(out / "chat_template.jinja", CHAT_TEMPLATE)


def tokenizer_config() -> dict[str, object]:
    """What makes `AutoTokenizer` load the files as Qwen2's tokenizer."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    }


def write(path: Path, text: str) -> None:
    """Write a text file; an interrupted call leaves the old one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def pieces_of(tokenizer_json: Path) -> dict[int, tuple[int, int]]:
    """For each merged token the two tokens that it was merged from."""
    model = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]
    vocab = model["vocab"]
    return {vocab[left + right]: (vocab[left], vocab[right]) for left, right in model["merges"]}


def split_some(ids: list[int], pieces: dict[int, tuple[int, int]], rng: random.Random) -> list[int]:
    """The same text with every tenth token in its pieces, and their pieces now and then.

    Bytes and parts of characters are tokens that ordinary text hardly has; this is how their embeddings get trained.
    """
    result: list[int] = []
    for token in ids:
        stack, share = [token], 0.1
        while stack:
            top = stack.pop()
            if top in pieces and rng.random() < share:
                stack += reversed(pieces[top])
                share = 0.5
            else:
                result.append(top)
    return result


def rows_of(documents: list[list[int]], pad: int) -> torch.Tensor:
    """Token ids, shape (rows, ROW), int64: a row holds as many whole documents as fit, then padding."""
    rows: list[list[int]] = [[]]
    for ids in documents:
        if len(rows[-1]) + len(ids) > ROW and rows[-1]:
            rows.append([])
        rows[-1] += ids[:ROW]
    return torch.tensor([row[:ROW] + [pad] * (ROW - len(row)) for row in rows])


def all_rows(text: Corpus, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of the training documents, a third of them with split tokens, and the rows of the held-out ones."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    train, held_out = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text.train, text.held_out))
    pieces, rng = pieces_of(out / "tokenizer.json"), random.Random(SEED)
    train = [split_some(ids, pieces, rng) if rng.random() < 1 / 3 else ids for ids in train]
    print(f"{len(train)} documents, {sum(map(len, train))} tokens; held out: {len(held_out)} documents", flush=True)
    return rows_of(train, tokenizer.pad_token_id), rows_of(held_out, tokenizer.pad_token_id)


def labels_of(rows: torch.Tensor, pad: int) -> torch.Tensor:
    """Labels of the same shape: -100 on padding, which is every `<|endoftext|>` after another one."""
    before = torch.cat([torch.full_like(rows[:, :1], pad), rows[:, :-1]], dim=1)
    return rows.masked_fill((rows == pad) & (before == pad), -100)


def make_model() -> Qwen2ForCausalLM:
    """The untrained model: dimensions are multiples of 256, so that the K-quants of GGUF apply to every matrix."""
    end, pad = VOCABULARY - 1, VOCABULARY - len(SPECIAL)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
        use_cache=True,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=pad, eos_token_id=[end, pad], pad_token_id=pad, do_sample=False
    )
    return model


def batches(rows: torch.Tensor, size: int, steps: int) -> Iterator[torch.Tensor]:
    """`steps` batches of `size` rows, epoch after epoch, each epoch in an order of its own."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(steps * size // len(rows) + 1)])
    for step in range(steps):
        yield rows[order[step * size : (step + 1) * size]]


def learning_rate(share: float, peak: float) -> float:
    """The learning rate after `share` (0 to 1) of the training: 3 % warmup, then a cosine down to 2 %."""
    warmup = min(1.0, share / 0.03)
    return peak * warmup * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def train(model: Qwen2ForCausalLM, rows: torch.Tensor, *, steps: int, size: int, peak: float) -> tuple[float, float]:
    """Train with AdamW on batches of `size` rows; returns the mean loss of the last 20 steps and the seconds taken."""
    pad = model.config.pad_token_id
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    started, losses = time.monotonic(), []
    for step, batch in enumerate(batches(rows, size, steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate((step + 1) / steps, peak)
        loss = model(input_ids=batch, labels=labels_of(batch, pad)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  loss {sum(losses[-20:]) / len(losses[-20:]):.3f}  {seconds:.0f} s", flush=True)
    return sum(losses[-20:]) / len(losses[-20:]), time.monotonic() - started


@torch.inference_mode()
def held_out_loss(model: Qwen2ForCausalLM, rows: torch.Tensor) -> float:
    """Mean loss (nats per token) over held-out rows."""
    total, count = 0.0, 0
    for batch in rows.split(8):
        labels = labels_of(batch, model.config.pad_token_id)
        tokens = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=batch, labels=labels).loss.item() * tokens
        count += tokens
    return total / count


def save(model: Qwen2ForCausalLM, out: Path) -> None:
    """Save config and weights (bfloat16) into `out`, the weights by renaming, and refuse a folder over 10 MB."""
    model = model.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    partial = out / "partial"
    model.save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)
        os.replace(path, out / path.name)
    partial.rmdir()
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {size / 1e6:.2f} MB in {out}")
    if size > 10e6:
        raise ValueError(f"{out} must not hold more than 10 MB: {size} bytes")


def main() -> None:
    """Read the command line, make tokenizer and model, print the figures that README.md reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--documents", type=int, default=24000, help="generated documents")
    parser.add_argument("--repeats", type=int, default=8, help="copies of each hand-written document in an epoch")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--size", type=int, default=8, help="rows in a step")
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    text = corpus(args.documents, args.repeats)
    make_tokenizer(text.plain, args.out)
    rows, held_out = all_rows(text, args.out)
    model = make_model()
    loss, seconds = train(model, rows, steps=args.steps, size=args.size, peak=args.peak)
    save(model, args.out)
    held_loss = held_out_loss(model.float(), held_out)
    print(f"{args.steps} steps, {seconds:.0f} s, last loss {loss:.3f}")
    print(f"held out: loss {held_loss:.3f}, perplexity {math.exp(held_loss):.2f}")


if __name__ == "__main__":
    main()
