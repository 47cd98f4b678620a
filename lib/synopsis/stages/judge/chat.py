"""The judge behind an OpenAI-compatible chat service: a hosted one, or vLLM or llama.cpp on this machine.

What passes by itself (rate limits, overload, timeouts) is asked again with growing pauses; what a person must correct
(a wrong key, an unknown model, an empty account) ends the run at once; the rest is an `api_error` of one judgement.
The key is read from the environment and cut out of every text that a service sends back.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from synopsis.config.files import JudgeDefinition
from synopsis.errors import InputError, SynopsisError
from synopsis.progress import say
from synopsis.stages.judge.pairs import Question
from synopsis.stages.judge.prompts import PARSERS, parse_choice, text_for
from synopsis.stages.judge.records import Keep, Reply, cost

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_ASKED_FOR = 600.0
"""Seconds. A service that asks for more, as where a day's quota is used up, is asked again sooner."""
ERROR_CHARACTERS = 500
"""Kept of a service's error text, which may be a whole web page."""
TEMPLATE_TOKENS = 100
"""More than a service adds to a prompt to make a chat of it."""


class ChatJudge:
    """Asks a chat model; InputError when the key is missing. `spent`: what counts towards `max_cost` already."""

    def __init__(self, name: str, definition: JudgeDefinition, spent: float = 0.0):
        self.name, self.definition, self.spent = name, definition, spent
        self._structured = definition.structured
        self._key = _key_from_environment(name, definition)
        self._on_their_way: list[float] = []
        self._stopped = asyncio.Event()
        # The client's own retries are off: two layers of them would multiply. Its timeouts are off because they start
        # anew with every byte.
        self._client = openai.AsyncOpenAI(api_key=self._key, base_url=definition.base_url, timeout=None, max_retries=0)

    def ask(self, questions: Sequence[Question], keep: Keep) -> None:
        """Ask `concurrency` questions at a time; each answer is kept before its place is free for another question.

        After an error that ends the run no further question is asked; answers on their way still come and are kept.
        """
        _run(self._ask_all(questions, keep))

    async def _ask_all(self, questions: Sequence[Question], keep: Keep) -> None:
        waiting, failures = iter(questions), list[SynopsisError]()

        async def work() -> None:
            for question in waiting:
                try:
                    keep([(question, await self._reply(question))])
                except SynopsisError as error:
                    failures.append(error)
                    self._stopped.set()
                if failures:
                    return

        async with self._client:
            await asyncio.gather(*(work() for _ in range(min(self.definition.concurrency, len(questions)))))
        if self.definition.price:
            say(f"judge '{self.name}': these outputs have cost {self.spent:.4g} so far")
        if failures:
            raise failures[0]

    async def _reply(self, question: Question) -> Reply:
        """Ask one question; SynopsisError when asking the next one would fail in the same way."""
        # What a service sends may be JSON and yet no Unicode; the store and the next request must be.
        prompt = _unicode(text_for(self.definition, question))
        prices: list[float] = []
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.definition.max_retries + 1),
            wait=_pause,
            retry=retry_if_exception(_passes_by_itself),
            sleep=self._sleep,
            reraise=True,
        )
        start = time.monotonic()
        try:
            found: Reply = await retrying(self._attempt, prompt, prices)
            reply = replace(found, choice=parse_choice(found.text, self.definition.parser))
        except (openai.OpenAIError, _NoCompletion, _Stopped, TimeoutError) as error:
            self._raise_if_hopeless(error)
            reply = Reply(error=self._redacted(f"{type(error).__name__.lstrip('_')}: {error}"))
        return replace(
            reply,
            attempts=retrying.statistics["attempt_number"],
            price=sum(prices) if self.definition.price else None,
            seconds=round(time.monotonic() - start, 3),
        )

    async def _attempt(self, prompt: str, prices: list[float]) -> Reply:
        """One request, within the budget; adds its price to `prices`.

        A request that may have been answered, though no answer came, is charged at its worst, so that `max_cost` holds.
        """
        # A token stands for at least one byte.
        tokens = len(prompt.encode()) + TEMPLATE_TOKENS
        price = worst = cost(self.definition, tokens, self.definition.max_tokens) or 0.0
        await self._reserve(worst, first=not prices)
        try:
            reply = await self._answer(prompt)
            if reply.prompt_tokens is not None and reply.completion_tokens is not None:
                price = cost(self.definition, reply.prompt_tokens, reply.completion_tokens) or 0.0
            return reply
        except Exception as error:
            if isinstance(error, openai.APIStatusError) or type(error.__cause__).__name__ == "ConnectError":
                price = 0.0
            raise
        finally:
            prices.append(price)
            self.spent += price
            self._on_their_way.remove(worst)

    async def _reserve(self, worst: float, first: bool) -> None:
        """Wait until a request surely fits into what is left of `max_cost`."""
        limit = math.inf if self.definition.max_cost is None else self.definition.max_cost
        while self.spent + sum(self._on_their_way) + worst > limit:
            if not self._on_their_way:
                said = (
                    f"judge '{self.name}': the next question may cost {worst:.2g}, and {self.spent:.4g} of max_cost, "
                    f"{limit:g}, is spent. Judgements made so far are kept; raise max_cost and run again."
                )
                raise SynopsisError(said) if first else _Stopped(said)
            await asyncio.sleep(0.01)
        self._on_their_way.append(worst)

    async def _answer(self, prompt: str, structured: bool = True) -> Reply:
        """The answer to one request, with its choice still to be read."""
        structured = structured and self._structured
        request = {
            "model": self.definition.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.definition.temperature,
            # And not its successor: local servers know only the older name.
            "max_tokens": self.definition.max_tokens,
            **({"response_format": _schema(self.definition.parser)} if structured else {}),
        }
        try:
            async with asyncio.timeout(self.definition.timeout_seconds):
                # Not `chat.completions.create`: its types take as much time as the rest, and check nothing.
                body: Any = await self._client.post("/chat/completions", body=request, cast_to=object)
            text, usage = body["choices"][0]["message"].get("content") or "", body.get("usage") or {}
            if not isinstance(text, str):
                raise TypeError("its content is no text")
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            if not structured:
                raise
            reply = await self._answer(prompt, structured=False)
            if self._structured:
                self._structured = False
                say(f"judge '{self.name}': the service refuses `structured`; asking without it")
            return reply
        except TimeoutError:
            raise TimeoutError(f"no answer within {self.definition.timeout_seconds:g} s") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _NoCompletion(f"the service sent something that is no chat completion ({error})") from None
        model = body.get("model")
        return Reply(
            text=self._without_key(text),
            model=self._without_key(str(model)) if model else None,
            prompt_tokens=_count(usage, "prompt_tokens"),
            completion_tokens=_count(usage, "completion_tokens"),
        )

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return
        raise _Stopped("the run ended while this question waited for its next try")

    def _raise_if_hopeless(self, error: Exception) -> None:
        model, key, said = self.definition.model, self.definition.api_key_env, self._redacted(str(error))
        reasons: dict[type[Exception], str] = {
            openai.AuthenticationError: f"the service refuses the key in {key} (401)",
            openai.PermissionDeniedError: f"the key in {key} may not use the model '{model}' (403): {said}",
            openai.NotFoundError: f"no model '{model}' there, or no chat service (404): {said}",
        }
        reason, kind = reasons.get(type(error)), InputError if type(error) in reasons else SynopsisError
        if _account_is_empty(error):
            reason = "the account's quota is used up (429)"
        if reason is not None:
            place = f"judge '{self.name}' at {self._client.base_url}"
            kept = "Judgements made so far are kept; correct this and run the stage again."
            raise kind(f"{place}: {reason}. {kept}") from None

    def _redacted(self, text: str) -> str:
        return self._without_key(text)[:ERROR_CHARACTERS]

    def _without_key(self, text: str) -> str:
        return _unicode(text).replace(self._key, "[key]")


