"""Planning of thousands of jobs: a dry run of Snakemake on the micro experiment with many evaluation seeds.

    python benchmarks/planning.py                      # 10,000 jobs; status 1 when it takes more than 60 s
    python benchmarks/planning.py --jobs 30000 --out results/planning.json

Nothing is computed, and nothing is written but a copy of the project in a temporary folder. The limit holds for up to
10,000 jobs.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from synopsis.artifacts import Provenance, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "workflow"))

MOST_SECONDS, WITHIN_LIMIT = 60.0, 10_000
OTHERS = 17
"""Jobs of the micro experiment beside those of in-context learning; its target rule is one of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs to plan")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    from running import Project, planned

    with tempfile.TemporaryDirectory() as folder:
        project = Project.new(Path(folder))
        seeds = list(range(max(1, options.jobs - OTHERS)))
        config = project.experiment(lambda content: content.update(evaluation_seeds=seeds))
        started = time.perf_counter()
        done = project.snakemake("-n", "--quiet", "rules", "reason", config=config)
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    jobs = sum(planned(done.stdout + done.stderr).values()) + 1
    numbers = {"jobs": jobs, "seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime}
    numbers["peak_bytes"] = used.ru_maxrss * 1024
    limit = f" (limit {MOST_SECONDS:g})" if jobs <= WITHIN_LIMIT else ""
    print(f"{jobs:,} jobs planned in {seconds:.1f} s{limit}, {numbers['cpu_seconds']:.1f} s of them on the CPU")
    print(f"peak {numbers['peak_bytes'] / 1e6:.0f} MB")
    if options.out:
        write_json(options.out, "planning-benchmark", numbers, Provenance(config="").record())
    sys.exit(bool(limit) and seconds > MOST_SECONDS)


if __name__ == "__main__":
    main()
