"""Which demonstrations a prompt shows: the published sampling (Chevalier et al. 2023, section 5)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.config import Setting, Task
from synopsis.data.tasks import options_of, render


@dataclass(frozen=True)
class Prompt:
    """Demonstrations of one setting as token ids: the chunks that are compressed, in order, and the plain ones."""

    chunks: tuple[list[int], ...]
    plain: list[int]
    rows: tuple[Any, ...]
    """Ids of the demonstrations, in the order in which they stand."""
    unfilled: int
    """Budgets that hold no demonstration at all."""


def demonstrations(
    task: Task, pool: Sequence[dict[str, Any]], setting: Setting, seed: int, encode: Callable[[str], list[int]]
) -> Prompt:
    """Draw demonstrations for a setting.

    The number for a budget is budget // tokens_per_demonstration where the task states the published mean length;
    the draw is then the published one, seeded by those numbers. Else as many as really fit are taken, and the budgets
    seed the draw. Either way it depends on the task, the seed and the budgets, never on the model.
    """
    budgets = [*setting.compressed_tokens, *([setting.plain_tokens] if setting.plain_tokens else [])]
    if task.tokens_per_demonstration:
        counts = [budget // task.tokens_per_demonstration for budget in budgets]
        compressed = sum(counts[: len(setting.compressed_tokens)])
        generator = random.Random(published_seed(seed, compressed, sum(counts) - compressed))
        drawn = draw(task, pool, sum(counts), generator)
        texts = [encode(text_of(task, row)) for row in drawn]
        groups = _split(texts, counts)
    else:
        generator = random.Random(published_seed(seed, sum(setting.compressed_tokens), setting.plain_tokens))
        shuffled = draw(task, pool, len(pool), generator)
        texts = [encode(text_of(task, row)) for row in shuffled]
        groups, used = fill(texts, budgets)
        drawn = shuffled[:used]
    joined = [[token for text in group for token in text] for group in groups]
    steps = len(setting.compressed_tokens)
    plain = joined[steps] if setting.plain_tokens else []
    return Prompt(
        tuple(chunk for chunk in joined[:steps] if chunk),
        plain,
        tuple(row["id"] for row in drawn),
        sum(not group for group in groups),
    )


def published_seed(seed: int, compressed: int, plain: int) -> int:
    """Seed of a draw of `compressed` and `plain` demonstrations, as published."""
    return 10**6 * seed + 10**3 * compressed + plain


def text_of(task: Task, row: dict[str, Any]) -> str:
    """A demonstration: the example with its true option."""
    return render(task, row, options_of(task, row)[row[task.label_field]]) + task.demonstration_end


def draw(task: Task, pool: Sequence[dict[str, Any]], count: int, generator: random.Random) -> list[dict[str, Any]]:
    """`count` rows, at most as many as there are. Balanced: each label as often as the rarest, in turn.

    Where the published code repeats demonstrations (balanced) or stops (unbalanced) for want of rows, this takes fewer.
    """
    if not task.balanced:
        return generator.sample(list(pool), min(count, len(pool)))
    by_label = defaultdict(list)
    for row in pool:
        by_label[row[task.label_field]].append(row)
    by_turn = [by_label[label] for label in sorted(by_label)]
    for rows in by_turn:
        generator.shuffle(rows)
    turns = [row for group in zip(*by_turn, strict=False) for row in group]
    start = generator.randint(0, max(len(turns) - count, 0))
    return turns[start : start + count]


def fill(texts: Sequence[list[int]], budgets: Sequence[int]) -> tuple[list[list[list[int]]], int]:
    """Texts in order into budgets of tokens, and the number used; a text that does not fit closes its budget."""
    groups: list[list[list[int]]] = []
    used = 0
    for budget in budgets:
        group: list[list[int]] = []
        left = budget
        while used < len(texts) and len(texts[used]) <= left:
            left -= len(texts[used])
            group.append(texts[used])
            used += 1
        groups.append(group)
    return groups, used


def _split(texts: list[list[int]], counts: Sequence[int]) -> list[list[list[int]]]:
    groups, start = [], 0
    for count in counts:
        groups.append(texts[start : start + count])
        start += count
    return groups
