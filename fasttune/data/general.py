"""The general conversations that come with fasttune, for `data.replay`: everyday knowledge, arithmetic, rewriting,
small code, advice, answered by a neutral assistant, in Chinese and in English.

    fasttune/general/train-zh.jsonl  train-en.jsonl     mixed into the training samples, against forgetting
    fasttune/general/val-zh.jsonl    val-en.jsonl       never trained on: what was forgotten is measured on them

They have no system message, so that the chat template writes the base's own prompt before them: it is the assistant of
that prompt that must not be forgotten. None asks who answers. They were written for this project.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from fasttune.data.matching import CHINESE

FOLDER = Path(__file__).parent.parent / "general"
SOURCE = "fasttune/general/"  # with which the names of these samples begin, wherever fasttune is installed
LANGUAGES = ("zh", "en")
SPOKEN = 0.2  # of the samples: a language that fewer answer in is not one of the data


def languages(answers: Iterable[str]) -> tuple[str, ...]:
    """The languages of a data set by its answers, one text a sample: "zh" where a share of SPOKEN of them holds Chinese
    characters, "en" where such a share holds none."""
    holds = [CHINESE.search(text) is not None for text in answers]
    chinese = sum(holds)
    counts = {"zh": chinese, "en": len(holds) - chinese}
    return tuple(one for one in LANGUAGES if counts[one] and counts[one] >= SPOKEN * len(holds))


def files(part: Literal["train", "val"], spoken: Iterable[str]) -> list[Path]:
    """The files of the conversations to train on, or of those to measure on, in these languages."""
    return [FOLDER / f"{part}-{language}.jsonl" for language in spoken]


def is_general(sample_id: str) -> bool:
    """Whether the name of a sample is that of a general conversation."""
    return sample_id.startswith(SOURCE)
