"""The chat judge under faults: kills, a service that fails in every way, two clients, budgets."""

from __future__ import annotations

import asyncio
import doctest
import hashlib
import json
import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, completion, judge_quickly
from synopsis.config.files import JudgeDefinition
from synopsis.errors import SynopsisError
from synopsis.stages.judge import chat, records
from synopsis.stages.judge.pairs import Pair
from synopsis.stages.judge.records import Judgement
from synopsis.stages.judge.run import estimate, hash_of, judge_pairs
from synopsis.stages.judge.statistics import summarise
from synopsis.stages.judge.store import parse

CONCURRENCY, KILLS = 16, 20
CLIENTS = multiprocessing.get_context("forkserver")


@pytest.fixture(autouse=True, scope="module")
def environment() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_JUDGE_KEY", "any")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        CLIENTS.set_forkserver_preload(["synopsis.stages.judge.run", "synopsis.stages.judge.chat"])
        yield


def define(server: ChatServer, **changes: Any) -> JudgeDefinition:
    """A judge whose prompt is `<first answer>|<second answer>`."""
    plain = {"kind": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEST_JUDGE_KEY"}
    limits = {"concurrency": CONCURRENCY, "timeout_seconds": 1.0, "max_retries": 20}
    return JudgeDefinition.model_validate(
        {**plain, **limits, "prompt": "{instruction}{answer_a}|{answer_b}", **changes}
    )


def make_pairs(count: int) -> list[Pair]:
    return [Pair(f"e{n}", "", "", f"a{n}", f"b{n}", "") for n in range(count)]


def number(*parts: object) -> float:
    """From 0 to 1, by the parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 16**8


def verdict(prompt: str) -> str:
    """The text that a prompt is answered with; one in 20 cannot be parsed."""
    drawn = number("verdict", prompt)
    return "Both have merits." if drawn < 0.05 else json.dumps({"reason": "so", "choice": int(drawn * 1000) % 3})


async def plain(prompt: str, earlier: int) -> tuple[int, str, str]:
    return 200, "", completion(verdict(prompt))


async def failing(prompt: str, earlier: int) -> tuple[int, str, str] | None:
    drawn = number("fault", prompt, earlier)
    if drawn < 0.10:
        return 429, "retry-after: 0.02\r\n", '{"error": {"message": "slowly"}}'
    if drawn < 0.20:
        return 500, "", '{"error": {"message": "not now"}}'
    if drawn < 0.25:
        await asyncio.sleep(3600)
    if drawn < 0.30:
        return None
    if drawn < 0.35:
        return 200, "", "<html>log in first</html>"
    await asyncio.sleep(0.005)
    return await plain(prompt, earlier)


def stored(path: Path) -> list[Judgement]:
    return parse(path, path.read_bytes())[0] if path.exists() else []


def price_of(path: Path) -> float:
    return sum(judgement.price or 0.0 for judgement in stored(path))


def start(definition: JudgeDefinition, pairs: list[Pair], path: Path) -> Any:
    process = CLIENTS.Process(target=judge_quickly, args=(definition, pairs, path))
    process.start()
    return process


def prompt_of(judgement: Judgement) -> str:
    first, second = "ab" if judgement.order == "ab" else "ba"
    return f"{first}{judgement.id[1:]}|{second}{judgement.id[1:]}"


def test_nothing_is_lost_or_asked_again_under_faults_and_kills(tmp_path):
    pairs, path, draw = make_pairs(1000), tmp_path / "store.jsonl", random.Random(0)
    asked_when_stored: dict[str, int] = {}
    with ChatServer(failing) as server:
        definition = define(server)
        for kill in range(KILLS + 1):
            goal = (kill + draw.random()) / (KILLS + 1) * 2 * len(pairs)
            client = start(definition, pairs, path)
            while client.is_alive() and (kill == KILLS or len(stored(path)) < goal):
                client.join(0.05)
            client.kill()
            client.join()
            assert client.exitcode == (0 if kill == KILLS else -signal.SIGKILL)
            for judgement in stored(path):
                asked_when_stored.setdefault(prompt_of(judgement), server.asked[prompt_of(judgement)])
        judgements = stored(path)
        assert len(judgements) == len({judgement.key for judgement in judgements}) == 2 * len(pairs)
        assert asked_when_stored == server.asked, "no question was asked again once its answer was stored"
        assert sum(server.answered.values()) - 2 * len(pairs) <= KILLS * CONCURRENCY
    with ChatServer(plain) as server:
        calm = tmp_path / "calm.jsonl"
        judge_pairs("chat", define(server), pairs, calm, hash_of(definition))

    def states(found: list[Judgement]) -> list[Judgement]:
        return sorted(found, key=lambda judgement: judgement.key)

    assert {judgement.state for judgement in judgements} == {"A", "B", "tie", "parse_error"}
    assert summarise(pairs, states(judgements)) == summarise(pairs, states(stored(calm)))


def test_two_clients_at_once_ask_nothing_twice(tmp_path):
    pairs, path = make_pairs(100), tmp_path / "store.jsonl"

    async def slowly(prompt: str, earlier: int) -> tuple[int, str, str]:
        await asyncio.sleep(0.02)
        return await plain(prompt, earlier)

    with ChatServer(slowly) as server:
        clients = [start(define(server), pairs, path) for _ in range(2)]
        for client in clients:
            client.join(60)
            assert client.exitcode == 0
        assert set(server.asked.values()) == {1} and len(server.asked) == len(stored(path)) == 200


# ------------------------------------------------------------------------------------------------------------- budgets


PRICE = {"prompt": 1000.0, "completion": 10_000.0}
"""The server counts 100 tokens and 10: 0.2 a request. At worst it is 10 tokens and a prompt of 105 bytes: 0.205."""


def test_max_cost_is_not_passed_and_can_be_raised(tmp_path, capsys):
    pairs, path = make_pairs(10), tmp_path / "store.jsonl"
    with ChatServer(plain) as server:
        definition = define(server, price=PRICE, max_tokens=10, max_cost=2.1)
        with pytest.raises(SynopsisError, match=r"of max_cost, 2\.1, is spent"):
            judge_pairs("chat", definition, pairs, path, hash_of(definition))
        assert server.asked.total() == len(stored(path)) == 10 and price_of(path) == pytest.approx(2.0)
        with pytest.raises(SynopsisError, match="2 of max_cost"):
            judge_pairs("chat", definition, pairs, path, hash_of(definition))
        assert server.asked.total() == 10, "what an earlier run spent counts"
        assert "these outputs have cost 2 so far" in capsys.readouterr().err
        richer = define(server, price=PRICE, max_tokens=10, max_cost=4.1)
        assert len(judge_pairs("chat", richer, pairs, path, hash_of(richer))) == 20 == server.asked.total()


def test_a_request_without_an_answer_is_charged_at_its_worst(tmp_path):
    async def lost_once(prompt: str, earlier: int) -> tuple[int, str, str] | None:
        return await plain(prompt, earlier) if earlier else None

    path = tmp_path / "store.jsonl"
    with ChatServer(lost_once) as server:
        definition = define(server, price=PRICE, max_tokens=10)
        judge_pairs("chat", definition, make_pairs(1), path, hash_of(definition))
    assert [judgement.price for judgement in stored(path)] == [pytest.approx(0.2 + 0.205)] * 2
    assert {(judgement.prompt_tokens, judgement.completion_tokens) for judgement in stored(path)} == {(100, 10)}


def test_an_estimate_asks_nothing(tmp_path):
    pairs, path = [*make_pairs(3), Pair("same", "", "", "x", "x", "")], tmp_path / "deep" / "store.jsonl"
    with ChatServer(plain) as server:
        definition = define(server, price=PRICE, max_tokens=10)
        found = estimate(definition, pairs, path, hash_of(definition))
        # Prompts of 5 characters, 4 a token.
        assert found == {
            "calls": 6, "stored": 0, "identical": 2, "prompt_tokens_about": 7, "completion_tokens_at_most": 60,
            "price_at_most": pytest.approx(0.607), "max_cost": None,
        }  # fmt: skip
        assert not path.parent.exists() and not server.asked
        judgements = judge_pairs("chat", definition, pairs, path, hash_of(definition))
        assert estimate(definition, pairs, path, hash_of(definition))["calls"] == 0
    same = judgements[-2:]
    assert [(found.state, found.identical, found.attempts) for found in same] == [("tie", True, 0)] * 2
    assert "x|x" not in server.asked


# -------------------------------------------------------------------------------------------------------- odd services


@pytest.mark.parametrize("module", [chat, records])
def test_doctests(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("supported", [True, False])
def test_structured_output_is_asked_for_where_the_service_offers_it(tmp_path, supported, capsys):
    async def picky(prompt: str, earlier: int) -> tuple[int, str, str]:
        structured = "response_format" in server.last_request
        return (400, "", "{}") if structured and not supported else await plain(prompt, earlier)

    with ChatServer(picky) as server:
        definition = define(server, structured=True, concurrency=1)
        judge_pairs("chat", definition, make_pairs(2), tmp_path / "store.jsonl", hash_of(definition))
        assert server.asked.total() == 4 + (not supported), "refused once"
        assert ("response_format" in server.last_request) == supported
        if supported:
            schema = server.last_request["response_format"]["json_schema"]["schema"]
            assert schema["properties"]["choice"] == {"type": "integer", "enum": [0, 1, 2]}
    assert ("refuses `structured`" in capsys.readouterr().err) != supported


@pytest.mark.parametrize("text", ["", "\ud83d half", "a\x00b\x1b[2J\u2028", "x" * 3_000_000])
def test_odd_answers_are_stored_and_read_again(tmp_path, text):
    async def odd(prompt: str, earlier: int) -> tuple[int, str, str]:
        return 200, "", completion(text)

    path = tmp_path / "store.jsonl"
    with ChatServer(odd) as server:
        pairs = [Pair("1", "\ud83d", "", "a", "b", "")]
        definition = define(server)
        judgements = judge_pairs("chat", definition, pairs, path, hash_of(definition))
        assert judgements == judge_pairs("chat", definition, pairs, path, hash_of(definition))
        assert server.asked.total() == 2
    assert {(found.state, found.answer) for found in judgements} == {("parse_error", text.replace("\ud83d", "?"))}


def test_a_service_that_never_answers_fails_the_stage(tmp_path):
    async def hang(prompt: str, earlier: int) -> tuple[int, str, str]:
        await asyncio.sleep(3600)
        raise AssertionError

    with ChatServer(hang) as server:
        definition = define(server, timeout_seconds=0.2, max_retries=0)
        with pytest.raises(SynopsisError, match=r"no answer within 0\.2 s"):
            judge_pairs("chat", definition, make_pairs(3), tmp_path / "store.jsonl", hash_of(definition))


def test_a_better_parser_reads_stored_answers_without_a_call(tmp_path):
    path = tmp_path / "store.jsonl"
    with ChatServer(plain) as server:
        definition = define(server)
        judgements = judge_pairs("chat", definition, make_pairs(9), path, hash_of(definition))
        asked = server.asked.total()
        worse = [found.model_copy(update={"state": "parse_error"}) for found in judgements]
        path.write_text("".join(found.model_dump_json() + "\n" for found in worse))
        assert judge_pairs("chat", definition, make_pairs(9), path, hash_of(definition)) == judgements
        assert stored(path)[len(worse) :] == [found for found in judgements if found.state != "parse_error"]
        assert server.asked.total() == asked


def test_a_loop_that_runs_already_is_no_obstacle(tmp_path):
    """As in a notebook."""
    with ChatServer(plain) as server:
        definition = define(server)

        async def cell() -> list[Judgement]:
            return judge_pairs("chat", definition, make_pairs(1), tmp_path / "store.jsonl", hash_of(definition))

        assert len(asyncio.run(cell())) == 2
