"""Two Snakemakes on one folder of results: each makes targets of its own, and what both would make is made once."""

from __future__ import annotations

import os
import signal

from running import CONFIG, WAIT_SECONDS, Project, remove, wait_for

RUN = "gist-1-s0"
MODEL, ANSWERS = f"results/micro/models/{RUN}", f"results/micro/generations/{RUN}/seen.csv"
PERPLEXITY = "results/micro/perplexity/autocompressor-s0.json"


def test_two_snakemakes_on_one_results_folder(copied: Project) -> None:
    log = copied.results / "logs" / "train" / f"{RUN}.log"
    for path in (copied.folder / MODEL, copied.folder / ANSWERS, copied.folder / PERPLEXITY, log):
        remove(path)
    first = copied.start("snakemake", "--cores", "1", MODEL, "--configfile", CONFIG)
    wait_for(log, first)
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        refused = copied.snakemake(ANSWERS)
        assert refused.returncode == 1, "it needs what the first one makes"
        assert "no other Snakemake process is trying to create the same files" in refused.stderr
        assert "Traceback" not in refused.stderr
        second = copied.snakemake(PERPLEXITY)
        assert second.returncode == 0, second.stdout + second.stderr
        assert (copied.folder / PERPLEXITY).exists() and not (copied.folder / MODEL).exists()
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    output, _ = first.communicate(timeout=WAIT_SECONDS)
    assert first.returncode == 0, output
    assert copied.plan(ANSWERS) == {"generate": 1}, "the next call goes on"
