"""Measure time, FLOPs and memory of answering with a compressed context, with a cached prefix, and without either.

\b
  synopsis benchmark --config config/demo.yaml autocompressor-s0
  synopsis benchmark --calibrate

The second form measures what this device reaches in products of matrices and in copies, by dtype: the limits that
times are held against where the table of devices does not know them.
"""

from typing import Annotated, Any

import typer

from synopsis.stages import run_of


def calibrate(wanted: bool) -> None:
    if wanted:
        from synopsis.commands.options import show
        from synopsis.stages.benchmark import run

        show(run.calibrate(), as_json=False)
        raise typer.Exit


WORDS = {"run": run_of("benchmark")}
OPTIONS: dict[str, Any] = {
    "calibrate": Annotated[
        bool,
        typer.Option("--calibrate", is_eager=True, callback=calibrate, help="Only measure this device; no experiment."),
    ]
}
