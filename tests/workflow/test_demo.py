"""`make demo` as a newcomer types it, and what its numbers must show."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from synopsis.reporting.scores import read_scores

ROOT = Path(__file__).parents[2]
TRAINING_SEEDS, DRAWS = (0, 1), 2

pytestmark = pytest.mark.timeout(3200)


@pytest.fixture(scope="module")
def first() -> str:
    """What `make demo` says; where the results are up to date this takes seconds."""
    done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def scores(first: str) -> pd.DataFrame:
    return read_scores(ROOT / "results/demo/scores.parquet")


def one(scores: pd.DataFrame, **where: object) -> float:
    chosen = scores
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == 1, f"{len(chosen)} rows for {where}"
    return float(chosen["value"].iloc[0])


def test_names_the_report_and_prints_the_main_tables(first: str) -> None:
    report = ROOT / "results/demo/report.html"
    # Under another make, make says which folder it leaves.
    said = [line for line in first.splitlines() if not line.startswith("make[")]
    assert said[-1] == f"Report: {report}"
    assert report.stat().st_size > 100_000
    for word in ("autocompressor", "gist-1", "zero_shot", "ROUGE-L"):
        assert word in first, word


def test_second_call_has_nothing_to_do(first: str) -> None:
    done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.fixture(scope="module", params=TRAINING_SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    """Each claim holds for each training seed."""
    return request.param


def losses(scores: pd.DataFrame, run: str, tokens: str) -> list[float]:
    """By the length of the context: 0, 10, 20 and 30 tokens."""
    return [
        one(scores, stage="perplexity", run=run, context_length=length, tokens=tokens, metric="loss")
        for length in (0, 10, 20, 30)
    ]


@pytest.mark.parametrize("tokens", ["topic", "recall"])
def test_loss_falls_with_each_compressed_segment(scores: pd.DataFrame, seed: int, tokens: str) -> None:
    """On words that only the context can predict: by 5 % with each segment, and to two thirds with all of them."""
    found = losses(scores, f"autocompressor-s{seed}", tokens)
    assert all(after < 0.95 * before for before, after in pairwise(found)), found
    assert found[-1] < 0.66 * found[0], found


def test_full_attention_is_the_better_reader(scores: pd.DataFrame, seed: int) -> None:
    """The control is trained as long and sees all tokens, so it recalls better than summary vectors by 10 %."""
    compressed = losses(scores, f"autocompressor-s{seed}", "recall")
    whole = losses(scores, f"full_attention-s{seed}", "recall")
    assert whole[-1] < 0.9 * compressed[-1], (whole, compressed)


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_gist_lies_nearer_to_the_positive_control(scores: pd.DataFrame, seed: int, split: str) -> None:
    gist, positive, negative = (
        one(scores, stage="generate", run=f"{name}-s{seed}", split=split, metric="rougeL")
        for name in ("gist-1", "pos_control-1", "neg_control-1")
    )
    assert positive - negative > 50, "the instruction must matter"
    assert gist - negative > 9 * (positive - gist), (gist, positive, negative)


@pytest.mark.parametrize("run", ["base", "full_attention-s{seed}", "autocompressor-s{seed}"])
def test_the_needle_is_found(scores: pd.DataFrame, seed: int, run: str) -> None:
    """By who reads the whole context, and from summary vectors (chance: 10 %)."""
    needles = scores[(scores["stage"] == "needle") & (scores["metric"] == "choice")]
    found = needles[needles["run"] == run.format(seed=seed)]
    assert len(found) == 9 and found["value"].min() >= 0.9, found.to_string()


def test_summary_vectors_beat_zero_shot(scores: pd.DataFrame, seed: int) -> None:
    """On each of the three tasks, over both draws of demonstrations, by 25 points with the most summary vectors."""
    icl = scores[(scores["stage"] == "icl") & (scores["metric"] == "accuracy")]
    icl = icl[icl["run"] == f"autocompressor-s{seed}"]
    assert icl["seed"].nunique() == DRAWS
    means = icl.groupby(["dataset", "setting"])["value"].mean().unstack()
    assert len(means) == 3
    assert (means["summary_12"] > means["zero_shot"] + 0.25).all(), means.to_string()
