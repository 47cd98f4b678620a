"""`synopsis paper`: a made-up release by hand, damage to it, and the released data themselves where they are."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import reporting_artifacts as artifacts
from gist_release import EXAMPLES, GIST, STANDARD, write_release
from scipy import stats
from synopsis.artifacts import read_json
from synopsis.errors import ArtifactError
from synopsis.paper import run, runs
from synopsis.paper.published import STATES, Cell, cells, checksums, load
from synopsis.paper.run import regenerate
from synopsis.reporting.scores import COLUMNS, score

OUTPUTS = "results/model_outputs/LLaMA-gist-1/outputs-3000-validation_human.csv"
JUDGED = "results/chatgpt/chatgpt-LLaMA-gist-1-vs-LLaMA-pos_control-1-validation_human-3000.json"
BENCHMARK = "benchmarking/pytorch-llama-7b-benchmarking-human.csv"
ROUGE = "results/rouge.csv"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("made_up")
    return folder, write_release(folder)


@pytest.fixture
def release(made_up: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a made-up release, with its own checksums and numbers of examples."""
    folder = tmp_path / "release"
    shutil.copytree(made_up[0], folder)
    sums, published = made_up[1], load()
    published["release"]["examples"] = EXAMPLES
    monkeypatch.setattr(run, "load", lambda: published)
    monkeypatch.setattr(run, "checksums", lambda: sums)
    return folder


def by_name(found: list[Cell]) -> dict[str, Cell]:
    return {f"{cell.table.removeprefix('gist_tokens_')} / {cell.row} / {cell.column}": cell for cell in found}


def test_numbers_by_hand(release: Path) -> None:
    made = regenerate(release)
    of = by_name(made.cells)
    differences = [2.0 * (a - b) for a, b in zip(STANDARD, GIST, strict=True)]
    mean = of["efficiency / LLaMA-7B CPU ms: no cache / mean"]
    assert (mean.value, mean.published, mean.agrees) == (110.0, None, None)
    assert of["efficiency / LLaMA-7B CPU ms: no cache / mean (standard deviation)"].value == pytest.approx(
        2 * statistics.stdev(STANDARD)
    )
    paired = of["efficiency / LLaMA-7B CPU ms: no cache - gist cache / mean"]
    half = stats.t.ppf(0.975, 3) * statistics.stdev(differences) / 2
    assert (paired.value, paired.interval) == (15.0, pytest.approx((15 - half, 15 + half)))
    assert of["efficiency / FLAN-T5-XXL GFLOPs: no cache - gist cache / percent"].value == pytest.approx(100 * 7.5 / 55)
    win = of["chatgpt / LLaMA-7B gist / human"]
    assert win.value == 37.5
    # Clopper and Pearson, with the one win and half of the tie as 1.5 successes
    bounds = (100 * stats.beta.ppf(0.025, 1.5, 3.5), 100 * stats.beta.ppf(0.975, 2.5, 2.5))
    assert win.interval == pytest.approx(bounds)
    assert of["chatgpt / LLaMA-7B gist / human (%)"].value == 0.0 / 12.5  # the control wins as often here
    assert of["rouge / LLaMA-7B pos_control / seen"].value == 100.0
    assert of["rouge / LLaMA-7B neg_control / seen"].value == 0.0
    percent, rouge = of["rouge / LLaMA-7B gist / human (%)"], of["rouge / LLaMA-7B gist / human"]
    positive = of["rouge / LLaMA-7B pos_control / human"]
    assert percent.value == pytest.approx(100 * rouge.value / positive.value)
    assert [cell.agrees for cell in made.cells if cell.table == "gist_tokens_rouge"] == [True] * 36
    assert of["rouge / LLaMA-7B TF-IDF / seen"].record()["reason"] == "its outputs are not in the release"
    assert of["autocompressor_ablation / 50 summary vectors / 0"].record()["reason"] == "no run"
    assert all(made.files.values())
    # The made-up numbers are not those of the paper.
    assert "rouge / LLaMA-7B gist / human: 50, published 23.9" in made.failed


