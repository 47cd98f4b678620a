"""The chat judge against a real HTTP server on the loopback interface that speaks the chat-completions protocol."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_httpserver import HTTPServer
from synopsis.artifacts import Layout, read_json, write_csv, write_json
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.errors import InputError, SynopsisError
from synopsis.stages.judge.run import judge
from werkzeug import Request, Response

A, B, SPLIT, KEY = "gist-s0", "control-s0", "seen", "sk-very-secret-0123456789"
COLUMNS = ["id", "x", "y_pred", "y_true", "prompt_tokens", "new_tokens"]
PROMPT = "{instruction}|{input}|{answer_a}|{answer_b}|{}"

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]


def completion(text: str | None) -> Answer:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return 200, {"id": "c", "object": "chat.completion", "created": 1, "model": "served-model", "choices": choices}


def choosing(choice: int) -> Answer:
    return completion(json.dumps({"reason": "it is", "choice": choice}))


def failing(status: int, code: str = "some_code", message: str = "not now") -> Answer:
    return status, {"error": {"message": message, "code": code, "type": code, "param": None}}


class ChatService:
    """Answers every request with `answer(prompt, earlier requests with this prompt)` and remembers the requests."""

    def __init__(self, server: HTTPServer) -> None:
        self.answer: Callable[[str, int], Answer] = lambda prompt, earlier: choosing(2)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.busy = self.most_busy = 0
        self.url = server.url_for("/v1")
        self._lock = threading.Lock()
        server.expect_request("/v1/chat/completions", method="POST").respond_with_handler(self._respond)

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]

    def _respond(self, request: Request) -> Response:
        body = request.get_json()
        prompt = body["messages"][0]["content"]
        with self._lock:
            earlier = self.prompts.count(prompt)
            self.requests.append(body)
            self.keys.add(request.headers.get("Authorization"))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            status, content, *headers = self.answer(prompt, earlier)
        finally:
            with self._lock:
                self.busy -= 1
        if isinstance(content, str):
            return Response(content, status, *headers, mimetype="text/html")
        return Response(json.dumps(content), status, *headers, mimetype="application/json")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatService]:
    from synopsis.stages.judge import chat

    monkeypatch.setattr(chat, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(chat, "LONGEST_PAUSE_SECONDS", 0.5)
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with HTTPServer(threaded=True) as server:
        yield ChatService(server)


def make_experiment(folder: Path, service: ChatService, examples: int = 2, **definition: Any) -> Experiment:
    """An experiment whose runs wrote `<run> <n>` for `examples` examples, judged by the service."""
    training = {"instructions": "world", "steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    gist = {"method": "gist", "base": "base", "training": training}
    content = {
        "name": "test",
        "results": str(folder / "results"),
        "instructions": {"world": {"source": "world"}},
        "models": {"base": {"hub": "some/model", "type": "llama"}},
        "compressors": {"gist": {**gist, "condition": "gist"}, "control": {**gist, "condition": "pos_control"}},
        "generate": {"instructions": "world", "splits": [SPLIT], "max_new_tokens": 16},
        "judge": {"judges": ["chat"], "pairs": [["gist", "control"]]},
    }
    chat = {"kind": "openai", "model": "some-model", "base_url": service.url, "prompt": PROMPT}
    chat |= {"api_key_env": "TEST_JUDGE_KEY", "max_retries": 2, "timeout_seconds": 5, "concurrency": 1, **definition}
    (folder / "judges").mkdir(exist_ok=True)
    (folder / "judges" / "chat.yaml").write_text(yaml.safe_dump(chat))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content))
    experiment = load_experiment(folder / "experiment.yaml")
    ids = [f"e{n}" for n in range(examples)]
    for run in (A, B):
        rows = [dict(zip(COLUMNS, (id, "x", f"{run} {id}", "y", 1, 1), strict=True)) for id in ids]
        write_csv(Layout(experiment).generations(run, SPLIT), rows, COLUMNS)
    texts = [{"id": id, "instruction": f"do {id}", "input": "", "output": "y"} for id in ids]
    write_json(Layout(experiment).instructions("world"), "instructions", {"splits": {SPLIT: texts}}, {})
    return experiment


def store_path(experiment: Experiment) -> Path:
    return Layout(experiment).judgements("chat", A, B, SPLIT)


def records(experiment: Experiment) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store_path(experiment).read_text().splitlines()]


def run_judge(experiment: Experiment) -> dict[str, Any]:
    return judge(experiment, "chat", A, B, SPLIT)


def prefers_gist(prompt: str, earlier: int) -> Answer:
    return choosing(0 if prompt.split("|")[2].startswith(A) else 1)


# ------------------------------------------------------------------------------------------------------------ success


def test_each_pair_is_asked_in_both_orders(tmp_path, service):
    service.answer = prefers_gist
    experiment = make_experiment(tmp_path, service, temperature=0.5, max_tokens=99)
    summary = run_judge(experiment)
    assert sorted(service.prompts) == sorted(
        f"do {id}|(none)|{first} {id}|{second} {id}|{{}}" for id in ("e0", "e1") for first, second in ((A, B), (B, A))
    )
    assert {(r["model"], r["temperature"], r["max_tokens"]) for r in service.requests} == {("some-model", 0.5, 99)}
    assert service.keys == {f"Bearer {KEY}"}
    assert (summary["win"], summary["lose"], summary["win_rate"], summary["consistent"]) == (4, 0, 1.0, 2)
    assert summary["first_position_wins"] == 2
    written = read_json(store_path(experiment).with_suffix(".json"), "judgement_summary")
    assert written["provenance"]["judge_models"] == ["served-model"]

    # A judge that likes the first position decides nothing.
    service.answer = lambda prompt, earlier: choosing(0)
    summary = run_judge(make_experiment(tmp_path, service, model="another"))
    assert (summary["win"], summary["lose"], summary["win_rate"]) == (2, 2, 0.5)
    assert (summary["consistent"], summary["first_position_wins"]) == (0, 4)


def test_at_most_so_many_requests_at_once_as_the_judge_allows(tmp_path, service):
    def slowly(prompt: str, earlier: int) -> Answer:
        time.sleep(0.05)
        return choosing(2)

    service.answer = slowly
    summary = run_judge(make_experiment(tmp_path, service, examples=8, concurrency=3))
    assert summary["tie"] == 16
    assert 2 <= service.most_busy <= 3


# -------------------------------------------------------------------------------------------------- errors and retries


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_by_itself_is_asked_again(tmp_path, service, status):
    """After the pause that the service asks for, where it asks for one."""
    pause = {"Retry-After": "0.3"} if status == 429 else {}
    service.answer = lambda prompt, earlier: (*failing(status), pause) if earlier < 2 else choosing(0)
    experiment = make_experiment(tmp_path, service, examples=1)
    start = time.monotonic()
    summary = run_judge(experiment)
    assert not pause or 1.2 <= time.monotonic() - start < 9
    assert (summary["win"], summary["lose"], summary["api_error"]) == (1, 1, 0)
    assert [record["attempts"] for record in records(experiment)] == [3, 3]


def test_a_few_errors_are_counted_and_asked_again_by_the_next_run(tmp_path, service, capsys):
    service.answer = lambda prompt, earlier: failing(500) if f"|{A} e3|{B} e3|" in prompt else choosing(2)
    experiment = make_experiment(tmp_path, service, examples=4, max_error_share=0.125)
    summary = run_judge(experiment)
    assert (summary["tie"], summary["api_error"], summary["win_rate"]) == (6, 1, 0.5)
    assert summary["max_error_share"] == 0.125
    assert service.prompts.count(f"do e3|(none)|{A} e3|{B} e3|{{}}") == 3, "max_retries is 2"
    reported = capsys.readouterr().err
    assert "judge chat: 7/8 judgements, " in reported and "1 judgements have no answer" in reported
    failed = [record for record in records(experiment) if record["state"] == "api_error"]
    assert len(failed) == 1 and "not now" in failed[0]["error"] and failed[0]["attempts"] == 3
    store_path(experiment).with_suffix(".json").unlink()
    with pytest.raises(SynopsisError, match=r"1 of 8 judgements have no answer, more than 0%.*not now"):
        run_judge(make_experiment(tmp_path, service, examples=4))
    assert not store_path(experiment).with_suffix(".json").exists()

    service.answer, service.requests = prefers_gist, []
    summary = run_judge(experiment)
    assert len(service.requests) == 1
    assert (summary["win"], summary["tie"], summary["api_error"]) == (1, 7, 0)


def test_too_many_errors_fail_the_stage_and_keep_the_store(tmp_path, service):
    service.answer = lambda prompt, earlier: choosing(2) if "do e0|" in prompt else failing(503)
    experiment = make_experiment(tmp_path, service, examples=5)
    with pytest.raises(SynopsisError, match="more than 20%") as caught:
        run_judge(experiment)
    assert str(store_path(experiment)) in str(caught.value) and "run again" in str(caught.value)
    assert not store_path(experiment).with_suffix(".json").exists()
    assert sorted(record["state"] for record in records(experiment)) == ["api_error"] * 3 + ["tie"] * 2
    assert len(service.requests) <= 2 + 3 * 3 + 3, "asking ended when 3 of 10 had failed; one more was on its way"

    service.answer, service.requests = (lambda prompt, earlier: choosing(2)), []
    assert run_judge(experiment)["tie"] == 10
    assert len(service.requests) == 8


def test_a_service_that_is_down_is_given_up_soon(tmp_path, service):
    service.answer = lambda prompt, earlier: failing(503)
    with pytest.raises(SynopsisError, match=r"10 of 200 judgements have no answer, 10 of them in a row"):
        run_judge(make_experiment(tmp_path, service, examples=100))
    assert len(service.requests) == 30


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (failing(401, message=f"Incorrect key: {KEY}"), "refuses the key in TEST_JUDGE_KEY"),
        (failing(403, message=f"{KEY} may not"), "may not use the model 'some-model'"),
        (failing(404, message=f"{KEY}: no such model"), "no model 'some-model' there"),
        (failing(429, code="insufficient_quota"), "quota is used up"),
    ],
)
def test_what_a_person_must_correct_ends_the_run_at_once(tmp_path, service, answer, expected, capsys):
    service.answer = lambda prompt, earlier: answer if "do e1|" in prompt else choosing(2)
    experiment = make_experiment(tmp_path, service)
    with pytest.raises(SynopsisError, match=expected) as caught:
        run_judge(experiment)
    assert KEY not in str(caught.value)
    assert "4/4" not in capsys.readouterr().err
    assert isinstance(caught.value, InputError) == (answer[0] != 429)
    assert sum("do e1|" in prompt for prompt in service.prompts) <= 2, "no retries"
    assert [record["state"] for record in records(experiment)] == ["tie", "tie"], "kept"


def test_a_request_that_the_service_refuses_is_an_error_without_retries(tmp_path, service):
    service.answer = lambda prompt, earlier: failing(400, message="too long") if f"|{A} e0|" in prompt else choosing(2)
    experiment = make_experiment(tmp_path, service, examples=10, max_error_share=0.1)
    assert run_judge(experiment)["api_error"] == 2
    assert {r["attempts"] for r in records(experiment)} == {1}


def test_a_slow_service_times_out_and_nobody_there_is_an_error(tmp_path, service):
    def late_once(prompt: str, earlier: int) -> Answer:
        time.sleep(0 if earlier else 1.0)
        return choosing(2)

    service.answer = late_once
    experiment = make_experiment(tmp_path, service, examples=1, timeout_seconds=0.5)
    assert run_judge(experiment)["tie"] == 2
    assert [record["attempts"] for record in records(experiment)] == [2, 2]
    experiment = make_experiment(tmp_path, service, examples=1, base_url="http://127.0.0.1:9/v1")
    with pytest.raises(SynopsisError, match="APIConnectionError"):
        run_judge(experiment)


def test_answers_on_their_way_are_kept_when_the_run_ends(tmp_path, service):
    refused = threading.Event()

    def answer(prompt: str, earlier: int) -> Answer:
        if "do e1|" in prompt:
            refused.set()
            return failing(401)
        refused.wait(10)
        time.sleep(0.2)
        return choosing(2)

    service.answer = answer
    experiment = make_experiment(tmp_path, service, examples=30, concurrency=4)
    with pytest.raises(InputError, match="refuses the key"):
        run_judge(experiment)
    assert len(records(experiment)) + 2 == len(service.requests) < 10


# ------------------------------------------------------------------------------------------------------------- answers


def test_answers_without_a_choice_are_parse_errors_and_not_asked_again(tmp_path, service):
    texts = iter(["The first one.", '{"choice": 7}', None, '{"reason": "cut o'])
    service.answer = lambda prompt, earlier: completion(next(texts))
    experiment = make_experiment(tmp_path, service)
    summary = run_judge(experiment)
    assert (summary["parse_error"], summary["tie"], summary["api_error"], summary["win_rate"]) == (4, 0, 0, None)
    assert sorted(record["answer"] for record in records(experiment))[1] == "The first one."
    assert run_judge(experiment) == summary
    assert len(service.requests) == 4


@pytest.mark.parametrize("body", ["<html>log in first</html>", {}, {"choices": []}, [], {"choices": [{}]}])
def test_an_answer_that_is_no_completion_is_asked_again_like_an_error(tmp_path, service, body):
    service.answer = lambda prompt, earlier: choosing(2) if earlier > 1 else (200, body)
    assert run_judge(make_experiment(tmp_path, service, examples=1))["tie"] == 2
    service.answer = lambda prompt, earlier: (200, body)
    with pytest.raises(SynopsisError, match="no chat completion"):
        run_judge(make_experiment(tmp_path, service, examples=1, model="another"))


def test_the_key_is_never_stored_or_shown(tmp_path, service, capfd):
    def telling(prompt: str, earlier: int) -> Answer:
        if "do e0|" in prompt:
            return failing(500, message=f"key {KEY} failed")
        return completion(f'{{"reason": "your key is {KEY}", "choice": 0}}')

    service.answer = telling
    run_judge(make_experiment(tmp_path, service, examples=10, max_error_share=0.1))
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all(KEY not in path.read_text() for path in files)
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err


# -------------------------------------------------------------------------------------------------------------- resume


def test_only_what_still_holds_is_used_again(tmp_path, service, monkeypatch):
    service.answer = prefers_gist
    experiment = make_experiment(tmp_path, service)
    first = run_judge(experiment)
    monkeypatch.delenv("TEST_JUDGE_KEY")
    patient = make_experiment(tmp_path, service, concurrency=5, max_retries=9, timeout_seconds=9)
    assert run_judge(patient) == first, "patience changes no answer, and a finished store needs no key"
    assert len(service.requests) == 4

    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    other = run_judge(make_experiment(tmp_path, service, model="other-model"))
    assert len(service.requests) == 8 and other["judge_hash"] != first["judge_hash"]

    experiment = make_experiment(tmp_path, service)
    path = Layout(experiment).generations(A, SPLIT)
    path.write_text(path.read_text().replace(f"{A} e1", f"{A} anew"))
    run_judge(experiment)
    assert [prompt for prompt in service.prompts[8:] if "anew" not in prompt] == []
    assert len(service.requests) == 10
    assert len(records(experiment)) == 10, "superseded, not overwritten"


def test_a_killed_run_resumes_where_it_stopped(tmp_path, service):
    hanging, freed = threading.Event(), threading.Event()

    def hang_at_the_fifth(prompt: str, earlier: int) -> Answer:
        if len(service.requests) == 5 and not freed.is_set():
            hanging.set()
            freed.wait(30)
        return choosing(0)

    service.answer = hang_at_the_fifth
    experiment = make_experiment(tmp_path, service, examples=4, timeout_seconds=60)
    program = (
        "import sys, synopsis.config as c; from synopsis.stages.judge.run import judge; "
        f"judge(c.load_experiment(sys.argv[1]), 'chat', {A!r}, {B!r}, {SPLIT!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "experiment.yaml")])
    try:
        assert hanging.wait(60), "the judge asked fewer than five questions"
        deadline = time.monotonic() + 30  # the fourth answer may still be on its way to the disk
        while len(records(experiment)) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        freed.set()
    kept = store_path(experiment).read_bytes()
    assert len(records(experiment)) == 4
    assert not store_path(experiment).with_suffix(".json").exists()

    # The kill may also have come in the middle of a line.
    store_path(experiment).write_bytes(kept + b'{"id": "e2", "order": "a')
    service.requests = []
    summary = run_judge(experiment)
    assert len(service.requests) == 4
    assert (summary["judgements"], summary["win"], summary["lose"]) == (8, 4, 4)
    assert store_path(experiment).read_bytes().startswith(kept), "what was paid for is kept, byte for byte"
