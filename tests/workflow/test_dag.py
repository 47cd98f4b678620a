"""The DAG as people use it: what it makes, and that it makes again what a change touches and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running import CONFIG, ROOT, Project, leftovers, planned
from synopsis.config.experiment import load_experiment
from synopsis.reporting.items import report_files
from synopsis.reporting.scores import score

JOBS = {
    "prepare_tokenizer": 1,
    "prepare_corpus": 1,
    "prepare_instructions": 1,
    "prepare_task": 1,
    "pretrain": 1,
    "train": 3,
    "perplexity": 1,
    "icl": 1,
    "needle": 1,
    "generate": 2,
    "judge": 1,
    "benchmark": 1,
    "score": 1,
    "report": 1,
}
SUMMED_UP = {"score": 1, "report": 1}
KINDS = "benchmark corpus icl instructions judgement_summary model needle perplexity report rouge scores task tokenizer"


# ------------------------------------------------------------------------------------------------- what is there


def test_one_command_makes_every_table_and_figure(finished: Project) -> None:
    """And a log and a file of costs of each job; nothing half-done is left."""
    project = finished
    files = report_files(load_experiment(project.folder / CONFIG))
    assert len(files["tables"]) == 10 * 4 and len(files["figures"]) == 10 * 3 and len(files["pages"]) == 1
    for path in [path for paths in files.values() for path in paths]:
        assert (project.folder / path).stat().st_size > 100, f"{path} is all but empty"
    counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in files.items())
    assert f"{counts} written" in finished.output
    page = (finished.results / "report.html").read_text()
    assert "Nothing failed, and no result is missing." in page and "config/micro.yaml" in page
    logs = finished.results / "logs"
    assert len(list(logs.rglob("*.log"))) == len(list(logs.rglob("*.tsv"))) == sum(JOBS.values())
    assert "step 12/12" in (logs / "train" / "autocompressor-s0.log").read_text()
    assert leftovers(finished.results) == []
    assert not list((finished.results / "checkpoints").glob("*")), "checkpoints of finished runs"


def test_each_result_says_where_it_comes_from(finished: Project) -> None:
    documents = [json.loads(path.read_text()) for path in finished.results.rglob("*.json")]
    results = {each["kind"]: each["provenance"] for each in documents if "provenance" in each}
    assert " ".join(sorted(results)) == KINDS
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    for kind, provenance in results.items():
        assert {"seed", "device", "dtype", "python", "platform", "host", "finished"} <= set(provenance)
        assert len(provenance["config"]) == 16 and provenance["wall_seconds"] >= 0
        assert {"torch", "transformers", "numpy"} <= set(provenance["packages"])
        assert all(digest and len(digest) == 64 for digest in provenance["inputs"].values()), kind
        if head.returncode == 0:
            assert len(provenance["commit"]) == 40 and isinstance(provenance["dirty"], bool)


def test_a_second_run_runs_nothing(finished: Project) -> None:
    done = finished.snakemake()
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr
    assert "rule " not in done.stdout + done.stderr


OTHER_SETTINGS = {
    "corpora.stories.seed": (1, "data/stories/base/provenance.json"),
    "instructions.translations.held_out": (9, "data/instructions/translations.json"),
    "models.base.pretraining.learning_rate": (0.1, "models/base/provenance.json"),
    "compressors.autocompressor.training.steps": (13, "models/autocompressor-s0/provenance.json"),
    "perplexity.max_documents": (1, "perplexity/autocompressor-s0.json"),
    "icl.max_examples": (7, "icl/autocompressor-s0/world_eats/seed0.json"),
    "needle.seed": (1, "needle/autocompressor-s0.json"),
    "generate.max_new_tokens": (3, "generations/gist-1-s0/seen.json", "generations/pos_control-1-s0/seen.json"),
    "benchmark.repeats": (3, "benchmark/gist-1-s0.json"),
}


def test_scores_say_which_results_other_settings_made(
    copied: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "warning" not in (copied.results / "logs" / "score" / "score.log").read_text(), "nothing was changed"
    monkeypatch.chdir(copied.folder)
    for key, (value, *paths) in OTHER_SETTINGS.items():
        score(load_experiment(CONFIG, overrides={key: value}))
        named = ", ".join(f"results/micro/{path}" for path in paths)
        assert f"has now: {named}. The scores" in capsys.readouterr().err, key
    (copied.folder / "config" / "judges" / "reference.yaml").write_text("kind: reference\ntie_margin: 0.5\n")
    done = copied.synopsis("score", "--set", "perplexity.batch_size=1", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["rows"] > 0
    assert "1 file was made with other settings" in done.stderr and "gist-1-s0-vs-pos_control-1-s0" in done.stderr


# ------------------------------------------------------------------------------------------------- what is made again


def another_compressor(content: dict[str, Any]) -> None:
    content["compressors"]["rmt"] = {**content["compressors"]["autocompressor"], "method": "rmt"}
    content["icl"]["runs"].append("rmt")


CHECKPOINTS = {"checkpoint_every": 3, "keep_checkpoints": 3}
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, int] | None]] = {
    "icl": (lambda c: c["icl"]["settings"]["icl_20"].update(plain_tokens=25), {"icl": 1}),
    "perplexity": (lambda c: c["perplexity"].update(context_lengths=[0, 10, 20]), {"perplexity": 1}),
    "needle": (lambda c: c["needle"].update(depths=[0.5]), {"needle": 1}),
    "judge": (lambda c: c["judge"].update(pairs=[["pos_control-1", "gist-1"]]), {"judge": 1}),
    "training": (
        lambda c: c["compressors"]["gist-1"]["training"].update(steps=7),
        {"train": 1, "generate": 1, "judge": 1, "benchmark": 1},
    ),
    "checkpoints": (lambda c: c["compressors"]["autocompressor"]["training"].update(CHECKPOINTS), None),
    "another dataset": (lambda c: c["icl"]["datasets"].append("world_visits"), {"prepare_task": 1, "icl": 1}),
    "another evaluation seed": (lambda c: c.update(evaluation_seeds=[0, 1]), {"icl": 1}),
    "another training seed": (
        lambda c: c["compressors"]["autocompressor"].update(training_seeds=[0, 1]),
        {"train": 1, "perplexity": 1, "icl": 1, "needle": 1},
    ),
    "another compressor": (another_compressor, {"train": 1, "icl": 1}),
    "another split": (lambda c: c["generate"]["splits"].append("unseen"), {"generate": 2, "judge": 1}),
}


@pytest.fixture(scope="module")
def plans(finished: Project) -> dict[str, dict[str, int]]:
    """What each change plans, two processes at a time."""

    def plan(name: str) -> dict[str, int]:
        return finished.plan(config=finished.experiment(CHANGES[name][0], name.replace(" ", "_")))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CHANGES, pool.map(plan, CHANGES), strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_configuration_plans_what_it_touches(plans: dict[str, dict[str, int]], name: str) -> None:
    jobs = CHANGES[name][1]
    assert plans[name] == ({} if jobs is None else {**jobs, **SUMMED_UP})


def test_a_value_on_the_command_line_counts_as_one_in_the_file(finished: Project) -> None:
    assert finished.plan("--config", "icl={max_examples: 4}") == {"icl": 1, **SUMMED_UP}


def test_a_file_that_was_only_touched_plans_nothing(copied: Project) -> None:
    for path in (copied.folder / "config").rglob("*.yaml"):
        os.utime(path)
    (copied.folder / CONFIG).write_text("# A remark.\n" + (copied.folder / CONFIG).read_text())
    assert copied.plan() == {}


def measured(path: Path) -> dict[str, dict[str, Any]]:
    """What a result of in-context learning says, but for how long it took."""
    settings = json.loads(path.read_text())["settings"]
    return {name: {key: value for key, value in cell.items() if key != "cost"} for name, cell in settings.items()}


def test_a_deleted_seed_is_made_again_alone(copied: Project) -> None:
    seed = copied.results / "icl" / "autocompressor-s0" / "world_eats" / "seed0.json"
    before = measured(seed)
    others = {path: path.stat().st_mtime_ns for path in copied.results.glob("*/*.json")}
    seed.unlink()
    target = str(seed.relative_to(copied.folder))
    done = copied.snakemake(target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert planned(done.stdout + done.stderr) == {"icl": 1}
    assert measured(seed) == before, "the same seed gives the same numbers"
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert copied.plan() == SUMMED_UP, "what follows from the seed is out of date now"


# ------------------------------------------------------------------------------------------------- a cluster


def test_a_cluster_is_planned_from_the_root_with_a_gpu_for_each_stage_that_runs_a_model(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed")
    project = Project.new(tmp_path)
    done = project.run("snakemake", "--profile", "slurm", "-n", "--configfile", CONFIG)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert planned(output) == JOBS
    assert not (tmp_path / "results").exists(), "a dry run has written results"
    resources = {}
    for job in output.split("\nrule ")[1:]:
        lines = [line.strip() for line in job.splitlines()]
        resources[lines[0].rstrip(":")] = next(line for line in lines if line.startswith("resources: "))
    with_gpu = {rule for rule, line in resources.items() if "gpu=1" in line}
    assert with_gpu == {"pretrain", "train", "perplexity", "icl", "needle", "generate", "benchmark"}
    assert all("tasks=" not in line for line in resources.values())
    assert all("runtime=" in line and "mem_mb=" in line for rule, line in resources.items() if rule != "all")


# ------------------------------------------------------------------------------------------------- faults


def test_faults_of_the_configuration_are_shown_before_anything_runs(tmp_path: Path) -> None:
    project = Project.new(tmp_path)
    config = project.experiment(lambda c: (c["icl"].update(max_exampels=3), c.update(evaluation_seeds=[-1])))
    done = project.snakemake(config=config)
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    for words in (config, "icl.max_exampels", "did you mean 'max_examples'", "evaluation_seeds.0"):
        assert words in output
    assert output.count("synopsis: ") == 1
    assert "Traceback" not in output and "Error" not in output
    assert not (tmp_path / "results").exists()


def test_a_job_that_fails_does_not_stop_the_others_and_its_log_is_shown(copied: Project) -> None:
    """What the profile of this machine sets: keep-going and show-failed-logs."""
    judgements = copied.results / "judgements" / "reference" / "gist-1-s0-vs-pos_control-1-s0" / "seen.json"
    task = copied.results / "data" / "tasks" / "world_eats.json"
    for path in (judgements, task):
        path.unlink()
    (copied.results / "generations" / "gist-1-s0" / "seen.csv").write_text("id,x\n")
    targets = [str(path.relative_to(copied.folder)) for path in (judgements, task)]
    done = copied.snakemake("--cores", "1", *targets)
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert "workflow specific profile profiles/default" in output
    assert not judgements.exists() and task.exists()
    fault = "synopsis: results/micro/generations/gist-1-s0/seen.csv: "
    assert output.count(fault) >= 2, "once as the job says it, once from its log, which outlives the terminal"
    assert fault in (copied.results / "logs" / "judge" / "reference-gist-1-s0-vs-pos_control-1-s0-seen.log").read_text()
