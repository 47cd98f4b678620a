"""The judge behind an OpenAI-compatible chat service: a hosted one, or vLLM or llama.cpp on this machine.

What passes by itself (rate limits, overload, timeouts) is asked again with growing pauses; what a person must correct
(a wrong key, an unknown model, an empty account) ends the run at once; the rest is an `api_error` of one judgement.
The key is read from the environment and cut out of every text that a service sends back.
"""

from __future__ import annotations

import os
import threading

import openai
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from synopsis.config.files import JudgeDefinition
from synopsis.errors import InputError, SynopsisError
from synopsis.stages.judge.pairs import Question
from synopsis.stages.judge.prompts import parse_choice, text_for
from synopsis.stages.judge.records import Reply

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
ERROR_CHARACTERS = 500
"""Kept of a service's error text, which may be a whole web page."""


class ChatJudge:
    """Asks a chat model; safe to use from several threads. Raises InputError when the key is missing."""

    def __init__(self, name: str, definition: JudgeDefinition):
        self.name, self.definition, self.workers = name, definition, definition.concurrency
        self._key = _key_from_environment(name, definition)
        self._stopped = threading.Event()
        # The client's own retries are off: two layers of them would multiply.
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=definition.base_url,
            timeout=definition.timeout_seconds,
            max_retries=0,
        )

    def reply(self, question: Question) -> Reply:
        """Ask one question; SynopsisError when asking the next one would fail in the same way."""
        prompt, attempts = text_for(self.definition, question), 0
        retrying = Retrying(
            stop=stop_after_attempt(self.definition.max_retries + 1),
            wait=_pause,
            retry=retry_if_exception(_passes_by_itself),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            for attempt in retrying:
                attempts += 1
                with attempt:
                    text, model = self._ask(prompt)
        except (openai.OpenAIError, _NoCompletion) as error:
            self._raise_if_hopeless(error)
            return Reply(error=self._redacted(f"{type(error).__name__.lstrip('_')}: {error}"), attempts=attempts)
        choice = parse_choice(text, self.definition.parser)
        return Reply(choice, self._without_key(text), attempts=attempts, model=model)

    def stop(self) -> None:
        """Wake threads that wait for their next try; they end without an answer."""
        self._stopped.set()

    def _ask(self, prompt: str) -> tuple[str, str | None]:
        """The text of the answer and the model that wrote it."""
        try:
            # `max_tokens` and not its successor: local servers know only the older name.
            completion = self._client.chat.completions.create(
                model=self.definition.model or "",
                messages=[{"role": "user", "content": prompt}],
                temperature=self.definition.temperature,
                max_tokens=self.definition.max_tokens,
            )
            # The client checks no types: a proxy's page with status 200 arrives here as a string.
            return str(completion.choices[0].message.content or ""), completion.model
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise _NoCompletion(f"the service sent something that is no chat completion ({error})") from None

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise SynopsisError(f"judge '{self.name}': stopped while waiting for the service")

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
        return text.replace(self._key, "[key]")


class _NoCompletion(Exception):
    """A service answered with status 200, but not with a chat completion."""


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
    return isinstance(error, openai.APIConnectionError)  # timeouts are a kind of it


def _pause(state: RetryCallState) -> float:
    """Seconds before the next try: doubling with jitter, and at least what the service asks for, up to a minute."""
    growing = wait_exponential(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS) + wait_random(0, FIRST_PAUSE_SECONDS)
    error = state.outcome.exception() if state.outcome else None
    asked = 0.0
    if isinstance(error, openai.APIStatusError):
        try:
            asked = float(error.response.headers.get("retry-after", 0))
        except ValueError:
            asked = 0.0  # a date, which services of this kind do not send
    return min(max(growing(state), asked), LONGEST_PAUSE_SECONDS)
