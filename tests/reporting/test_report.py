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
from synopsis.reporting.figures import build_figure, save_figure
from synopsis.reporting.files import FIGURE_FORMATS, REPORT_ITEMS, figure_names, report_files, report_item
from synopsis.reporting.report import report
from synopsis.reporting.scores import read_scores, score
from synopsis.reporting.style import COLOURS, subject_styles

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
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
        save_figure(build_figure(name, reported, scores), tmp_path / name)
        for suffix in FIGURE_FORMATS:
            again, first = tmp_path / f"{name}.{suffix}", layout.figures / f"{name}.{suffix}"
            assert again.read_bytes() == first.read_bytes(), f"{name}.{suffix} differs"


def test_provenance_names_the_scores_and_hashes_the_files(reported: Experiment) -> None:
    layout = Layout(reported)
    record = read_json(layout.root / "report.provenance.json", "report")
    assert record["provenance"]["inputs"] == {str(layout.scores): file_hash(layout.scores)}
    outputs = record["provenance"]["outputs"]
    assert outputs["tables/icl.csv"]["sha256"] == file_hash(layout.tables / "icl.csv")
    assert len(outputs) == 4 * TABLES + 3 * FIGURES


def test_perplexity_figure_draws_each_subject_in_each_panel(reported: Experiment) -> None:
    figure = build_figure("perplexity", reported, read_scores(Layout(reported).scores))
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert set(panels) == {"all tokens", "tokens that only context predicts", "topic words", "recalled words"}
    lines = {line.get_color(): list(line.get_ydata()) for line in panels["recalled words"].get_lines()}
    assert lines[COLOURS["rmt"]] == pytest.approx([2.4, 2.2, 2.0])
    assert lines[COLOURS["autocompressor"]] == pytest.approx([2.45, 2.05, 1.65])
    band = panels["all tokens"].collections[-1].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(1.6 - 0.05), "one training seed: the interval over documents"


def test_missing_numbers_leave_gaps_and_say_so(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, icl=None, generate=None, judge=None, perplexity=None)
    artifacts.write_artifacts(subject)
    scores = score(subject)
    scores.loc[scores["metric"] == "peak_bytes", "value"] = float("nan")
    figure = build_figure("benchmark", subject, scores)
    said = {panel.get_ylabel(): [text.get_text() for text in panel.texts] for panel in figure.axes}
    assert said == {
        "wall time (milliseconds)": [],
        "peak memory (MiB)": ["not measured"],
        "context kept (MiB)": [],
    }


def test_an_experiment_with_one_section_has_the_figures_of_that_section(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path, perplexity=None, generate=None, judge=None, benchmark=None)
    assert figure_names(subject) == ["icl", "training"]


def test_loaded_models_alone_have_no_training_curves(tmp_path: Path) -> None:
    subject = Experiment.model_validate(
        {
            "name": "loaded",
            "results": str(tmp_path),
            "models": {"a_model": {"hub": "some/model"}},
            "icl": {"datasets": ["x"], "settings": {"zero_shot": {}}},
        }
    )
    assert figure_names(subject) == ["icl"]


def test_colours_follow_families_and_condition(tmp_path: Path) -> None:
    whole = artifacts.experiment(tmp_path).model_dump()
    compressors = {**whole["compressors"], "gist-5": whole["compressors"]["gist-1"]}
    styles = subject_styles(artifacts.experiment(tmp_path, compressors=compressors))
    assert styles["base"].colour == COLOURS["base"]
    assert styles["pos_control"].colour == COLOURS["pos_control"]
    assert styles["gist-1"].colour == COLOURS["gist"]
    assert styles["gist-5"] != styles["gist-1"]
    looks = {(style.colour, style.line) for style in styles.values()}
    assert len(looks) == len(styles), "two subjects look the same"


def test_a_report_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"scores\.parquet: no such file"):
        report(artifacts.experiment(tmp_path))


def test_every_shown_file_has_a_caption_and_every_caption_is_used(reported: Experiment) -> None:
    used = {item.caption for item in REPORT_ITEMS.values()} | {"workflow.rst"}
    assert used == {path.name for path in CAPTIONS.glob("*.rst")}
    shown = [path for paths in report_files(reported).values() for path in paths if report_item(path)]
    assert {path.suffix for path in shown} == {".html", ".svg"}
    assert len(shown) == TABLES + FIGURES


def test_the_file_lists_need_no_heavy_package() -> None:
    code = (
        "import sys, synopsis.reporting.files; "
        "print([name for name in ('pandas', 'matplotlib', 'torch', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