def test_a_known_difference_is_excused_and_no_other() -> None:
    cell = Cell("t", "r", "c", "45.83", "s", "counted again", instead=45.44)
    outcomes = []
    for value in (45.8333, 45.4365, 45.45):
        cell.put(value)
        outcomes.append((cell.agrees, cell.fails))
    assert outcomes == [(True, False), (False, False), (False, True)]
    printed = Cell("t", "r", "c", "99.2", "s")
    printed.put(99.127, from_printed=99.245)
    assert (printed.agrees, printed.fails, printed.instead) == (False, False, 99.245)
    printed.put(99.127, from_printed=99.4)
    assert printed.fails
    middle = Cell("t", "r", "c", "49.7", "s")
    middle.put(49.65)
    assert middle.agrees and middle.rounding == 0.05


def test_every_published_number_is_a_number_with_a_source() -> None:
    found = cells(load()["tables"])
    assert len({cell.name for cell in found}) == len(found)
    assert all(cell.source and (cell.published is None or float(cell.published) >= 0) for cell in found)
    assert len(checksums()) == 70 and all(len(digest) == 64 for digest in checksums().values())


# ------------------------------------------------------------------------------------------------------------- damage


def without_line(number: int) -> Callable[[str], str]:
    return lambda text: "".join(line for place, line in enumerate(text.splitlines(True)) if place != number)


def without_judgement(text: str) -> str:
    document = json.loads(text)
    del document["results"][0]
    return json.dumps(document)


