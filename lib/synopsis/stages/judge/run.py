"""The stage `judge`: every pair of outputs in both orders, a store that survives a kill, and a summary.

    from synopsis.stages.judge.run import judge
    judge(experiment, "reference", "gist-1-s0", "pos_control-s0", "seen")["win_rate"]

Both orders are judged because judges prefer a position: averaged over the two, that preference cancels out, and
`first_position_wins` and `consistent` say how large it was.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout, Provenance, write_json
from synopsis.config.experiment import Experiment
from synopsis.config.files import JudgeDefinition
from synopsis.errors import SynopsisError
from synopsis.progress import say, track
from synopsis.stages.judge.pairs import ORDERS, Pair, Question, read_pairs
from synopsis.stages.judge.prompts import text_for
from synopsis.stages.judge.records import AnyJudge, Judgement, Reply, text_hash
from synopsis.stages.judge.section import STAGE
from synopsis.stages.judge.store import JudgementStore

MAX_ERROR_SHARE = 0.2
"""With more judgements than this without an answer, a win rate would say more about the service than about the runs."""

ANSWER_FIELDS = ("kind", "model", "base_url", "prompt", "temperature", "max_tokens", "tie_margin")
"""Fields of a judge that its answers depend on; more patience or threads must not make paid judgements void."""


def judge(experiment: Experiment, judge: str, a: str, b: str, split: str) -> dict[str, Any]:
    """Judge the outputs of runs `a` and `b` for a split, write the summary beside the store and return it.

    Judgements in the store that this judge made of the same texts are used again; those that ended in an `api_error`
    are asked again. Raises InputError (missing key, refused key), DataError or ArtifactError (outputs
    that cannot be compared), and SynopsisError when too many judgements have no answer.
    """
    definition, layout = experiment.judges[judge], Layout(experiment)
    path = layout.judgements(judge, a, b, split)
    judge_hash = hash_of(definition)
    provenance = Provenance(config=STAGE.fingerprint(experiment, judge=judge, a=a, b=b, split=split))
    pairs, inputs = read_pairs(experiment, a, b, split, with_instructions=definition.kind == "openai")
    judgements = judge_pairs(judge, definition, pairs, path, judge_hash)
    provenance.inputs = [*inputs, path]
    models = sorted({judgement.model for judgement in judgements if judgement.model})
    summary = {"judge": judge, "a": a, "b": b, "split": split, **summarise(pairs, judgements), "judge_hash": judge_hash}
    write_json(path.with_suffix(".json"), "judgement_summary", summary, provenance.record(judge_models=models))
    return summary


def hash_of(definition: JudgeDefinition) -> str:
    """The hash of what a judge's answers depend on; its parser, limits and prices are not part of it."""
    return text_hash(json.dumps([definition.model_dump(mode="json", include=set(ANSWER_FIELDS))], sort_keys=True))


def judge_pairs(
    name: str, definition: JudgeDefinition, pairs: Sequence[Pair], path: Path, judge_hash: str
) -> list[Judgement]:
    """A judgement of each pair in both orders, `ab` before `ba`, with the store at `path`, which is made where none is.

    name: of the judge, for messages. Raises InputError (missing or refused key), ArtifactError (a damaged store) and
    SynopsisError when too many judgements have no answer.
    """
    questions = [Question(pair, order) for pair in pairs for order in ORDERS]
    with JudgementStore(path) as store:
        return _judge_all(name, definition, questions, judge_hash, store)


