"""`make demo` as a newcomer types it, and what its numbers must show."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from synopsis.reporting.scores import read_scores

ROOT = Path(__file__).parents[2]
SEEDS = 2


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


def context_losses(scores: pd.DataFrame, run: str, tokens: str) -> list[float]:
    return [
        one(scores, stage="perplexity", run=run, setting=f"context={length}/tokens={tokens}", metric="loss")
        for length in (0, 10, 20, 30)
    ]


def test_loss_falls_with_each_compressed_segment(scores: pd.DataFrame) -> None:
    """On words that only the context can predict: each further segment helps, and all together by 10 % or more."""
    losses = context_losses(scores, "autocompressor-s0", "dependent")
    assert losses == sorted(losses, reverse=True), losses
    assert losses[-1] < 0.9 * losses[0], losses
    assert losses[2] < 0.97 * losses[1], losses


def test_full_attention_is_the_better_reader(scores: pd.DataFrame) -> None:
    """Summary vectors lose something: the control that sees all tokens must not be worse."""
    compressed = context_losses(scores, "autocompressor-s0", "dependent")
    whole = context_losses(scores, "full_attention-s0", "dependent")
    assert whole[-1] < compressed[-1]


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_gist_lies_nearer_to_the_positive_control(scores: pd.DataFrame, split: str) -> None:
    gist, positive, negative = (
        one(scores, stage="generate", run=f"{name}-s0", split=split, metric="rougeL")
        for name in ("gist-1", "pos_control-1", "neg_control-1")
    )
    assert positive - negative > 20, "the instruction must matter"
    assert gist - negative > 3 * (positive - gist), (gist, positive, negative)


@pytest.mark.parametrize("run", ["base", "full_attention-s0"])
def test_who_reads_the_whole_context_finds_the_needle(scores: pd.DataFrame, run: str) -> None:
    found = scores[(scores["stage"] == "needle") & (scores["metric"] == "choice") & (scores["run"] == run)]
    assert len(found) == 9 and found["value"].min() >= 0.9, found.to_string()


def test_summary_vectors_beat_zero_shot(scores: pd.DataFrame) -> None:
    """On at least two of the three tasks, over both draws of demonstrations, with the most summary vectors."""
    icl = scores[(scores["stage"] == "icl") & (scores["metric"] == "accuracy") & (scores["run"] == "autocompressor-s0")]
    assert icl["seed"].nunique() == SEEDS
    means = icl.groupby(["dataset", "setting"])["value"].mean().unstack()
    assert len(means) == 3
    better = means["summary_12"] > means["zero_shot"] + 0.1
    assert better.sum() >= 2, means.to_string()