DAMAGE: dict[str, tuple[str, Callable[[str], str], tuple[str, ...]]] = {
    "a row of outputs": (OUTPUTS, without_line(4), ("has 3 rows; expected 4", "row 2")),
    "the last output": (OUTPUTS, without_line(6), ("has 3 rows; expected 4", "row 4")),
    "an added output": (OUTPUTS, lambda text: text + "x,none,zebra\n", ("has 5 rows; expected 4", "row 5")),
    "a column": (OUTPUTS, lambda text: text.replace("y_true", "truth"), ("the column y_true is missing",)),
    "half a line": (OUTPUTS, lambda text: text[:-5], ("truncated or damaged. Fetch it again",)),
    "a judgement": (JUDGED, without_judgement, ("has 3 rows; expected 4", "row 1")),
    "a choice": (JUDGED, lambda text: text.replace('"Tie"', '"C"'), ("results[1].choice", "expected a, b or tie")),
    "JSON": (JUDGED, lambda text: text[:-9], ("not valid JSON",)),
    "other runs": (JUDGED, lambda text: text.replace("LLaMA-gist-1", "LLaMA-gist-2"), ("expected 'LLaMA-gist-1'",)),
    "a sample": (BENCHMARK, without_line(4), ("rows are missing, 1 of 8; the first is that of id 1, model gist",)),
    "NaN": (BENCHMARK, lambda text: text.replace("40000,", "NaN,"), ("row 1: cuda_time: found 'NaN'",)),
    "a negative time": (BENCHMARK, lambda text: text.replace("40000,", "-40000,"), ("found '-40000'",)),
    "a sample twice": (BENCHMARK, lambda text: text.replace("1,gist", "0,gist"), ("row 4 (0, gist) is there twice",)),
    "a row of ROUGE": (
        ROUGE,
        without_line(1),
        ("1 of 36; the first is that of model FLAN-T5, condition gist,",),
    ),
    "an empty file": (ROUGE, lambda text: "", ("rouge.csv", "the column")),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_missing_is_named(release: Path, what: str, call: Any, tmp_path: Path) -> None:
    file, change, fragments = DAMAGE[what]
    text = (release / file).read_text()
    (release / file).write_text(change(text))
    assert change(text) != text
    code, out, err = call("paper", "--release", release, "--out", tmp_path / "out", "--json", tmp_path / "cells.json")
    assert code == 2 and file in err and not out
    assert all(fragment in err for fragment in fragments), err
    assert not (tmp_path / "out").exists() and not (tmp_path / "cells.json").exists()


def test_missing_files_are_named(release: Path, call: Any) -> None:
    for file in (OUTPUTS, ROUGE):
        (release / file).unlink()
    code, _, err = call("paper", "--release", release)
    assert code == 2 and f"2 of 70 files of the release are missing: {OUTPUTS}, {ROUGE}" in err
    code, _, err = call("paper", "--release", release / "nowhere")
    assert code == 2 and "nowhere: no such folder" in err and "git clone" in err


@pytest.mark.parametrize(
    ("file", "old", "new", "cell", "difference"),
    [
        (ROUGE, "LLaMA,gist,1,3000,5", "LLaMA,gist,1,3000,6", "rouge / LLaMA-7B gist 1 / human", -10),
        (OUTPUTS, ",cat dog,", ",cat owl,", "rouge / LLaMA-7B gist 1 / human", -12.5),
        (JUDGED, '"Tie"', '"a"', "choices / LLaMA-7B gist 1 / human", 50 - 45.83),
        (JUDGED, ": 1.5,", ": 2.0,", "win_rates / LLaMA-7B gist 1 / human", 50 - 45.83),
        (BENCHMARK, "30000,", "90000,", "efficiency / LLaMA-7B CUDA ms: gist cache / mean", 62.5 - 21.8),
    ],
)
def test_a_changed_number_changes_its_cell(
    release: Path, file: str, old: str, new: str, cell: str, difference: float
) -> None:
    text = (release / file).read_text()
    assert old in text
    (release / file).write_text(text.replace(old, new, 1))
    made = regenerate(release)
    assert by_name(made.cells)[cell].fails and by_name(made.cells)[cell].difference == pytest.approx(difference)
    assert [name for name, same in made.files.items() if not same] == [file]
    assert made.failed[-1] == f"{file}: differs from the release"


# --------------------------------------------------------------------------------------------------- what is written


def test_files_and_exit_code(release: Path, call: Any, tmp_path: Path) -> None:
    code, out, err = call("paper", "--release", release, "--out", tmp_path / "out", "--json", tmp_path / "cells.json")
    assert code == 1 and "do not agree:" in err
    assert "rouge / LLaMA-7B gist / human: " in err and ", published 23.9" in err
    written = read_json(tmp_path / "cells.json", "paper")
    (cell,) = [c for c in written["cells"] if (c["table"], c["row"], c["column"]) == ("rouge", "LLaMA-7B gist", "seen")]
    assert (cell["published"], cell["rounding"], cell["agrees"]) == (57.8, 0.05, False)
    assert cell["difference"] == pytest.approx(cell["value"] - 57.8) and "table 1" in cell["source"]
    assert written["failed"] and all(file["agrees"] for file in written["files"])
    files = Counter(path.suffix for path in (tmp_path / "out").iterdir())
    assert files == {**dict.fromkeys((".md", ".csv", ".tex", ".html"), 13), ".svg": 1, ".pdf": 1, ".png": 1, ".json": 1}
    assert " 50.00 [" in out and "‡ does not agree" in out
    assert (tmp_path / "out/rouge.md").read_text() in out


def test_latex_parses(release: Path) -> None:
    """pylatexenc reads every table without a fault, and the rows of a grid have as many cells as its columns."""
    walker = pytest.importorskip("pylatexenc.latexwalker", reason="pylatexenc is not installed")
    for name, table in regenerate(release).rendered().items():
        text = run.as_latex(table, name)
        assert text.count(r"\begin{table}") == -(-len(table.rows) // run.LATEX_LINES)
        walker.LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
        for grid in text.split(r"\begin{tabular}")[1:]:
            columns, body = (
                grid.split("{")[1].split("}")[0],
                grid.partition(r"\toprule")[2].partition(r"\bottomrule")[0],
            )
            lines = body.replace(r"\midrule", "").replace(r"\&", "").split(r"\\")[:-1]
            assert {line.count("&") + 1 for line in lines} == {len(columns)}


def test_runs_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = artifacts.experiment(tmp_path)

    def row(run: str, value: float, **more: Any) -> dict[str, Any]:
        found = {"judge": "", "run": run, "compressor": subject.name_of(run), "value": value, **more}
        return {**found, "summary_length": more.get("summary_length", pd.NA)}

    loss = {"stage": "perplexity", "metric": "loss", "tokens": "all", "context_length": 0}
    domains = ("Books3", "FreeLaw", "Github", "Wikipedia")
    accuracy = {"stage": "icl", "metric": "accuracy", "dataset": "sst2", "setting": "icl_750"}
    win = {"stage": "judge", "metric": "win_rate", "judge": "reference", "split": "seen"}
    rows = [
        *(row("autocompressor-s0", place, **loss, domain=name) for place, name in enumerate(domains)),
        *(row("autocompressor-s1", 2.0, **loss, domain=name) for name in domains),
        *(row("autocompressor-s1", 9.0, **loss, domain=name, summary_length=2) for name in domains),  # fewer vectors
        *(row("rmt-s0", 2.0, **loss, domain=name) for name in domains[1:]),  # without Books3
        *(row("base", value, **accuracy, seed=seed) for seed, value in enumerate((0.5, 0.75, 1.0))),
        row("gist-1-s0", 0.625, **win, against="pos_control-s0"),
        row("gist-1-s0", 0.99, **win, against="neg_control-s0"),
        row("neg_control-s0", 20.0, stage="generate", metric="rougeL_published", split="human"),
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "summary_length": "Int64"})
    monkeypatch.setattr(runs, "read_scores", lambda path: frame)
    tables = load()["tables"]
    found = cells(tables)
    runs.add_runs(found, tables, subject)
    of = {
        cell.name: {name: (run.mean, run.deviation) for name, run in cell.runs.items()} for cell in found if cell.runs
    }
    mean, deviation = of.pop("autocompressor_perplexity_6k / AutoCompressor / in 0")["autocompressor"]
    assert (mean, deviation) == pytest.approx(((exp(1.5) + exp(2)) / 2, statistics.stdev([exp(1.5), exp(2)])))
    for size in ("1.3B", "2.7B"):  # whose column is that of Books3 alone
        alone = of.pop(f"autocompressor_perplexity_30k / AutoCompressor-{size} / in 0")["autocompressor"]
        assert alone[0] == pytest.approx((1 + exp(2)) / 2)
    assert of == {
        "autocompressor_icl_opt / OPT-2.7B icl_750 / sst2": {"base": (75.0, 25.0)},
        "chatgpt / LLaMA-7B gist / seen": {"gist-1 (reference)": (62.5, None)},
        "gist_tokens_win_rates / LLaMA-7B gist 1 / seen": {"gist-1 (reference)": (62.5, None)},
        "rouge / LLaMA-7B neg_control / human": {"neg_control": (20.0, None)},
        "gist_tokens_rouge / LLaMA-7B neg_control / human": {"neg_control": (20.0, None)},
    }


def test_runs_from_the_scores_of_an_experiment(tmp_path: Path) -> None:
    subject, tables = artifacts.experiment(tmp_path), load()["tables"]
    artifacts.write_artifacts(subject)
    score(subject)
    found = cells(tables)
    runs.add_runs(found, tables, subject)
    # A corpus of one domain stands for all.
    (cell,) = [cell for cell in found if cell.name == "autocompressor_perplexity_llama / Llama-2-7B / 0"]
    assert {name: run.mean for name, run in cell.runs.items()} == {"base": pytest.approx(exp(2.0))}
    assert Counter(cell.table for cell in found if cell.runs)["gist_tokens_rouge"] == 6


def test_an_experiment_without_scores_is_named(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"scores\.parquet: no such file"):
        regenerate(release, artifacts.experiment(tmp_path))


# --------------------------------------------------------------------------------------------------- the real release


def test_the_released_data_give_the_published_tables(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data = Path(os.environ.get("SYNOPSIS_DATA", request.config.rootpath / "../shared/data")) / "gist_release"
    if not data.is_dir():
        pytest.skip("the released data are not here: no gist_release under SYNOPSIS_DATA or ../shared/data")
    copy = tmp_path / "copy"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)
    changed = copy / ROUGE
    changed.write_text(changed.read_text().replace("57.779,", "57.78,"))
    made = regenerate(copy)
    assert made.failed == [
        "gist_tokens_rouge / LLaMA-7B gist 1 / seen: 57.779, published 57.7800",
        "results/rouge.csv: differs from the release",
    ]
    counts = Counter((cell.table, cell.state) for cell in made.cells if not cell.table.startswith("autocompressor"))
    agree, known, differ, alone, _, neither = STATES
    assert counts == {
        **{("rouge", agree): 13, ("rouge", known): 5, ("rouge", alone): 6, ("rouge", neither): 3},
        **{("chatgpt", agree): 8, ("chatgpt", known): 4, ("chatgpt", alone): 6},
        **{("gist_tokens_rouge", agree): 35, ("gist_tokens_rouge", differ): 1},
        ("gist_tokens_win_rates", agree): 30,
        **{("gist_tokens_choices", agree): 12, ("gist_tokens_choices", known): 18},
        **{("efficiency", agree): 26, ("efficiency", alone): 22},
    }
