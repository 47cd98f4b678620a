"""The published ROUGE numbers: rows, means and bootstrap, and the released outputs behind rouge.csv."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from published import Golden
from synopsis.artifacts import read_csv
from synopsis.stages.generate.rouge import ROUGE_TYPES, score_rouge, strip_special_tokens

PRINTED = 0.50001e-4
"""Half of the last of four decimals, and what binary numbers add to it."""
POSTPROCESSED = ("remove_llama_padding=True", "remove_llama_padding=False")
ROWS, TABLE = "gist_rouge*/rouge.json", "gist_rouge*/full_reproduction.json"
RELEASED = "gist_release/results/model_outputs"


def written_pairs(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["y_pred"], row["y_true"]) for row in document["rows"]]


def check(pairs: list[tuple[str, str]], expected: dict[str, Any]) -> None:
    """Rows, means, and the bootstrap of every seed that the record has."""
    scores = score_rouge(pairs)
    assert len(scores.rows) == len(expected["per_row"])
    for row, record in zip(scores.rows, expected["per_row"], strict=True):
        assert list(row) == list(record) == list(ROUGE_TYPES)
        for kind, score in row.items():
            assert score == pytest.approx(record[kind], abs=1e-12)
    assert scores.mean() == pytest.approx(expected["mean"], abs=1e-9)
    seeds = {key: int(key.removeprefix("bootstrap_seed")) for key in expected if key.startswith("bootstrap_seed")}
    assert seeds
    for key, seed in seeds.items():
        middle = {kind: bootstrap.mid for kind, bootstrap in scores.published(seed).items()}
        assert middle == pytest.approx(expected[key], abs=PRINTED), key


@pytest.mark.golden(ROWS)
def test_written_outputs(golden: Golden) -> None:
    for document in golden.documents(ROWS):
        check(written_pairs(document), document["csv_as_is"])
        plain = score_rouge(written_pairs(document), use_stemmer=False)
        assert plain.mean() == pytest.approx(document["csv_as_is_nostemmer"]["mean"], abs=1e-9)


@pytest.mark.golden(ROWS)
@pytest.mark.parametrize("name", POSTPROCESSED)
def test_postprocessed_outputs(golden: Golden, name: str) -> None:
    for document in golden.documents(ROWS):
        record = document[name]
        check(list(zip(record["preds"], record["labels"], strict=True)), record)


@pytest.mark.golden(ROWS)
def test_special_tokens_are_stripped_from_raw_outputs(golden: Golden) -> None:
    """The line breaks that the published code put between sentences aside: they need a model of sentences."""
    for document in golden.documents(ROWS):
        for raw, expected in document["strip_special_tokens"]:
            assert strip_special_tokens(raw) == expected
        record = document["remove_llama_padding=True"]
        for raw, expected in zip(document["raw_pred"], record["preds"], strict=True):
            assert strip_special_tokens(raw).split() == expected.split()
            assert "\n" in expected or strip_special_tokens(raw) == expected


# ---------------------------------------------------------------------------------------------------- released outputs


def released(file: str, root: Path) -> list[tuple[str, str]]:
    data = Path(os.environ.get("SYNOPSIS_DATA", root / "../shared/data"))
    path = data / RELEASED / file
    if not path.is_file():
        pytest.skip(f"the released outputs are not here: no {RELEASED}/{file} under SYNOPSIS_DATA or ../shared/data")
    return [(row["y_pred"], row["y_true"]) for row in read_csv(path, ["x", "y_pred", "y_true"])]


@pytest.mark.golden(TABLE)
def test_released_outputs_give_the_published_table(golden: Golden, request: pytest.FixtureRequest) -> None:
    """Every value of rouge.csv to its four decimals, and the means of the same rows.

    rougeLsum is drawn last and takes most of the time, so that it is left out here; the rows above have it.
    """
    for record in (record for table in golden.documents(TABLE) for record in table):
        pairs = released(record["file"], request.config.rootpath)
        assert len(pairs) == record["n"]
        scores = score_rouge(pairs, types=ROUGE_TYPES[:3])
        for kind, mean in scores.mean().items():
            assert mean == pytest.approx(record[f"{kind}_stem_mean"], abs=PRINTED), record["file"]
        assert scores.published()["rougeL"].mid == pytest.approx(record["published"], abs=PRINTED), record["file"]
