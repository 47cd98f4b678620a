"""Tables as data: files in config/tables, named by an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
import reporting_artifacts as artifacts
import yaml
from synopsis.artifacts import Layout
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.config.files import TableDefinition
from synopsis.errors import ConfigError, InputError
from synopsis.reporting.items import report_files
from synopsis.reporting.report import tables
from synopsis.reporting.scores import score

SHIPPED = Path(__file__).parents[2] / "config" / "tables"
ACCURACY = {
    **{"stage": "icl", "metric": "accuracy", "rows": ["compressor", "setting"], "columns": "dataset"},
    **{"title": "Accuracy", "factor": 100, "digits": 1, "best": "highest"},
}


def made(tmp_path: Path, **changes: object) -> Experiment:
    """An experiment with results of every stage and a table of its own."""
    subject = artifacts.experiment(tmp_path)
    artifacts.write_artifacts(subject)
    definition = TableDefinition.model_validate({**ACCURACY, **changes})
    return subject.model_copy(update={"tables": {"by_dataset": definition}})


def test_a_table_has_its_rows_columns_numbers_and_marks(tmp_path: Path) -> None:
    subject = made(tmp_path, where={"setting": ["plain_48", "zero_shot"], "compressor": "base"})
    table = tables(subject, score(subject))["by_dataset"]
    assert table.names == ["compressor", "setting", "world_eats", "world_wears"]
    texts = {row[1]: row[2:] for row in table.texts()}
    assert texts["plain_48"] == ["72.0 ± 2.0†", "72.0 ± 2.0†"] and "†" not in "".join(texts["zero_shot"])
    assert (
        table.note
        == "Means over seed; ± is the standard deviation of the values. † marks the highest mean of a column."
    )
    layout = Layout(subject)
    assert {layout.tables / f"by_dataset.{form}" for form in ("csv", "md", "tex", "html")} <= set(
        report_files(subject)["tables"]
    )


def test_the_shipped_tables_fit_what_the_stages_measure(tmp_path: Path) -> None:
    subject = artifacts.experiment(tmp_path)
    artifacts.write_artifacts(subject)
    found = {
        path.stem: TableDefinition.model_validate(yaml.safe_load(path.read_text())) for path in SHIPPED.glob("*.yaml")
    }
    found["perplexity_by_context"].where.pop("domain")  # these results have one domain
    subject = subject.model_copy(update={"tables": found})
    drawn = tables(subject, score(subject))
    assert found and all(any(cell.value is not None for row in drawn[name].rows for cell in row[-1:]) for name in found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("metric: acuracy", r"'acuracy'; expected the name of a metric of icl .*did you mean 'accuracy'"),
        ("columns: data", "'data'; expected the name of a column of the scores"),
        ("stage: benchmark", "'benchmark'; expected the name of a stage of this experiment"),
        ("best: most", "'most'; expected one of highest, lowest"),
    ],
)
def test_faults_of_a_table_are_reported_with_the_experiment(tmp_path: Path, change: str, expected: str) -> None:
    key, value = change.split(": ")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.yaml").write_text(yaml.safe_dump({**ACCURACY, key: value}))
    content = {"name": "x", "models": {"m": {"hub": "some/model"}}, "report": {"tables": ["mine"]}}
    content["icl"] = {"datasets": ["sst2"], "settings": {"zero_shot": {}}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "tasks").symlink_to(SHIPPED.parent / "tasks")
    with pytest.raises(ConfigError, match=expected):
        load_experiment(tmp_path / "x.yaml")


def test_a_table_cannot_take_the_place_of_another_or_show_what_is_not_there(tmp_path: Path) -> None:
    subject = made(tmp_path, where={"setting": "summary_9"})
    with pytest.raises(InputError, match="setting=summary_9: no such row"):
        tables(subject, score(subject))
    with pytest.raises(InputError, match="'icl' is a table that every report has"):
        report_files(subject.model_copy(update={"tables": {"icl": subject.tables["by_dataset"]}}))
