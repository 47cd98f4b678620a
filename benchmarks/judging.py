"""Judging beside the time that it cannot be faster than, and the resumption of a large store, in one run.

    python benchmarks/judging.py                           # a table on standard output; half a minute
    python benchmarks/judging.py --only asking --out results/judging.json

- asking: 1,000 pairs in both orders at a service on this machine that takes 50 ms for each answer, 32 questions at a
  time, beside the ideal: questions x 50 ms / 32. The service is a process of its own.
- resuming: a store with 50,000 judgements, from opening it to the last judgement, beside 2 seconds for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from compressors import Sizes, row, run
from synopsis.config.files import JudgeDefinition
from synopsis.stages.judge.pairs import ORDERS, Pair, Question
from synopsis.stages.judge.prompts import text_for
from synopsis.stages.judge.records import Judgement, Reply, text_hash
from synopsis.stages.judge.run import hash_of, judge_pairs

KIND = "judging-benchmark"
SERVER = Path(__file__).parents[1] / "tests" / "helpers" / "chat_server.py"
KEY = "JUDGING_BENCHMARK_KEY"
PROMPT = "Which answer is better?\n{instruction}\n<first>\n{answer_a}\n</first>\n<second>\n{answer_b}\n</second>\n"


@dataclass(frozen=True)
class JudgingSizes(Sizes):
    """What is measured, and the limits: ideal seconds, as a share of those that it took, and seconds for the store."""

    rounds: int = 5
    pairs: int = 1000
    seconds: float = 0.05
    concurrency: int = 32
    asking_limit: float = round(1 / 1.3, 3)
    stored: int = 50_000
    stored_seconds: float = 2.0
    resuming_limit: float = 1.0


def asking(sizes: JudgingSizes) -> Iterator[dict[str, Any]]:
    command = [sys.executable, str(SERVER), str(sizes.seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        definition = judge_at(server.stdout.readline().strip(), sizes.concurrency)
        pairs = make_pairs(sizes.pairs)
        taken = [seconds_for(definition, pairs, []) for _ in range(sizes.rounds + 1)][1:]
        server.communicate()
    questions = 2 * sizes.pairs
    case = f"{questions} questions, {1000 * sizes.seconds:g} ms, {sizes.concurrency} at a time"
    yield compared("asking", case, questions, taken, questions * sizes.seconds / sizes.concurrency, sizes.asking_limit)


def resuming(sizes: JudgingSizes) -> Iterator[dict[str, Any]]:
    definition, pairs = judge_at("http://127.0.0.1:9/v1", 1), make_pairs(sizes.stored // 2)
    reply = Reply(0, '{"reason": "The first one does what was asked, and the second one does not.", "choice": 0}')
    lines = []
    for question in (Question(pair, order) for pair in pairs for order in ORDERS):
        judgement = Judgement.of(question, reply, text_hash(text_for(definition, question)), hash_of(definition))
        lines.append(judgement.model_dump_json() + "\n")
    taken = [seconds_for(definition, pairs, lines) for _ in range(sizes.rounds)]
    case = f"a store of {len(lines)} judgements"
    yield compared("resuming", case, len(lines), taken, sizes.stored_seconds, sizes.resuming_limit)


def judge_at(url: str, concurrency: int) -> JudgeDefinition:
    os.environ[KEY] = "any"
    return JudgeDefinition(
        kind="openai", model="m", base_url=url, api_key_env=KEY, prompt=PROMPT, concurrency=concurrency
    )


def make_pairs(count: int) -> list[Pair]:
    return [Pair(str(n), f"Name {n}.", "", f"first answer {n} " * 20, f"second {n} " * 20, "") for n in range(count)]


def seconds_for(definition: JudgeDefinition, pairs: list[Pair], lines: list[str]) -> float:
    """Seconds to judge the pairs with a store that holds `lines`."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.jsonl"
        store.write_text("".join(lines))
        start = time.perf_counter()
        judgements = judge_pairs("benchmark", definition, pairs, store, hash_of(definition))
        seconds = time.perf_counter() - start
        assert len(judgements) == 2 * len(pairs) and {judgement.answer != "" for judgement in judgements} == {True}
    return seconds


def compared(measure: str, case: str, count: int, taken: list[float], beside: float, limit: float) -> dict[str, Any]:
    ratios = [beside / seconds for seconds in taken]
    return row(measure, case, "judgements/s", count / median(taken), count / beside, ratios, limit)


MEASURES = {"asking": asking, "resuming": resuming}


def main(arguments: list[str] | None = None, sizes: JudgingSizes | None = None) -> int:
    """1 when a ratio misses its limit, else 0."""
    return run(__doc__, KIND, MEASURES, sizes or JudgingSizes(), arguments)


if __name__ == "__main__":
    sys.exit(main())
