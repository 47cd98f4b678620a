"""What a judge replies, and what is kept of it: one record a judgement."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import pydantic

from synopsis.config.files import JudgeDefinition
from synopsis.stages.judge.pairs import Order, Question

Key = tuple[str, str, str, str]
"""Of a judgement: its id, order, `judge_hash` and `prompt_hash`."""
State = Literal["A", "B", "tie", "parse_error", "api_error"]
"""`A`, `B`: the run that won, whatever the order; `parse_error`: an answer without a choice; `api_error`: no answer."""


@dataclass(frozen=True)
class Reply:
    """A judge's answer to one question.

    choice: 0 the first answer, 1 the second, 2 equal, None if the text names none; text: the answer as it came;
    error: why there is no answer, None when there is one; the rest as in `Judgement`.
    """

    choice: int | None = None
    text: str = ""
    error: str | None = None
    attempts: int = 1
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    price: float | None = None
    seconds: float | None = None
    identical: bool = False


Keep = Callable[[Sequence[tuple[Question, Reply]]], None]
"""Stores replies; SynopsisError when no more questions are to be asked."""


class AnyJudge(Protocol):
    """What the stage needs of a judge: to ask all questions and hand over the replies as they come."""

    def ask(self, questions: Sequence[Question], keep: Keep) -> None: ...


def state_of(reply: Reply, order: Order) -> State:
    """The state of a judgement, with the order of the two answers undone.

    >>> [state_of(Reply(choice), "ba") for choice in (0, 1, 2, None)]
    ['B', 'A', 'tie', 'parse_error']
    >>> state_of(Reply(error="503"), "ab")
    'api_error'
    """
    if reply.error is not None:
        return "api_error"
    if reply.choice is None:
        return "parse_error"
    if reply.choice == 2:
        return "tie"
    return "A" if (reply.choice == 0) == (order == "ab") else "B"


class Judgement(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A line of the store. `prompt_hash` and `judge_hash` say for what text and what judge the state holds.

    answer: as it came; attempts: requests made, 0 where none was needed; model: as named by the service; tokens: as
    counted by it, None where it does not say; price: in the currency of the judge's file, None where that names no
    price; seconds: from the first request to the answer; identical: a tie without a call, as both answers are equal.
    """

    id: str
    order: Order
    state: State
    answer: str
    error: str | None
    attempts: int
    model: str | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    price: float | None = None
    seconds: float | None = None
    identical: bool = False
    prompt_hash: str
    judge_hash: str
    time: str

    @property
    def key(self) -> Key:
        return (self.id, self.order, self.judge_hash, self.prompt_hash)

    @property
    def first_won(self) -> bool:
        return self.state == ("A" if self.order == "ab" else "B")

    @classmethod
    def of(cls, question: Question, reply: Reply, prompt_hash: str, judge_hash: str) -> Judgement:
        return cls(
            id=question.pair.id,
            order=question.order,
            state=state_of(reply, question.order),
            answer=reply.text,
            **{name: value for name, value in vars(reply).items() if name not in ("choice", "text")},
            prompt_hash=prompt_hash,
            judge_hash=judge_hash,
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def cost(definition: JudgeDefinition, prompt_tokens: int, completion_tokens: int) -> float | None:
    """The price of tokens; None where the judge's file names none."""
    price = definition.price
    return (price.prompt * prompt_tokens + price.completion * completion_tokens) / 1e6 if price else None