def summarise(pairs: Sequence[Pair], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Counts over the judgements of all pairs in both orders, from the side of run a.

    `win_rate` counts ties half and leaves errors out; None when every judgement is an error. `consistent` counts
    examples whose two judgements are valid and agree.
    """
    states = Counter(judgement.state for judgement in judgements)
    valid = states["A"] + states["B"] + states["tie"]
    by_example: dict[str, list[str]] = {}
    for judgement in judgements:
        by_example.setdefault(judgement.id, []).append(judgement.state)
    agreeing = [found for found in by_example.values() if len(found) == len(ORDERS) and len(set(found)) == 1]
    return {
        "n": len(pairs),
        "judgements": len(judgements),
        "win": states["A"],
        "lose": states["B"],
        "tie": states["tie"],
        "parse_error": states["parse_error"],
        "api_error": states["api_error"],
        "win_rate": (states["A"] + states["tie"] / 2) / valid if valid else None,
        "consistent": sum(found[0] in ("A", "B", "tie") for found in agreeing),
        "first_position_wins": sum(judgement.first_won for judgement in judgements),
        "identical": sum(pair.answer_a == pair.answer_b for pair in pairs),
    }


def _judge_all(
    name: str, definition: JudgeDefinition, questions: Sequence[Question], judge_hash: str, store: JudgementStore
) -> list[Judgement]:
    """A judgement for each question, in their order: from the store where it still holds, from the judge elsewhere."""
    hashes = {question: text_hash(text_for(definition, question)) for question in questions}
    held: dict[Question, Judgement] = {}
    for question, prompt_hash in hashes.items():
        found = store.find(question.pair.id, question.order, judge_hash, prompt_hash)
        if found is not None and found.state != "api_error":
            held[question] = found
    open_questions = [question for question in questions if question not in held]
    if held and open_questions:
        say(f"{store.path}: {len(held)} of {len(questions)} judgements are there already")
    errors = 0

    def answered(replies: Iterable[tuple[Question, Reply]]) -> Iterator[Judgement]:
        """Store every judgement; yield those that have an answer."""
        nonlocal errors
        for question, reply in replies:
            held[question] = judgement = Judgement.of(question, reply, hashes[question], judge_hash)
            store.append(judgement)
            if judgement.state != "api_error":
                yield judgement
                continue
            errors += 1
            if errors > MAX_ERROR_SHARE * len(questions):
                # Sure to fail by now; asking on would cost hours of retries at a service that is down.
                raise SynopsisError(
                    f"judge '{name}': {errors} of {len(questions)} judgements have no answer, more than "
                    f"{MAX_ERROR_SHARE:.0%} (the last: {reply.error}). No summary was written. The judgements made so "
                    f"far are kept in {store.path}: run the stage again when the service answers, and only the missing "
                    "ones are asked."
                )

    if open_questions:  # else no judge is made, so that a finished store is summarised without a key
        with contextlib.closing(_replies(name, definition, open_questions)) as replies:
            for _ in track(answered(replies), f"judge {name}", total=len(open_questions), unit="judgements"):
                pass
    if errors:
        say(f"{store.path}: warning: {errors} judgements have no answer; run the stage again to ask for them")
    return [held[question] for question in questions]


def _replies(
    name: str, definition: JudgeDefinition, questions: Sequence[Question]
) -> Generator[tuple[Question, Reply], None, None]:
    """Questions with their replies as they come in; the caller's thread alone writes, so the store needs no lock.

    When the judge raises an error, no further question is asked; answers that are on their way still come, then the
    error is raised.
    """
    judge = _make_judge(name, definition)
    with ThreadPoolExecutor(judge.workers, thread_name_prefix="judge") as pool:
        futures = {pool.submit(judge.reply, question): question for question in questions}
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield futures[future], future.result()
                elif failure is None:
                    failure = error
                    _end(judge, futures)
        finally:
            _end(judge, futures)
        if failure is not None:
            raise failure


def _end(judge: AnyJudge, futures: Iterable[Future[Reply]]) -> None:
    judge.stop()
    for future in futures:
        future.cancel()


def _make_judge(name: str, definition: JudgeDefinition) -> AnyJudge:
    if definition.kind == "reference":
        from synopsis.stages.judge.reference import ReferenceJudge

        return ReferenceJudge(definition.tie_margin)
    # Imported here: the client takes more than a second to import, and the other judge works without it.
    from synopsis.stages.judge.chat import ChatJudge

    return ChatJudge(name, definition)


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the command line prints."""
    return {key: result[key] for key in ("win", "lose", "tie", "parse_error", "api_error", "win_rate")}
