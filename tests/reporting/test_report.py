"""The report stage: which files it writes, that equal scores give equal bytes, and the headline numbers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, file_hash, read_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.items import places_in_report, report_files
from synopsis.reporting.report import headline, main_tables, report, tables
from synopsis.reporting.scores import read_scores, score
from synopsis.reporting.style import save_figure, styles
from wandb_files import parts

TABLES, FIGURES, PAGES = 9, 9, 4
MAGIC = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    subject = artifacts.experiment(tmp_path_factory.mktemp("report"), tracking={"project": "compression"})
    artifacts.write_artifacts(subject)
    score(subject)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_MODE", "offline")
        report(subject)
    return subject


def test_every_declared_file_is_written_and_no_other(reported: Experiment) -> None:
    layout, files = Layout(reported), report_files(reported)
    assert set(layout.tables.iterdir()) == set(files["tables"]) and len(files["tables"]) == 4 * TABLES
    assert set(layout.pages.iterdir()) == set(files["pages"]) and len(files["pages"]) == PAGES
    assert set(layout.figures.iterdir()) == set(files["figures"]) and len(files["figures"]) == 3 * FIGURES
    for path in files["figures"]:
        content = path.read_bytes()
        assert content.startswith(MAGIC[path.suffix]) and len(content) > 5000, f"{path.name} is empty"
    provenance = read_json(layout.root / "report.provenance.json", "report")["provenance"]
    assert provenance["inputs"] == {str(layout.scores): file_hash(layout.scores)}
    assert provenance["outputs"]["tables/icl.csv"]["sha256"] == file_hash(layout.tables / "icl.csv")
    assert len(provenance["outputs"]) == 4 * TABLES + 3 * FIGURES + PAGES + len(files["page"])
    assert files["page"] == [layout.page] and layout.page.is_file()


def test_equal_scores_give_equal_bytes(reported: Experiment, tmp_path: Path) -> None:
    layout = Layout(reported)
    scores = read_scores(layout.scores)
    for name in ("icl", "judgements"):
        again = [tmp_path / f"{name}{suffix}" for suffix in MAGIC]
        save_figure(artifacts.figure(reported, name, scores), again)
        for path in again:
            assert path.read_bytes() == (layout.figures / path.name).read_bytes(), f"{path.name} differs"


def test_tables_and_figures_are_tracked(reported: Experiment) -> None:
    pytest.importorskip("wandb")
    layout = Layout(reported)
    tracked = layout.root / "logs" / "wandb"
    (part,) = parts(tracked)
    assert (part.run.run_group, part.run.job_type, part.run.display_name) == ("small", "report", "small-report")
    (row,) = part.rows.values()
    (folder,) = tracked.glob("wandb/offline-run-*/files")
    for name in artifacts.names(reported, "table"):
        columns, *lines = csv.reader((layout.tables / f"{name}.csv").read_text().splitlines())
        logged = json.loads((folder / row[f"tables/{name}"]["path"]).read_text())
        assert logged["columns"] == columns
        assert logged["data"] == [[_value(text) for text in line] for line in lines]
    for name in artifacts.names(reported, "figure"):
        logged = (folder / row[f"figures/{name}"]["path"]).read_bytes()
        assert logged == (layout.figures / f"{name}.png").read_bytes()


def _value(text: str) -> float | str | None:
    try:
        return float(text)
    except ValueError:
        return None if text == "–" else text


def test_an_experiment_has_the_tables_and_figures_of_its_sections(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, only="icl")
    assert artifacts.names(subject, "table") == ["icl", "icl_speed"]
    assert artifacts.names(subject, "figure") == ["icl", "training"]
    section = {"datasets": ["x"], "settings": {"zero_shot": {}}}
    loaded = {"name": "loaded", "results": str(tmp_path), "models": {"a_model": {"hub": "some/model"}}, "icl": section}
    assert artifacts.names(Experiment.model_validate(loaded), "figure") == ["icl"], "nothing is trained"


def test_no_two_subjects_look_the_same(tmp_path: Path) -> None:
    whole = artifacts.experiment(tmp_path).model_dump()
    compressors = {f"gist-{number}": whole["compressors"]["gist-1"] for number in range(13)}
    looks = styles(artifacts.experiment(tmp_path, compressors=compressors, judge=None)).values()
    assert len({(look.colour, look.marker, look.line) for look in looks}) == len(looks) == 14


def test_scores_of_another_configuration_are_refused(tmp_path: Path) -> None:
    small = artifacts.experiment(tmp_path, icl=None)
    artifacts.write_artifacts(small)
    with pytest.raises(ArtifactError, match="nothing of the stage 'icl'"):
        tables(artifacts.experiment(tmp_path), score(small))


def test_every_table_and_figure_has_a_place_in_the_report_and_a_caption(reported: Experiment, tmp_path: Path) -> None:
    places = places_in_report(reported, tmp_path)
    assert {path.suffix for path in places} == {".html", ".svg"} and len(places) == TABLES + FIGURES + PAGES
    assert len({(place["category"], place["labels"]["result"]) for place in places.values()}) == len(places)
    assert {place["category"] for place in places.values()} >= {"Perplexity", "In-context learning", "Training"}
    assert all(len(Path(place["caption"]).read_text()) > 50 for place in places.values())


def test_what_the_workflow_reads_at_every_start_needs_no_heavy_package() -> None:
    code = (
        "import sys; from synopsis.stages.record import stages; assert [stage.report for stage in stages().values()]\n"
        "print([name for name in ('pandas', 'matplotlib', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_headline_numbers(reported: Experiment) -> None:
    numbers = headline(reported)
    expected = {
        "perplexity/autocompressor/context=100/tokens=dependent/loss": 2.5 - 0.8 + 0.05,
        "icl/autocompressor/summary_4/mean_accuracy": 0.62,
        "rouge/gist-1/seen/rougeL": 50,
        "rouge/gist-1/seen/recovered_percent": 75,
        "judge/reference/gist-1-vs-pos_control/seen/win_rate": 66 / 96,
        "benchmark/rmt/batch=8/context=128/speed_up": 2.6,
        "benchmark/rmt/batch=8/context=128/speed_up_prefix": 1.8,
        "benchmark/rmt/batch=8/context=128/reuses": 7,  # 320 ms to make it, 49.8 ms saved each time
        "benchmark/rmt/batch=8/context=128/memory_saving": 32,
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected)


def test_main_tables_fit_the_terminal(reported: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    text = main_tables(reported)
    assert max(len(line) for line in text.splitlines()) <= 72
    for title in ("Perplexity by context length", "In-context learning", "ROUGE", "Pairwise", "Time and memory"):
        assert title in text
