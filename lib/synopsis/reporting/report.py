"""The report stage: tables and figures of an experiment, from its scores, and pages that show them and the judgements.

    synopsis report --config config/demo.yaml

The same scores give the same bytes: nothing written here holds a date or a random identifier, apart from
`report.provenance.json`, which says what the files were made from.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from synopsis.artifacts import Layout, Provenance, write_json, write_text
from synopsis.config.experiment import Experiment
from synopsis.errors import ArtifactError
from synopsis.progress import say
from synopsis.reporting.items import items, measured, report_files
from synopsis.reporting.page import front_page
from synopsis.reporting.rendering import Table, as_csv, as_html, as_latex, as_markdown, as_terminal_text
from synopsis.reporting.scores import read_scores
from synopsis.reporting.tracking import media, publish

WIDTH_WITHOUT_TERMINAL = 110


def report(experiment: Experiment, options: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Write tables, figures, pages and front page of `experiment` and return their paths as `report_files` names them.

    options: how a command line names the experiment, for the commands on the page. Raises ArtifactError when the scores
    are damaged or lack a stage of the experiment, and when there are none: then the page alone is written, and says
    which results are missing.
    """
    from synopsis.reporting.style import drawing, save_figure

    layout = Layout(experiment)
    if not layout.scores.is_file():
        write_text(layout.page, front_page(experiment, None, {}, {}, options))
        raise ArtifactError(
            f"{layout.scores}: no such file; nothing was scored yet. {layout.page} says which results are missing."
        )
    scores = read_scores(layout.scores)
    provenance = Provenance(config=experiment.fingerprint(experiment), inputs=[layout.scores])
    made = tables(experiment, scores)
    for name, table in made.items():
        forms = {"csv": as_csv(table), "md": as_markdown(table), "tex": as_latex(table, name), "html": as_html(table)}
        for suffix, text in forms.items():
            write_text(layout.tables / f"{name}.{suffix}", text)
    for _, item in items(experiment, "figure"):
        with drawing():
            figure = item.make(experiment, scores)
        save_figure(figure, item.files(experiment))
    for _, item in items(experiment, "page"):
        write_text(item.files(experiment)[0], item.make(experiment, scores))
    write_text(layout.page, front_page(experiment, scores, made, headline(experiment), options))
    files = report_files(experiment)
    outputs = [path for paths in files.values() for path in paths]
    write_json(layout.root / "report.provenance.json", "report", {}, provenance.record(), outputs)
    written = ", ".join(f"{len(paths)} {kind}" for kind, paths in files.items())
    say(f"{layout.root}: {written} written")
    publish(experiment, None, lambda: media(outputs))
    return files


def tables(experiment: Experiment, scores: pd.DataFrame) -> dict[str, Table]:
    """Name -> table, in the order of the report."""
    return {item.name: item.make(experiment, scores) for _, item in items(experiment, "table")}


def main_tables(experiment: Experiment) -> str:
    """Every table as text that fits the terminal."""
    scores = read_scores(Layout(experiment).scores)
    width = shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns
    return "\n\n\n".join(as_terminal_text(table, width) for table in tables(experiment, scores).values()) + "\n"


def headline(experiment: Experiment) -> dict[str, float]:
    """The headline numbers, each under a path that says what it is; numbers that do not exist are left out.

    perplexity/<compressor>/context=96/tokens=all/loss    nats a token
    perplexity/<compressor>/context=96/tokens=all/bits_per_byte
    icl/<compressor>/<setting>/mean_accuracy              0..1, mean over data sets and draws
    icl/<compressor>/<setting>/examples_per_second
    icl/<compressor>/<setting>/token_saving               naive over computed tokens
    needle/<compressor>/length=512/choice                 0..1, mean over depths
    needle/<compressor>/length=512/exact
    rouge/<compressor>/<split>/rougeL                     0..100
    rouge/<compressor>/<split>/recovered_percent
    judge/<judge>/<a>-vs-<b>/<split>/win_rate             0..1
    benchmark/<compressor>/batch=1/context=96/speed_up    wall time, context read again over compressed
    benchmark/<compressor>/batch=1/context=96/speed_up_prefix    wall time, cached prefix over compressed
    benchmark/<compressor>/batch=1/context=96/memory_saving    bytes in the cache, whole over compressed
    benchmark/<compressor>/batch=1/context=96/reuses      uses after which compressing has paid for itself
    """
    scores = read_scores(Layout(experiment).scores)
    found = [stage.report.headline(experiment, scores) for stage in measured(experiment)]
    return {key: float(value) for numbers in found for key, value in numbers.items() if value is not None}