class _NoCompletion(Exception):
    """A service answered with status 200, but not with a chat completion."""


class _Stopped(Exception):
    """A question is not asked again, as the run ends."""


def _schema(parser: str) -> dict[str, Any]:
    """The answer that a parser reads, as structured output is asked for."""
    choices: list[Any] = [int(choice) if choice.isdigit() else choice for choice in PARSERS[parser]]
    choice = {"type": "integer" if isinstance(choices[0], int) else "string", "enum": choices}
    fields = {"reason": {"type": "string"}, "choice": choice}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": schema}}


def _run(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, also where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()


def _unicode(text: str) -> str:
    """A text without lone surrogates, which JSON allows and UTF-8 does not."""
    return text.encode("utf-8", "replace").decode()


def _count(usage: Any, name: str) -> int | None:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


def _key_from_environment(name: str, definition: JudgeDefinition) -> str:
    key = os.environ.get(definition.api_key_env, "").strip()
    if not key:
        raise InputError(
            f"judge '{name}': the environment variable {definition.api_key_env} is not set; expected the key of "
            f"{definition.base_url or 'the service'} (any text, for a local server that checks none)"
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            f"judge '{name}': the environment variable {definition.api_key_env} holds characters that no key has; "
            "expected one line of printable ASCII"
        )
    return key


def _account_is_empty(error: BaseException) -> bool:
    # Sent with the status of a rate limit, but waiting does not help.
    return isinstance(error, openai.RateLimitError) and "insufficient_quota" in (error.code, error.type)


def _passes_by_itself(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return (error.status_code in (408, 409, 429) or error.status_code >= 500) and not _account_is_empty(error)
    return isinstance(error, openai.APIConnectionError | _NoCompletion | TimeoutError)


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: doubling with jitter up to a minute, or as long as the service asks for."""
    jitter = wait_random(0, FIRST_PAUSE_SECONDS)
    growing = wait_exponential(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)(state)
    error = state.outcome.exception() if state.outcome else None
    asked = _seconds_asked_for(error.response.headers) if isinstance(error, openai.APIStatusError) else 0.0
    return max(growing, min(asked, LONGEST_PAUSE_ASKED_FOR)) + jitter(state)


def _seconds_asked_for(headers: Mapping[str, str]) -> float:
    """What `Retry-After` says, in seconds or as a date; 0 where it says nothing that can be read.

    >>> _seconds_asked_for({"retry-after": "1.5"}), _seconds_asked_for({"retry-after": "soon"})
    (1.5, 0.0)
    >>> now = {"date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    >>> _seconds_asked_for({**now, "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"})
    30.0
    """
    value = headers.get("retry-after", "0")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        # By the clock of the service, where it says what that shows.
        now = email.utils.parsedate_to_datetime(headers.get("date") or email.utils.formatdate(usegmt=True))
        return max(0.0, (email.utils.parsedate_to_datetime(value) - now).total_seconds())
    except (TypeError, ValueError):
        return 0.0
