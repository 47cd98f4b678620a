"""The stage `judge`: every pair of outputs in both orders, a store that survives a kill, and a summary.

    from synopsis.stages.judge.run import judge
    judge(experiment, "reference", "gist-1-s0", "pos_control-s0", "seen")["win_rate"]

Both orders are judged because judges prefer a position: averaged over the two, that preference cancels out, and
`first_position_wins` and `consistent` say how large it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from synopsis.artifacts import Layout, Provenance, write_json
from synopsis.config.experiment import Experiment
from synopsis.config.files import JudgeDefinition
from synopsis.errors import SynopsisError
from synopsis.progress import say, track
from synopsis.stages.judge.pairs import ORDERS, Pair, Question, read_pairs
from synopsis.stages.judge.prompts import parse_choice, text_for
from synopsis.stages.judge.records import AnyJudge, Judgement, Key, Reply, cost, state_of, text_hash
from synopsis.stages.judge.replay import replay
from synopsis.stages.judge.section import STAGE
from synopsis.stages.judge.statistics import summarise
from synopsis.stages.judge.store import JudgementStore, read_judgements

EARLY_ERROR_SHARE = 0.2
DOWN_AFTER = 10
"""With a larger share of judgements without an answer, or with as many in a row whose retries were all in vain (and not
fewer than are asked at a time), the service is down, and asking on would cost hours."""

BYTES_PER_TOKEN = 4
"""Of English, about, for an estimate before anything is asked."""

ANSWER_FIELDS = ("kind", "model", "base_url", "prompt", "temperature", "max_tokens", "tie_margin")
WHERE_SET = ("structured", "judgements")
"""Fields of a judge that its answers depend on, the latter where they are set: neither a new field of judges nor more
patience or threads must make paid judgements void."""


def judge(experiment: Experiment, judge: str, a: str, b: str, split: str, dry_run: bool = False) -> dict[str, Any]:
    """Judge the outputs of runs `a` and `b` for a split, write the summary beside the store and return it.

    Judgements in the store that this judge made of the same texts are used again; those that ended in an `api_error`
    are asked again. Raises InputError (missing key, refused key), DataError or ArtifactError (outputs
    that cannot be compared), and SynopsisError when too many judgements have no answer or cost too much.
    With `dry_run` nothing is asked or written; what `estimate` finds is returned.
    """
    definition, layout = experiment.judges[judge], Layout(experiment)
    path = layout.judgements(judge, a, b, split)
    judge_hash = hash_of(definition)
    provenance = Provenance(config=STAGE.fingerprint(experiment, judge=judge, a=a, b=b, split=split))
    pairs, inputs, unmatched = read_pairs(experiment, a, b, split, with_instructions=definition.kind == "openai")
    if dry_run:
        return estimate(definition, pairs, path, judge_hash)
    judgements = judge_pairs(judge, definition, pairs, path, judge_hash)
    provenance.inputs = [*inputs, path]
    models = sorted({judgement.model for judgement in judgements if judgement.model})
    place = {"judge": judge, "a": a, "b": b, "split": split, "unmatched": unmatched}
    summary = {**place, **summarise(pairs, judgements)}
    summary |= {"judge_hash": judge_hash, "max_error_share": definition.max_error_share}
    write_json(path.with_suffix(".json"), "judgement_summary", summary, provenance.record(judge_models=models))
    return summary


def hash_of(definition: JudgeDefinition) -> str:
    """The hash of what a judge's answers depend on; its parser, limits and prices are not part of it."""
    fields = {*ANSWER_FIELDS, *(name for name in WHERE_SET if getattr(definition, name))}
    return text_hash(json.dumps([definition.model_dump(mode="json", include=fields)], sort_keys=True))


def judge_pairs(
    name: str, definition: JudgeDefinition, pairs: Sequence[Pair], path: Path, judge_hash: str
) -> list[Judgement]:
    """A judgement of each pair in both orders, `ab` before `ba`, with the store at `path`, which is made where none is.

    name: of the judge, for messages. Waits while another process holds the store. Raises InputError (missing or refused
    key, no new files allowed), ArtifactError (a damaged store), and SynopsisError when more judgements have no answer
    than `max_error_share` allows, or `max_cost` would be passed; what was stored is kept.
    """
    if definition.kind == "replay":
        return replay(definition, pairs, path, judge_hash)
    with JudgementStore(path) as store:
        hashes, held, left = _divided(definition, pairs, judge_hash, store.latest)
        if held and left:
            say(f"{path}: {len(held)} of {len(hashes)} judgements are there already")
        # Answers are read again by the parser of today, which may be a better one.
        read_again = {question: _read_again(definition, question, found) for question, found in held.items()}
        store.append([judgement for question, judgement in read_again.items() if judgement is not held[question]])
        held |= read_again
        identical = [question for question in left if _needs_no_call(definition, question)]
        same = Reply(2, attempts=0, identical=True)
        held |= {question: Judgement.of(question, same, hashes[question], judge_hash) for question in identical}
        store.append([held[question] for question in identical])
        left = [question for question in left if question not in held]
        if left:  # else no judge is made, so that a finished store is summarised without a key
            _ask(name, definition, store, judge_hash, {question: hashes[question] for question in left}, held)
        return [held[question] for question in hashes]


