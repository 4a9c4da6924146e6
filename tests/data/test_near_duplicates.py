"""Near-duplicates: the candidates of the inverted index and of MinHash against all pairs."""

from __future__ import annotations

import random

import pytest

from fasttune.data import near_duplicates
from fasttune.data.near_duplicates import SIMILAR, Grams, Pair, Said, jaccard, near_pairs, similarity, trigrams


def varied(seed: int, count: int) -> list[Said]:
    """Conversations of few characters, a third of them an earlier one with some characters replaced."""
    rng = random.Random(seed)
    letters = [chr(0x4E00 + n) for n in range(40)]
    said: list[Said] = []
    for _number in range(count):
        question, answer = ("".join(rng.choices(letters, k=rng.randint(4, 30))) for _side in range(2))
        if said and rng.random() < 0.3:
            answer, question = rng.choice(said).answer, rng.choice(said).question
            at = rng.randrange(len(answer))
            answer = answer[:at] + "".join(rng.choices(letters, k=rng.randint(0, 4))) + answer[at + 1 :]
            question = rng.choice([one.question for one in said if one.answer[:3] == answer[:3]] or [question])
        said.append(Said(question, answer or "空"))
    return said


def by_all_pairs(said: list[Said], held_out: int = 0) -> list[Pair]:
    """What near_pairs must name, by scoring every pair."""
    found = []
    for later, one in enumerate(said):
        for earlier in range(min(later, len(said) - held_out)):
            if (score := similarity(Grams(one), Grams(said[earlier]))) >= SIMILAR:
                found.append(Pair(later, earlier, score))
                break
    return found


def test_trigrams_know_no_white_space() -> None:
    assert trigrams("今天 好\n冷") == {"今天好", "天好冷"}
    assert trigrams("早") == {"早"}
    assert jaccard(trigrams("今天好冷"), trigrams("今天好热")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(6))
def test_the_inverted_index_misses_no_pair(seed: int) -> None:
    said = varied(seed, 150)
    expected = by_all_pairs(said, held_out=30)
    assert len(expected) > 3
    assert near_pairs(said, held_out=30) == expected


def test_minhash_finds_nearly_all_pairs_and_names_none_below(monkeypatch: pytest.MonkeyPatch) -> None:
    said = varied(7, 400)
    expected = by_all_pairs(said)
    monkeypatch.setattr(near_duplicates, "EXACT_UP_TO", 0)
    found = near_pairs(said)
    assert all(
        similarity(Grams(said[pair.later]), Grams(said[pair.earlier])) == pair.similarity >= SIMILAR for pair in found
    )
    assert len(expected) > 20 and len(found) >= 0.95 * len(expected)


def test_both_sides_have_to_be_alike() -> None:
    one = Said("门口的灯是谁修好的", "隔壁的木匠，修了一下午，手很巧。")
    assert near_pairs([one, Said("后院那盏灯笼呢", one.answer)]) == []
    assert near_pairs([one, Said(one.question, "不知道，早上来就亮着了。")]) == []
    assert [pair.earlier for pair in near_pairs([one, Said(one.question, one.answer[:-1] + "！")])] == [0]
