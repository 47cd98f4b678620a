"""The likelihood engine beside the loop that in-context learning was published with, in one run.

    python benchmarks/icl.py                             # a table on standard output; minutes on two cores at rest
    python benchmarks/icl.py --only short_queries --out results/icl.json
    python benchmarks/icl.py --only real --model results/smollm2/models/smollm2 --mirror DATA

The loop reads, with batch size 1, the demonstrations, the query and one option in a pass of their own for every option
of every example, keeps no cache and makes the logits of all tokens. The engine reads the demonstrations once (that is
timed too) and each query once for all its options. Both score with the same weights, by nats per token of the option.

- short_queries: examples of 35 to 40 tokens with options of one token: 790 tokens of demonstrations and 4 options, the
  same and 2 options, 150 tokens and 4 options;
- long_queries: queries of 150 tokens, 2 options, as of passages; after 790 tokens and after one demonstration of 665;
- long_options: 4 options of 2 to 6 tokens each;
- compressed: 50 summary vectors of an AutoCompressor in the place of plain demonstrations; both sides have them ready;
- real: a model folder (`--model`, made by `synopsis prepare`) on a task of config/tasks with icl_750, with the
  tokenizer's own lengths, options and demonstrations; left out where no folder is named.

The sides take turns, so that another load on the machine slows both; the ratio is the median over the rounds. What the
loop scored in any round is compared: other predictions, or scores that differ by more than 1e-5, miss the limit.
Tokens and, except for `real`, weights are random: queries have no words in common, as those of one template would.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import yaml
from compressors import Sizes, in_turns, run, speed, tokens
from synopsis.compressors import compressor_class
from synopsis.compressors.context import CompressedContext
from synopsis.compressors.loading import load, load_tokenizer, quiet
from synopsis.config.files import Task, fields_of
from synopsis.data.row_files import read_rows
from synopsis.data.sources import MIRROR_VARIABLE
from synopsis.engine.likelihood import OptionScores, Pair, read_prefix, score_options
from synopsis.errors import InputError, SynopsisError
from synopsis.progress import say
from synopsis.stages.icl.classification import Texts
from synopsis.stages.icl.demonstrations import demonstrations
from synopsis.stages.icl.section import Setting
from transformers import AutoModelForCausalLM

KIND = "icl-benchmark"
TASKS = Path(__file__).parents[1] / "config" / "tasks"
SETTABLE = {
    "model": "real: a model folder with its tokenizer",
    "task": "real: the name of a file in config/tasks (sst2)",
    "mirror": f"real: the folder of local data sets (the environment variable {MIRROR_VARIABLE})",
}


@dataclass(frozen=True)
class Case:
    """What is scored, in tokens; two numbers are the shortest and the longest. `limit`: what the ratio must reach."""

    name: str
    prefix: int
    query: tuple[int, int]
    options: int
    option: tuple[int, int] = (1, 1)
    limit: float | None = None
    vectors: int = 0
    """Summary vectors that the prefix is compressed to; 0 leaves it as it is."""


CASES: dict[str, tuple[Case, ...]] = {
    "short_queries": (
        Case("790 tokens before, 4 options", 790, (34, 39), 4, limit=35.0),
        Case("790 tokens before, 2 options", 790, (34, 39), 2, limit=20.0),
        Case("150 tokens before, 4 options", 150, (34, 39), 4, limit=10.0),
    ),
    "long_queries": (
        Case("790 tokens before, queries of 150", 790, (150, 150), 2, limit=5.0),
        Case("665 tokens before, queries of 150", 665, (150, 150), 2, limit=5.0),
    ),
    "long_options": (Case("790 tokens before, options of 2 to 6", 790, (34, 39), 4, option=(2, 6)),),
    "compressed": (Case("50 vectors before, 4 options", 750, (34, 39), 4, vectors=50),),
}


@dataclass(frozen=True)
class ScoringSizes(Sizes):
    """As `Sizes`. The engine scores all examples in a round, the loop the next few; `tolerance`: nats per token."""

    examples: int = 200
    loop_examples: int = 4
    tolerance: float = 1e-5
    cases: dict[str, tuple[Case, ...]] = field(default_factory=lambda: CASES)
    model: str = ""
    task: str = "sst2"
    mirror: str = ""
    plain_tokens: int = 750
    real_rounds: int = 3
    real_loop_examples: int = 2

    def record(self) -> dict[str, Any]:
        """Without the folders of this machine; of the model its name."""
        return {**super().record(), "model": Path(self.model).name, "mirror": ""}


@dataclass(frozen=True)
class Problem:
    """Examples, each with a query and an option in every pair, after one prefix: a context, or tokens.

    `engine` and `loop` have the same weights; the second one is transformers' own class.
    """

    engine: Any
    loop: Any
    prefix: list[int]
    context: CompressedContext | None
    examples: list[list[Pair]]


# ----------------------------------------------------------------------------------------------------- the two sides


def engine_scores(problem: Problem, label: str) -> OptionScores:
    """Scores of all pairs of all examples, in their order."""
    prefix = read_prefix(problem.engine, problem.context, problem.prefix)
    return score_options(problem.engine, prefix, [pair for pairs in problem.examples for pair in pairs], label=label)


@torch.no_grad()
def published_scores(problem: Problem, pairs: list[Pair]) -> list[float]:
    """Nats per token of each option of one example: a pass over everything for each, as published."""
    model, scores = problem.loop, []
    for query, option in pairs:
        ids = torch.tensor([[*problem.prefix, *query, *option]])
        embeds = model.get_input_embeddings()(ids)
        if problem.context is not None:
            assert problem.context.summary_vectors is not None
            embeds = torch.cat([problem.context.summary_vectors, embeds], dim=1)
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0]  # (T, V)
        end = len(option)
        scores.append(torch.nn.functional.cross_entropy(logits[-end - 1 : -1], ids[0, -end:]).item())
    return scores


def compare(
    measure: str, case: str, problem: Problem, rounds: int, loop_examples: int, tolerance: float, limit: float | None
) -> dict[str, Any]:
    """The row of a case; a disagreement of the two sides is reported and misses the limit."""
    examples = problem.examples
    found: list[OptionScores] = []
    expected: dict[int, list[float]] = {}
    coming = count()

    def engine() -> None:
        found.append(engine_scores(problem, case))

    def loop() -> None:
        for number in islice(coming, loop_examples):
            index = number % len(examples)
            expected[index] = published_scores(problem, examples[index])

    seconds = in_turns([engine, loop], rounds)
    row = speed(measure, case, [len(examples), loop_examples], seconds, limit, "examples/s")
    cost, means = found[-1].cost, iter(found[-1].means)
    scores = [list(islice(means, len(pairs))) for pairs in examples]
    difference = max(
        abs(ours - theirs)
        for index, theirs_of in expected.items()
        for ours, theirs in zip(scores[index], theirs_of, strict=True)
    )
    other = sum(best(scores[index]) != best(theirs) for index, theirs in expected.items())
    if other or not difference <= tolerance:
        say(
            f"{measure}, {case}: of {len(expected)} examples {other} have another prediction than in the loop; "
            f"scores differ by up to {difference:.1e}, and may by {tolerance:.0e}"
        )
        row["met"] = False
    bound = cost.naive_tokens / (cost.tokens + len(problem.prefix))
    share = round(row["ratio"] / bound, 2)
    return {**row, "bound": round(bound, 1), "share": share, "difference": float(f"{difference:.1e}")}


def best(scores: list[float]) -> int:
    """The place of the likeliest option."""
    return min(range(len(scores)), key=scores.__getitem__)


# -------------------------------------------------------------------------------------------------------- the measures


def generated(name: str, sizes: ScoringSizes) -> Iterator[dict[str, Any]]:
    """The rows of the cases of one measure, on models with random weights."""
    for case in sizes.cases[name]:
        problem = random_problem(case, sizes)
        yield compare(name, case.name, problem, sizes.rounds, sizes.loop_examples, sizes.tolerance, case.limit)


def random_problem(case: Case, sizes: ScoringSizes) -> Problem:
    """Random weights and tokens; the options of an example differ."""
    torch.manual_seed(sizes.seed)
    generator = random.Random(sizes.seed)

    def text(shortest: int, longest: int) -> list[int]:
        return tokens(1, generator.randint(shortest, longest), sizes.vocabulary)[0].tolist()

    loop = AutoModelForCausalLM.from_config(sizes.config("llama")).eval()
    engine, context, prefix = loop, None, text(case.prefix, case.prefix)
    if case.vectors:
        config = sizes.config("llama", summary_length=case.vectors)
        engine = compressor_class("summary", "llama")(config).eval()
        loop.load_state_dict(
            {name: weight for name, weight in engine.state_dict().items() if name in loop.state_dict()}
        )
        context, prefix = engine.compress(torch.tensor([prefix])), []
    examples: list[list[Pair]] = []
    for _ in range(sizes.examples):
        query, options = text(*case.query), list[list[int]]()
        while len(options) < case.options:
            option = text(*case.option)
            options += [option] if option not in options else []
        examples.append([(query, option) for option in options])
    return Problem(engine, loop, prefix, context, examples)


def real(sizes: ScoringSizes) -> Iterator[dict[str, Any]]:
    """The row of a model folder on a task, with as many demonstrations as published for the budget."""
    if not sizes.model:
        say("real: left out; name a model folder with --model")
        return
    problem, shown = real_problem(sizes)
    case = f"{sizes.task}, {shown} demonstrations in {len(problem.prefix)} tokens"
    rounds = min(sizes.rounds, sizes.real_rounds)
    yield compare("real", case, problem, rounds, sizes.real_loop_examples, sizes.tolerance, None)


def real_problem(sizes: ScoringSizes) -> tuple[Problem, int]:
    """The first test examples after drawn demonstrations, and how many of these there are."""
    definition = TASKS / f"{sizes.task}.yaml"
    if not definition.is_file():
        raise InputError(f"--task {sizes.task}: no such file {definition}")
    task = Task.model_validate(yaml.safe_load(definition.read_text(encoding="utf-8")))
    mirror = sizes.mirror or os.environ.get(MIRROR_VARIABLE)
    if not mirror or not task.source.mirror:
        raise InputError(f"--mirror: nothing, nor {MIRROR_VARIABLE}; expected a folder with a copy of {sizes.task}")
    pool, test = (
        rows_of(task, Path(mirror) / task.source.mirror, split) for split in (task.train_split, task.test_split)
    )
    texts = Texts(task, load_tokenizer(sizes.model))
    prompt = demonstrations(task, pool, Setting(plain_tokens=sizes.plain_tokens), sizes.seed, texts.encode)
    examples = [texts.example(row).pairs for row in test[: sizes.examples]]
    engine = load(sizes.model, device="cpu")
    with quiet():
        loop = AutoModelForCausalLM.from_pretrained(sizes.model, dtype=torch.float32).eval()
    return Problem(engine, loop, [*texts.beginning, *prompt.plain], None, examples), len(prompt.rows)


def rows_of(task: Task, folder: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split with their ids, by the names of the template's fields."""
    file = next((path for name in (f"{split}.jsonl", f"{split}.jsonl.gz") if (path := folder / name).is_file()), None)
    if file is None:
        raise InputError(f"{folder / split}.jsonl: no such file")
    fields = {name: task.columns.get(name, name) for name in fields_of(task)}
    return [
        {"id": index, **{name: row[column] for name, column in fields.items()}}
        for index, row in enumerate(read_rows(file))
    ]


MEASURES: dict[str, Callable[[ScoringSizes], Iterator[dict[str, Any]]]] = {
    **{name: partial(generated, name) for name in CASES},
    "real": real,
}


def main(arguments: list[str] | None = None, sizes: ScoringSizes | None = None) -> int:
    """1 when a ratio misses its limit or scores disagree, 2 for input that cannot be used, else 0."""
    try:
        return run(__doc__, KIND, MEASURES, sizes or ScoringSizes(), arguments, SETTABLE)
    except SynopsisError as error:
        say(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
