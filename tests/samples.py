"""Random examples with shared prefixes, for the packing and engine tests."""

from __future__ import annotations

import random

from fasttune.data.tokenize import Example


def random_examples(seed: int, count: int, vocabulary: int = 200) -> list[Example]:
    """Examples on a random tree of prefixes: some equal, some nested, some alone, with one to three supervised spans."""
    rng = random.Random(seed)
    prefixes: list[list[int]] = [[]]
    for _number in range(rng.randint(1, 6)):
        parent = rng.choice(prefixes)
        prefixes.append(parent + [rng.randrange(vocabulary) for _token in range(rng.randint(1, 12))])
    examples: list[Example] = []
    for number in range(count):
        if examples and rng.random() < 0.1:
            twin = rng.choice(examples)
            examples.append(Example(f"random:{number}", twin.tokens, twin.supervised))
            continue
        tokens = list(rng.choice(prefixes))
        tokens += [rng.randrange(vocabulary) for _token in range(rng.randint(2, 6))]
        spans = []
        for _turn in range(rng.randint(1, 3)):
            start = len(tokens)
            tokens += [rng.randrange(vocabulary) for _token in range(rng.randint(1, 8))]
            spans.append((start, len(tokens)))
            tokens += [rng.randrange(vocabulary) for _token in range(rng.randint(0, 4))]
        examples.append(Example(f"random:{number}", tuple(tokens), tuple(merged(spans))))
    return examples


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans, those that touch joined."""
    result: list[tuple[int, int]] = []
    for start, end in spans:
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def random_tree(seed: int, count: int, vocabulary: int = 3) -> list[Example]:
    """Examples over few tokens, so that they share prefixes by chance at every depth: nested, equal, of one token.

    Some are supervised from their second token on and have nothing to share.
    """
    rng = random.Random(f"tree {seed}")
    bodies: list[list[int]] = [[]]
    examples: list[Example] = []
    for number in range(count):
        body = rng.choice(bodies) + [rng.randrange(vocabulary) for _token in range(rng.randint(0, 6))]
        bodies.append(body)
        tokens = [vocabulary, *body]  # a first token that all share, as chat templates have
        start = 1 if rng.random() < 0.2 else len(tokens)
        tokens += [rng.randrange(vocabulary) for _token in range(rng.randint(1, 5))]
        examples.append(Example(f"tree:{number}", tuple(tokens), ((start, len(tokens)),)))
    return examples


def random_forest(seed: int, count: int) -> list[Example]:
    """Examples under deep trees of prefixes, as multi-turn data has, from a few tokens to hundreds in length.

    A tenth are equal to others; some are supervised from their second token on; some have one token after the prefix.
    """
    rng = random.Random(f"forest {seed}")
    longest = rng.choice([8, 40, 200])
    nodes: list[list[int]] = [[]]
    for _number in range(rng.randint(1, 40)):
        deep = max(rng.sample(nodes, min(len(nodes), rng.choice([1, 1, 4]))), key=len)
        nodes.append(deep + [rng.randrange(5) for _token in range(rng.randint(1, longest))])
    examples: list[Example] = []
    for number in range(count):
        if examples and rng.random() < 0.1:
            twin = rng.choice(examples)
            examples.append(Example(f"forest:{number}", twin.tokens, twin.supervised))
            continue
        body = [
            5,
            *rng.choice(nodes),
            *(rng.randrange(5) for _token in range(rng.choice([0, 1, rng.randint(1, longest)]))),
        ]
        start = 1 if rng.random() < 0.1 else len(body)
        tokens = body + [rng.randrange(5) for _token in range(rng.randint(1, longest))]
        spans = [(start, len(tokens))]
        if rng.random() < 0.3:  # another turn
            tokens += [rng.randrange(5) for _token in range(rng.randint(1, longest))]
            spans.append((len(tokens), len(tokens) + rng.randint(1, 9)))
            tokens += [rng.randrange(5) for _token in range(spans[-1][1] - len(tokens))]
        examples.append(Example(f"forest:{number}", tuple(tokens), tuple(spans)))
    return examples
