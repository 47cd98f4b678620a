"""An export for a paper: what it holds, and that nothing changes without its check saying so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import reporting_artifacts as artifacts
from synopsis.artifacts import Layout, write_json
from synopsis.errors import ArtifactError, InputError, SynopsisError
from synopsis.reporting.export import build, check_export, export
from synopsis.reporting.report import report
from synopsis.reporting.scores import score

EXAMPLE = Path(__file__).parents[2] / "docs" / "paper" / "example.tex"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subject = artifacts.experiment(tmp_path_factory.mktemp("export"), only="perplexity")
    artifacts.write_artifacts(subject)
    score(subject)
    report(subject)
    return Layout(subject).root


@pytest.fixture
def results(reported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reported, tmp_path / "results" / "small"))


def test_an_export_has_the_latex_tables_and_the_vector_figures(results: Path, tmp_path: Path) -> None:
    paper = tmp_path / "paper"
    names = export(results, paper)
    assert sorted(names) == [
        *("figures/perplexity.pdf", "figures/perplexity_vectors.pdf", "figures/training.pdf"),
        *("tables/perplexity.tex", "tables/perplexity_details.tex"),
    ]
    assert all((paper / name).read_bytes() == (results / name).read_bytes() for name in names)
    manifest = json.loads((paper / "manifest.json").read_text())
    assert set(manifest["provenance"]["outputs"]) == set(names)
    assert manifest["results"] == "../results/small" and "perplexity/base.json" in manifest["sources"]
    check_export(paper)


@pytest.mark.parametrize(
    "name", ["perplexity/base.json", "models/base/metrics.jsonl", "tables/perplexity.tex", "scores.csv"]
)
def test_the_check_names_a_result_that_changed_or_is_missing(results: Path, tmp_path: Path, name: str) -> None:
    paper = tmp_path / "paper"
    export(results, paper)
    (results / name).write_text((results / name).read_text().replace("1", "2", 1))
    with pytest.raises(SynopsisError, match=rf"{name}: has changed") as raised:
        check_export(paper)
    assert raised.value.exit_code == 1 and str(raised.value).count("\n") == 1
    (results / name).unlink()
    with pytest.raises(SynopsisError, match=rf"{name}: is missing"):
        check_export(paper)


def test_a_report_that_is_older_than_its_results_is_not_exported(results: Path, tmp_path: Path) -> None:
    write_json(results / "perplexity" / "base.json", "perplexity", {"rows": []}, {})
    with pytest.raises(ArtifactError, match=r"make it again:\n  .*perplexity/base.json: has changed"):
        export(results, tmp_path / "paper")
    assert not (tmp_path / "paper").exists()
    with pytest.raises(ArtifactError, match=r"report.provenance.json: no such file"):
        export(tmp_path, tmp_path / "paper")


def test_what_was_edited_in_the_paper_is_neither_overwritten_nor_taken_for_exported(
    results: Path, tmp_path: Path
) -> None:
    paper = tmp_path / "paper"
    export(results, paper)
    export(results, paper)
    edited = paper / "tables" / "perplexity.tex"
    edited.write_text("my table")
    with pytest.raises(SynopsisError, match=r"paper/tables/perplexity.tex: has changed"):
        check_export(paper)
    with pytest.raises(InputError, match=r"paper/tables/perplexity.tex: was not exported, or was edited"):
        export(results, paper)
    assert edited.read_text() == "my table"


def test_the_example_paper_includes_what_an_export_holds(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = tmp_path / "paper"
    export(results, paper)
    build(EXAMPLE, paper)
    typeset = shutil.which("tectonic") or shutil.which("latexmk")
    assert ("typeset by" if typeset else "every file that it includes is in") in capsys.readouterr().err
    assert (paper / "example.pdf").exists() == bool(typeset)
    (paper / "figures" / "perplexity.pdf").unlink()
    with pytest.raises(InputError, match=r"includegraphics\{figures/perplexity\}: no such file in"):
        build(EXAMPLE, paper)


@pytest.mark.parametrize(
    "words", [[], ["results"], ["--to", "paper"], ["results", "--to", "paper", "--check", "paper"]]
)
def test_words_that_do_not_go_together_are_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from synopsis import cli

    monkeypatch.setattr("sys.argv", ["synopsis", "export", *words])
    assert cli.run_command() == 2
