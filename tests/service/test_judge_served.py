"""A real model behind a real server judges released outputs: SmolLM2-135M-Instruct in `transformers serve`.

Needs what `pip install "transformers[serving]"` brings, the released outputs, and the package that holds the model.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from synopsis.artifacts import Layout, read_json
from synopsis.config.experiment import load_experiment
from synopsis.data.prepare import prepare
from synopsis.errors import SynopsisError
from synopsis.stages.judge.store import read_judgements

ROOT = Path(__file__).parents[2]
RELEASE = Path(os.environ.get("SYNOPSIS_DATA", ROOT.parent / "shared" / "data")) / "gist_release"
OUTPUTS = RELEASE / "results" / "model_outputs"
PAIRS, KEY = 20, "SERVED_JUDGE_KEY"
PROMPT = """Task: {instruction} {input}
<first>{answer_a}</first>
<second>{answer_b}</second>
Which answer is better? Reply with JSON alone: {"choice": 0} for the first, {"choice": 1} for the second.
"""

MISSING = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed, of transformers[serving]: {', '.join(MISSING)}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of the model: of `results/smollm2` where that was made, else prepared here."""
    for results in (ROOT / "results", tmp_path / "results"):
        experiment = load_experiment(ROOT / "config" / "smollm2.yaml", overrides={"results": str(results)})
        folder = Layout(experiment).model("smollm2")
        if folder.exists():
            return folder
    try:
        prepare(experiment, "model", "smollm2")
    except SynopsisError as error:
        pytest.skip(f"SmolLM2 cannot be fetched: {error}")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Short outputs of two released models for the same examples."""
    sources = [OUTPUTS / f"LLaMA-{name}" for name in ("gist-1", "pos_control-1")]
    paths = [next(source.glob("outputs-*-validation_human.csv"), None) for source in sources]
    if None in paths:
        pytest.skip(f"the released outputs are not here: {OUTPUTS}")
    rows = [list(csv.DictReader(path.open(encoding="utf-8", newline=""))) for path in paths if path]
    short = [pair for pair in zip(*rows, strict=True) if all(len(row["x"] + row["y_pred"]) < 300 for row in pair)]
    kept = [pair for pair in short if pair[0]["y_pred"] != pair[1]["y_pred"]][:PAIRS]
    assert len(kept) == PAIRS
    written = []
    for side, name in enumerate("ab"):
        written.append(tmp_path / f"{name}.csv")
        with written[-1].open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=["x", "y_pred", "y_true"])
            writer.writeheader()
            writer.writerows(pair[side] for pair in kept)
    return written


def test_a_served_model_judges_released_outputs(tmp_path, files, model, call, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(KEY, "any")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    definition = {"kind": "openai", "model": str(model), "base_url": f"http://127.0.0.1:{port}/v1", "prompt": PROMPT}
    definition |= {"api_key_env": KEY, "max_tokens": 8, "timeout_seconds": 300, "concurrency": 2}
    judge = tmp_path / "served.yaml"
    judge.write_text(yaml.safe_dump(definition))
    words = ("judge", "--a", files[0], "--b", files[1], "--judge", judge, "--out", tmp_path / "out")
    command = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    log = tmp_path / "serve.log"
    with log.open("wb") as stream:
        server = subprocess.Popen([sys.executable, "-c", program, *command], stdout=stream, stderr=stream)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        code, _, err = call(*words)
        assert code == 0, err + log.read_text()
    finally:
        server.kill()
        server.wait()
    judgements = read_judgements(tmp_path / "out" / "judgements.jsonl")
    assert len(judgements) == 2 * PAIRS
    assert {one.state for one in judgements} <= {"A", "B", "tie", "parse_error"}
    assert all(one.answer and str(model) in (one.model or "") and one.attempts == 1 for one in judgements)
    assert all((one.prompt_tokens or 0) > 50 and 0 < (one.completion_tokens or 0) <= 8 for one in judgements)
    summary = read_json(tmp_path / "out" / "summary.json", "judgement_summary")
    assert summary["win"] + summary["lose"] + summary["tie"] + summary["parse_error"] == 2 * PAIRS
    code, _, _ = call(*words)
    assert code == 0, "the store is complete, so that no server is needed"


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server did not start: {log.read_text()}")