def stored_judgements(definition: JudgeDefinition, pairs: Sequence[Pair], path: Path) -> list[Judgement]:
    """The judgements of these pairs in the store at `path`, without asking; fewer where some are not there."""
    latest, judge_hash = {judgement.key: judgement for judgement in read_judgements(path)}, hash_of(definition)
    if definition.kind == "replay":
        return list(latest.values())
    hashes, _, _ = _divided(definition, pairs, judge_hash, latest)
    keys = [(question.pair.id, question.order, judge_hash, prompt_hash) for question, prompt_hash in hashes.items()]
    return [latest[key] for key in keys if key in latest]


def estimate(definition: JudgeDefinition, pairs: Sequence[Pair], path: Path, judge_hash: str) -> dict[str, Any]:
    """What `judge_pairs` would ask and cost, without asking.

    calls: requests, retries not counted; stored, identical: judgements that need none; prompt_tokens_about: with
    `BYTES_PER_TOKEN`; price_at_most: with as many tokens, None where the judge's file names no price.
    """
    latest = {judgement.key: judgement for judgement in read_judgements(path)}
    _, held, left = _divided(definition, pairs, judge_hash, latest)
    asked = [question for question in left if not _needs_no_call(definition, question)]
    calls = len(asked) if definition.kind == "openai" else 0
    prompt = calls and sum(len(text_for(definition, question).encode()) for question in asked) // BYTES_PER_TOKEN
    completion = calls * definition.max_tokens
    return {
        "calls": calls,
        "stored": len(held),
        "identical": len(left) - len(asked),
        "prompt_tokens_about": prompt,
        "completion_tokens_at_most": completion,
        "price_at_most": cost(definition, prompt, completion),
        "max_cost": definition.max_cost,
    }


def _divided(
    definition: JudgeDefinition, pairs: Sequence[Pair], judge_hash: str, latest: Mapping[Key, Judgement]
) -> tuple[dict[Question, str], dict[Question, Judgement], list[Question]]:
    """Hashes of the questions' prompts, the stored judgements that hold, and the questions that have none."""
    hashes = {}
    held = {}
    for question in (Question(pair, order) for pair in pairs for order in ORDERS):
        hashes[question] = prompt_hash = text_hash(text_for(definition, question))
        found = latest.get((question.pair.id, question.order, judge_hash, prompt_hash))
        if found is not None and found.state != "api_error":
            held[question] = found
    return hashes, held, [question for question in hashes if question not in held]


def _read_again(definition: JudgeDefinition, question: Question, found: Judgement) -> Judgement:
    if definition.kind != "openai" or found.identical:
        return found
    state = state_of(Reply(parse_choice(found.answer, definition.parser)), question.order)
    return found if state == found.state else found.model_copy(update={"state": state})


def _needs_no_call(definition: JudgeDefinition, question: Question) -> bool:
    """Whether both answers are the same, which is a tie; recorded judgements stay what they were."""
    return question.first == question.second and definition.kind == "openai"


def _ask(
    name: str,
    definition: JudgeDefinition,
    store: JudgementStore,
    judge_hash: str,
    hashes: Mapping[Question, str],
    held: dict[Question, Judgement],
) -> None:
    """Ask the questions of `hashes`, and put their judgements into the store and into `held`."""
    total, errors, in_a_row, ended = len(held) + len(hashes), 0, 0, False
    progress = track(iter(lambda: ended, True), f"judge {name}", total=len(hashes), unit="judgements")

    def fail(extent: str, error: str | None) -> NoReturn:
        raise SynopsisError(
            f"judge '{name}': {errors} of {total} judgements have no answer, {extent} (the last: {error}). No summary "
            f"was written. The judgements made so far are kept in {store.path}: run again when the service answers, "
            "and only the missing ones are asked."
        )

    def keep(replies: Sequence[tuple[Question, Reply]]) -> None:
        nonlocal errors, in_a_row
        made = [Judgement.of(question, reply, hashes[question], judge_hash) for question, reply in replies]
        store.append(made)
        for (question, reply), judgement in zip(replies, made, strict=True):
            held[question] = judgement
            if reply.error is None:
                in_a_row = 0
                next(progress)
                continue
            errors += 1
            in_a_row += reply.attempts > definition.max_retries
            if errors > (share := max(EARLY_ERROR_SHARE, definition.max_error_share)) * total:
                fail(f"more than {share:.0%}", reply.error)
            if in_a_row >= max(DOWN_AFTER, definition.concurrency):
                fail(f"{in_a_row} of them in a row", reply.error)

    _make_judge(name, definition, store.spent(judge_hash)).ask(list(hashes), keep)
    ended = True
    next(progress, None)
    if errors > definition.max_error_share * total:
        last = [judgement.error for judgement in held.values() if judgement.error][-1]
        fail(f"more than {definition.max_error_share:.0%}", last)
    if errors:
        say(f"{store.path}: warning: {errors} judgements have no answer; run again to ask for them")


def _make_judge(name: str, definition: JudgeDefinition, spent: float) -> AnyJudge:
    if definition.kind == "reference":
        from synopsis.stages.judge.reference import ReferenceJudge

        return ReferenceJudge(definition.tie_margin)
    # Imported here: the client takes more than a second to import, and the other judge works without it.
    from synopsis.stages.judge.chat import ChatJudge

    return ChatJudge(name, definition, spent)


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the command line prints."""
    if "calls" in result:  # of a dry run
        return {key: value for key, value in result.items() if value is not None}
    return {key: result[key] for key in ("win", "lose", "tie", "parse_error", "api_error", "win_rate")}
