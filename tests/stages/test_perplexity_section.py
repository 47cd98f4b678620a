"""Checks of the section perplexity, and of models that a stage cannot measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiment_text import TEXT, faults, spoilt, write
from synopsis.config.experiment import load_experiment

RUNS = "  runs: [base, auto, rmt, full]\n"
RANDOM = ("      substeps: 2\n", "      substeps: 2\n      random_summary_length: true\n")
T5 = ("opt: {hub: facebook/opt-125m, type: opt, max_positions: 2048}", "flan: {hub: google/flan-t5-small, type: t5}")


def lengths(numbers: str, runs: str = "[base, auto, full]") -> tuple[str, str]:
    return RUNS, f"  summary_lengths: {numbers}\n  runs: {runs}\n"


def test_fewer_summary_tokens_need_a_compressor_that_was_trained_so(tmp_path: Path) -> None:
    told = faults(write(tmp_path, spoilt(lengths("[4, 2]"))))
    assert told == [
        "e.yaml:54: perplexity.summary_lengths.1: found 2 of the 4 summary tokens of 'auto'; expected 4: fewer are "
        "of use only to a compressor trained with random_summary_length"
    ]
    assert faults(write(tmp_path, spoilt(lengths("[4, 2]"), RANDOM))) == []
    assert faults(write(tmp_path, spoilt(lengths("[4]")))) == []
    assert faults(write(tmp_path, spoilt(lengths("[2]", "[base, full]")))) == [], "nothing is compressed"


def test_no_more_summary_tokens_than_a_compressor_has(tmp_path: Path) -> None:
    told = faults(write(tmp_path, spoilt(lengths("[1, 5]"), RANDOM)))
    assert told == [
        "e.yaml:55: perplexity.summary_lengths.1: found 5; expected at most 4, the summary_length of 'auto'"
    ]


@pytest.mark.parametrize("numbers", ["[]", "[0]", "[1, 1]", "4", "[1.5]"])
def test_summary_lengths_are_different_positive_numbers(tmp_path: Path, numbers: str) -> None:
    told = faults(write(tmp_path, spoilt(lengths(numbers), RANDOM)))
    assert len(told) == 1 and "perplexity.summary_lengths" in told[0]


def test_the_longest_pass_is_that_of_the_most_vectors_that_are_measured(tmp_path: Path) -> None:
    longer = ("max_position_embeddings: 256", "max_position_embeddings: 160"), ("[0, 30, 90]", "[0, 30, 130]")
    steps = ("tokens_per_step: 30", "tokens_per_step: 2"), ("scored_tokens: 30", "scored_tokens: 20")
    text = spoilt(*longer, ("[64, 192]", "[64]"), *steps, RANDOM, lengths("[1, 2]"))
    assert faults(write(tmp_path, text)) == [], "65 x 2 vectors and 20 tokens are 150 positions"
    (told,) = faults(write(tmp_path, text.replace("[1, 2]", "[1, 4]")))
    assert "perplexity.context_lengths: found 280 positions in one pass (260 summary vectors + 20 scored tok" in told


def test_encoder_decoders_are_left_out_of_what_reads_plain_text(tmp_path: Path) -> None:
    text = spoilt(T5, (RUNS, ""), ("  runs: [base, auto, rmt]\n", ""))
    experiment = load_experiment(write(tmp_path, text))
    assert "flan" in experiment.run_names
    for stage in ("perplexity", "icl"):
        found = {experiment.trained_runs.get(run, (run,))[0] for run in experiment.runs_of(stage)}
        assert found == {"base", "auto", "rmt", "full"}


@pytest.mark.parametrize(
    ("runs", "key"), [("runs: [base, auto, rmt, full]", "perplexity"), ("runs: [base, auto, rmt]", "icl")]
)
def test_an_encoder_decoder_that_is_named_is_told(tmp_path: Path, runs: str, key: str) -> None:
    (told,) = faults(write(tmp_path, spoilt(T5, (runs, "runs: [base, flan]"))))
    assert (
        f"{key}.runs.1: found 'flan', an encoder-decoder (t5); expected a run that '{key}' can measure (base," in told
    )


def test_a_stage_that_has_encoder_decoders_alone_is_told(tmp_path: Path) -> None:
    text = TEXT[: TEXT.index("compressors:")].replace(
        "models:\n  base:", "models:\n  flan: {hub: f, type: t5}\n  x-base:"
    )
    head = text[: text.index("  x-base:")]
    section = TEXT[TEXT.index("perplexity:") : TEXT.index("icl:")].replace(RUNS, "")
    (told,) = faults(write(tmp_path, head + section))
    assert "perplexity: found nothing that it can measure; expected a decoder among the models, or a compressor" in told
