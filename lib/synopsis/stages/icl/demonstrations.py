"""Which demonstrations a prompt shows, and their tokens, as published (Chevalier et al. 2023, section 5).

The demonstrations of a chunk are tokenised as one string. Tokenised one by one they would have other ids where a
tokenizer merges the end of one with the start of the next, or puts a space before a text.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.config.files import Task
from synopsis.data.tasks import options_of, render
from synopsis.errors import DataError
from synopsis.stages.icl.section import Setting

Encode = Callable[[str], list[int]]
DEMONSTRATION_END = "\n\n"
"""Text after each demonstration; those of a chunk are tokenised as one string."""


@dataclass(frozen=True)
class Prompt:
    """Demonstrations of one setting as token ids: the chunks that are compressed, in order, and the plain ones."""

    chunks: tuple[list[int], ...]
    plain: list[int]
    rows: tuple[Any, ...]
    """Ids of the demonstrations, in the order in which they stand."""
    asked: int | None
    """Demonstrations that the published counts ask for; None where as many are taken as fit."""
    unfilled: int
    """Budgets that hold no demonstration at all."""
    over_budget: int
    """Tokens beyond the budgets, added up: the published counts go by a mean length, and not by what is drawn."""


def demonstrations(
    task: Task,
    pool: Sequence[dict[str, Any]],
    setting: Setting,
    seed: int,
    encode: Encode,
    fitting: bool = False,
    repeat: bool = False,
) -> Prompt:
    """Draw demonstrations for a setting.

    The number for a budget is budget // tokens_per_demonstration where the task states the published mean length;
    the draw is then the published one, seeded by those numbers. Else, and always when `fitting`, as many are taken as
    really fit once they are tokenised together, and the budgets seed the draw. Either way it depends on the task, the
    seed and the budgets, and where texts are fitted on the tokenizer, never on the model.

    DataError when more are asked for than there are rows to draw; with `repeat` a balanced draw then begins again from
    its first row, as published.
    """
    budgets = [*setting.compressed_tokens, *([setting.plain_tokens] if setting.plain_tokens else [])]
    if task.tokens_per_demonstration and not fitting:
        counts = [budget // task.tokens_per_demonstration for budget in budgets]
        asked: int | None = sum(counts)
        compressed = sum(counts[: len(setting.compressed_tokens)])
        drawn = draw(task, pool, sum(counts), random.Random(published_seed(seed, compressed, sum(counts) - compressed)))
        if len({row["id"] for row in drawn}) < len(drawn) and not repeat:
            raise _too_few(task, sum(counts), len({row["id"] for row in drawn}), len(pool))
        groups = _split([text_of(task, row) for row in drawn], counts)
    else:
        asked = None
        generator = random.Random(published_seed(seed, sum(setting.compressed_tokens), setting.plain_tokens))
        shuffled = draw(task, pool, _drawable(task, pool), generator) if budgets else []
        groups = fill((text_of(task, row) for row in shuffled), budgets, encode)
        drawn = shuffled[: sum(map(len, groups))]
    joined = [encode("".join(group)) if group else [] for group in groups]
    steps = len(setting.compressed_tokens)
    return Prompt(
        chunks=tuple(chunk for chunk in joined[:steps] if chunk),
        plain=joined[steps] if setting.plain_tokens else [],
        rows=tuple(row["id"] for row in drawn),
        asked=asked,
        unfilled=sum(not group for group in groups),
        over_budget=sum(max(len(ids) - budget, 0) for ids, budget in zip(joined, budgets, strict=True)),
    )


def published_seed(seed: int, compressed: int, plain: int) -> int:
    """Seed of a draw of `compressed` and `plain` demonstrations, as published."""
    return 10**6 * seed + 10**3 * compressed + plain


def text_of(task: Task, row: dict[str, Any]) -> str:
    """A demonstration: the example with its true option."""
    return render(task, row, options_of(task, row)[row[task.label_field]]) + DEMONSTRATION_END


def draw(task: Task, pool: Sequence[dict[str, Any]], count: int, generator: random.Random) -> list[dict[str, Any]]:
    """`count` rows as published. Balanced: each label as often as the rarest, in turn.

    Where these are fewer than `count`, a balanced draw goes round again, and an unbalanced one is a DataError.
    """
    if not task.balanced:
        if count > len(pool):
            raise _too_few(task, count, len(pool), len(pool))
        return generator.sample(list(pool), count)
    turns = [row for group in zip(*_by_label(task, pool, generator), strict=False) for row in group]
    rounds = max(-(-count // len(turns)), 1)
    start = generator.randint(0, rounds * len(turns) - count)
    return (turns * rounds)[start : start + count]


def fill(texts: Iterable[str], budgets: Sequence[int], encode: Encode) -> list[list[str]]:
    """Texts in order into budgets of tokens, counted of the joined text; one that does not fit closes its budget."""
    groups: list[list[str]] = []
    coming = iter(texts)
    waiting = next(coming, None)
    for budget in budgets:
        group: list[str] = []
        while waiting is not None and len(encode("".join([*group, waiting]))) <= budget:
            group.append(waiting)
            waiting = next(coming, None)
        groups.append(group)
    return groups


def _by_label(task: Task, pool: Sequence[dict[str, Any]], generator: random.Random) -> list[list[dict[str, Any]]]:
    by_label = defaultdict(list)
    for row in pool:
        by_label[row[task.label_field]].append(row)
    shuffled = [by_label[label] for label in sorted(by_label)]
    for rows in shuffled:
        generator.shuffle(rows)
    return shuffled


def _drawable(task: Task, pool: Sequence[dict[str, Any]]) -> int:
    """How many different rows a draw can give."""
    if not task.balanced:
        return len(pool)
    by_label = _by_label(task, pool, random.Random(0))
    return len(by_label) * min(map(len, by_label), default=0)


def _too_few(task: Task, asked: int, drawable: int, rows: int) -> DataError:
    kind = f"{drawable} rows with each label as often as the rarest (of {rows})" if task.balanced else f"{rows} rows"
    return DataError(f"{asked} demonstrations are asked for; the split '{task.train_split}' has {kind} to draw from")


def _split(texts: list[str], counts: Sequence[int]) -> list[list[str]]:
    groups, start = [], 0
    for count in counts:
        groups.append(texts[start : start + count])
        start += count
    return groups
