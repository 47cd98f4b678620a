"""The score stage and its tables on an experiment of 100,000 score rows: seconds and memory.

    python benchmarks/reporting.py                      # a table on standard output; status 1 when a limit is missed
    python benchmarks/reporting.py --rows 20000 --out results/reporting.json

Results of in-context learning are made up in a temporary folder, as the stage writes them: runs of four compressors, 11
data sets, 7 seeds, 5 settings. Collected: `score` reads and checks all files and writes the scores. Read: the parquet
file. Pivoted: `synopsis scores` by compressor, setting and data set. Rendered: the stage's tables in all four forms.
Limits: 10 s for everything together, and 1 GB for the whole process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout, Provenance, write_json, write_json_lines
from synopsis.config.experiment import Experiment
from synopsis.stages.record import stages

MOST_SECONDS, MOST_BYTES = 10.0, 1e9
ROWS_OF_A_CELL = 13
DATASETS, SEEDS, COMPRESSORS = 11, 7, 4
SETTINGS = {f"plain_{size}": {"plain_tokens": size} for size in (100, 200, 300, 400, 500)}
COUNTS = {"n": 100, "asked": 6, "demonstrations": 6, "unfilled": 0, "over_budget": 0, "summary_vectors": 0}
COST = {"tokens": 2000, "naive_tokens": 8000, "seconds": 2.0, "examples_per_second": 50.0}


def experiment(folder: Path, rows: int) -> Experiment:
    """With results of about so many rows, a full grid."""
    training = {"steps": 10, "batch_size": 1, "learning_rate": 1e-3, "corpus": "world", "sequence_length": 64}
    task = {"source": {"world": "eats"}, "template": "{text} {answer}", "input_fields": ["text"], "options": ["a", "b"]}
    runs = round(rows / (ROWS_OF_A_CELL * DATASETS * SEEDS * len(SETTINGS)))
    names = [f"task_{number}" for number in range(DATASETS)]
    full = {"method": "full_attention", "base": "base", "training": training}
    compressors = {f"full_{number}": full for number in range(COMPRESSORS)}
    made = Experiment.model_validate(
        {
            "name": "many",
            "results": str(folder),
            "training_seeds": list(range(max(1, round(runs / COMPRESSORS)))),
            "evaluation_seeds": list(range(SEEDS)),
            "corpora": {"world": {"source": "world"}},
            "models": {"base": {"architecture": {}, "pretraining": training}},
            "compressors": compressors,
            "icl": {"datasets": names, "settings": SETTINGS, "runs": list(compressors)},
            "tasks": dict.fromkeys(names, task),
        }
    )
    write_results(made)
    return made


def write_results(made: Experiment) -> None:
    layout = Layout(made)
    for job in stages()["train"].jobs(made):
        (folder,) = job.outputs
        write_json_lines(folder / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    for number, job in enumerate(stages()["icl"].jobs(made)):
        accuracy = round(50 + 40 * ((number * 0.618) % 1)) / 100
        cells = {name: {"accuracy": accuracy, "dropped": 0, **COUNTS, "cost": COST} for name in SETTINGS}
        write_json(job.record, "icl", {"examples": 100, "dropped": [], "settings": cells}, {})
        write_json_lines(layout.examples(job.record), [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="score rows")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    seconds: dict[str, float] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = work()
        seconds[what] = time.perf_counter() - started
        return found

    with tempfile.TemporaryDirectory() as folder:
        made = experiment(Path(folder), options.rows)
        from synopsis.reporting import rendering, report, scores, selection

        began = time.process_time()
        count = len(timed("collected", lambda: scores.score(made)))
        frame = timed("read", lambda: scores.read_scores(Layout(made).scores))

        def pivot() -> None:
            chosen = selection.selected(frame, ["stage=icl", "metric=accuracy"])
            table = selection.pivoted(chosen, ["compressor", "setting"], "dataset")
            rendering.as_terminal_text(table, 110)

        def render() -> None:
            for name, table in report.tables(made, frame).items():
                for form in (rendering.as_csv, rendering.as_markdown, rendering.as_html):
                    form(table)
                rendering.as_latex(table, name)

        timed("pivoted", pivot)
        timed("rendered", render)
        cpu = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{count:,} rows: " + ", ".join(f"{name} in {value:.2f} s" for name, value in seconds.items()))
    print(f"together {sum(seconds.values()):.2f} s (limit {MOST_SECONDS:g}), {cpu:.2f} s of them on the CPU")
    print(f"peak {peak / 1e6:.0f} MB (limit {MOST_BYTES / 1e6:g})")
    if options.out:
        numbers = {"rows": count, "seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak}
        write_json(options.out, "reporting-benchmark", numbers, Provenance(config="").record())
    sys.exit(sum(seconds.values()) > MOST_SECONDS or peak > MOST_BYTES)


if __name__ == "__main__":
    main()
