"""The report stage: which files it writes, that equal scores give equal bytes, and that figures show the numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, file_hash, read_json
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.reporting.items import items, places_in_report, report_files
from synopsis.reporting.report import report
from synopsis.reporting.scores import read_scores, score
from synopsis.reporting.style import save_figure, styles

TABLES, FIGURES = 7, 7
MAGIC = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    subject = artifacts.experiment(tmp_path_factory.mktemp("report"))
    artifacts.write_artifacts(subject)
    score(subject)
    report(subject)
    return subject


def test_every_declared_file_is_written_and_no_other(reported: Experiment) -> None:
    layout, files = Layout(reported), report_files(reported)
    assert set(layout.tables.iterdir()) == set(files["tables"])
    assert set(layout.figures.iterdir()) == set(files["figures"])
    assert len(files["tables"]) == 4 * TABLES
    assert len(files["figures"]) == 3 * FIGURES
    for path in files["figures"]:
        content = path.read_bytes()
        assert content.startswith(MAGIC[path.suffix])
        assert len(content) > 5000, f"{path.name} is empty"


def test_equal_scores_give_equal_bytes(reported: Experiment, tmp_path: Path) -> None:
    layout = Layout(reported)
    scores = read_scores(layout.scores)
    for name in ("icl", "judgements"):
        again = [tmp_path / f"{name}.{suffix}" for suffix in ("svg", "pdf", "png")]
        save_figure(artifacts.figure(reported, name, scores), again)
        for path in again:
            assert path.read_bytes() == (layout.figures / path.name).read_bytes(), f"{path.name} differs"


def test_provenance_names_the_scores_and_hashes_the_files(reported: Experiment) -> None:
    layout = Layout(reported)
    record = read_json(layout.root / "report.provenance.json", "report")
    assert record["provenance"]["inputs"] == {str(layout.scores): file_hash(layout.scores)}
    outputs = record["provenance"]["outputs"]
    assert outputs["tables/icl.csv"]["sha256"] == file_hash(layout.tables / "icl.csv")
    assert len(outputs) == 4 * TABLES + 3 * FIGURES


def test_perplexity_figure_draws_each_subject_in_each_panel(reported: Experiment) -> None:
    figure = artifacts.figure(reported, "perplexity", read_scores(Layout(reported).scores))
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert set(panels) == {"all tokens", "tokens that only context predicts", "topic words", "recalled words"}
    lines = {line.get_color(): list(line.get_ydata()) for line in panels["recalled words"].get_lines()}
    looks = styles(reported)
    assert lines[looks["rmt"].colour] == pytest.approx([2.4, 2.2, 2.0])
    assert lines[looks["autocompressor"].colour] == pytest.approx([2.45, 2.05, 1.65])
    band = panels["all tokens"].collections[-1].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(1.6 - 0.05), "one training seed: the interval over documents"


def test_missing_numbers_leave_gaps_and_say_so(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, icl=None, generate=None, judge=None, perplexity=None)
    artifacts.write_artifacts(subject)
    scores = score(subject)
    scores.loc[scores["metric"] == "peak_bytes", "value"] = float("nan")
    figure = artifacts.figure(subject, "benchmark", scores)
    said = {panel.get_ylabel(): [text.get_text() for text in panel.texts] for panel in figure.axes}
    assert said == {
        "wall time (milliseconds)": [],
        "peak memory (MiB)": ["not measured"],
        "context kept (MiB)": [],
    }


def test_an_experiment_with_one_section_has_the_figures_of_that_section(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, perplexity=None, generate=None, judge=None, benchmark=None)
    assert artifacts.names(subject, "figure") == ["icl", "training"]


def test_loaded_models_alone_have_no_training_curves(tmp_path: Path) -> None:
    subject = Experiment.model_validate(
        {
            "name": "loaded",
            "results": str(tmp_path),
            "models": {"a_model": {"hub": "some/model"}},
            "icl": {"datasets": ["x"], "settings": {"zero_shot": {}}},
        }
    )
    assert artifacts.names(subject, "figure") == ["icl"]


def test_no_two_subjects_look_the_same(tmp_path: Path) -> None:
    whole = artifacts.experiment(tmp_path).model_dump()
    compressors = {f"gist-{number}": whole["compressors"]["gist-1"] for number in range(13)}
    looks = styles(artifacts.experiment(tmp_path, compressors=compressors, judge=None)).values()
    assert len({(look.colour, look.marker, look.line) for look in looks}) == len(looks) == 14


def test_a_report_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"scores\.parquet: no such file"):
        report(artifacts.experiment(tmp_path))


def test_every_table_and_figure_has_a_place_in_the_report_and_a_caption(reported: Experiment, tmp_path: Path) -> None:
    places = places_in_report(reported, tmp_path)
    assert {path.suffix for path in places} == {".html", ".svg"} and len(places) == TABLES + FIGURES
    assert {place["category"] for place in places.values()} >= {"Perplexity", "In-context learning", "Training"}
    for place in places.values():
        assert len(Path(place["caption"]).read_text()) > 50
    told_apart = {(place["category"], place["labels"]["result"]) for place in places.values()}
    assert len(told_apart) == len(places)
    assert {item.kind for _, item in items(reported)} == {"table", "figure"}


def test_what_the_workflow_reads_at_every_start_needs_no_heavy_package() -> None:
    code = (
        "import sys, synopsis.reporting.items\n"
        "from synopsis.stages.record import stages\n"
        "print([stage.report for stage in stages().values()] and "
        "[name for name in ('pandas', 'matplotlib', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
