"""`synopsis plan`: what the runs of an experiment cost, by hand and by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from experiment_text import spoilt, write
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.costs.cost_tables import gigabytes, hours, short, totals
from synopsis.costs.dimensions import KNOWN, known
from synopsis.costs.run_costs import Machine, RunCost, size_of, training_costs, zero_stage
from synopsis.errors import InputError

TEXT = """\
name: big
training_seeds: [3]
corpora:
  books: {source: text, domains: {books: {hub: somewhere/books}}}
instructions:
  alpaca: {source: alpaca_plus}
models:
  opt: {hub: facebook/opt-1.3b, type: opt}
  stranger: {hub: someone/stranger}
compressors:
  auto:
    method: autocompressor
    base: opt
    summary_length: 50
    training: &segments
      corpus: books
      sequence_length: 6144
      steps: 1000
      batch_size: 2
      gradient_accumulation: 4
      learning_rate: 1e-5
      dtype: bfloat16
  full:
    method: full_attention
    base: opt
    max_positions: 4096
    training: {corpus: books, sequence_length: 4096, steps: 5, batch_size: 1, learning_rate: 1e-5}
  gist:
    method: gist
    base: stranger
    condition: gist
    training: {instructions: alpaca, steps: 10, batch_size: 8, learning_rate: 1e-5}
"""
LLAMA = {**KNOWN["meta-llama/Llama-2-7b-hf"], "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no results lie


def experiment(tmp_path: Path, *edits: tuple[str, str]) -> Experiment:
    return load_experiment(write(tmp_path, spoilt(*edits, text=TEXT)))


def costs_of(experiment: Experiment, machine: Machine | None = None, **options: Any) -> dict[str, RunCost]:
    return {cost.run: cost for cost in training_costs(experiment, machine or Machine(), **options)}


# --------------------------------------------------------------------------------------------------------------- costs


def test_a_run_is_added_up(tmp_path: Path) -> None:
    cost = costs_of(experiment(tmp_path), Machine("A100", processes=4, mfu=0.5))["auto-s3"]
    size = known("facebook/opt-1.3b")
    assert size is not None and cost.flops is not None and cost.memory is not None and cost.gpu_hours is not None
    assert (cost.steps, cost.sequences, cost.tokens) == (1000, 2 * 4 * 4, 1000 * 32 * 6144)
    assert cost.parameters == 1_315_758_080 and cost.trained == cost.parameters + 50 * 2048
    # Six for each weight that multiplies and each token, more for attention and for the vectors between segments.
    weights = size.parameters - size.extra
    assert 6 * weights * cost.tokens < cost.flops.model < 6 * weights * cost.tokens * 1.25
    assert cost.gpu_hours == pytest.approx(cost.flops.total / (0.5 * 312e12 * 3600))
    assert cost.memory.optimizer == 8 * cost.trained and cost.memory.weights == 6 * cost.parameters


def test_what_grows_with_processes_and_what_does_not(tmp_path: Path) -> None:
    given = experiment(tmp_path)
    one, eight = (costs_of(given, Machine(processes=count))["auto-s3"] for count in (1, 8))
    assert one.memory == eight.memory and one.gpu_hours and eight.gpu_hours
    assert eight.tokens == 8 * one.tokens and eight.gpu_hours == pytest.approx(8 * one.gpu_hours)


def test_recomputation_costs_hours_and_saves_memory(tmp_path: Path) -> None:
    plain = costs_of(experiment(tmp_path))["auto-s3"]
    edit = ("dtype: bfloat16", "dtype: bfloat16\n      segment_gradient_checkpointing: true")
    again = costs_of(experiment(tmp_path, edit))["auto-s3"]
    assert plain.flops and again.flops and plain.memory and again.memory and plain.gpu_hours and again.gpu_hours
    assert plain.flops.model == again.flops.model and again.flops.recomputed > 0 == plain.flops.recomputed
    assert 1.2 < again.gpu_hours / plain.gpu_hours < 1.34
    assert again.memory.activations < plain.memory.activations


def test_longer_tables_of_positions_are_parameters(tmp_path: Path) -> None:
    costs = costs_of(experiment(tmp_path))
    assert costs["full-s3"].parameters == 1_315_758_080 + 2048 * 2048


def test_every_seed_and_every_pretraining_is_a_run(tmp_path: Path) -> None:
    given = load_experiment(write(tmp_path))
    costs = costs_of(given)
    assert list(costs) == [run for run in given.run_names if run != "opt"]
    base, rmt = costs["base"], costs["rmt-s0"]
    assert base.parameters and base.flops and base.tokens == 10 * 2 * 160
    assert rmt.tokens == 10 * 2 * 120 and rmt.trained == base.parameters + 4 * 32
    # The shortest rows of the generated language have their own lengths.
    assert costs["gist-1-s0"].tokens == 10 * 2 * (14 + 1 + 4)


def test_lengths_of_instruction_rows_stay_within_the_limits(tmp_path: Path) -> None:
    hub = ("hub: someone/stranger", "hub: google/flan-t5-base")
    rows = {}
    for limits in ("", ", max_length: 30, max_target_length: 20"):
        edit = ("{instructions: alpaca, steps: 10", "{instructions: alpaca, steps: 10" + limits)
        cost = costs_of(experiment(tmp_path, hub, edit))["gist-s3"]
        assert cost.flops and cost.memory
        rows[limits] = (cost.tokens / 80, cost.flops.model, cost.memory.activations)
    (long, much, high), (short_, less, low) = rows.values()
    assert (long, short_) == (81, 50) and less < 0.7 * much and low < high


# ------------------------------------------------------------------------------------------------------ size of models


def test_a_model_of_unknown_size_is_left_open(tmp_path: Path) -> None:
    cost = costs_of(experiment(tmp_path))["gist-s3"]
    assert cost.parameters is cost.flops is cost.memory is cost.gpu_hours is None
    assert cost.tokens == 10 * 8 * 81
    sums = totals([cost])
    assert (sums["unknown"], sums["gpu_hours"], sums["tokens"]) == (1, 0, cost.tokens)


@pytest.mark.parametrize("place", ["named", "named folder", "prepared", "path"])
def test_a_config_tells_the_size(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "results" / "big" / "models" / "stranger" if place == "prepared" else tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    edits = [("hub: someone/stranger", f"path: {folder}")] if place == "path" else []
    named = {"named": {"stranger": folder / "config.json"}, "named folder": {"stranger": folder}}.get(place)
    given = experiment(tmp_path, *edits)
    size = size_of(given, "stranger", named)
    assert size is not None and size.parameters == 6_738_415_616
    assert costs_of(given, configurations=named)["gist-s3"].trained == size.parameters + 4096


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "config.json: cannot be read: No such file"),
        ("{", "config.json: not valid JSON"),
        ("[]", "model_type is None, whose size cannot be estimated"),
        ('{"model_type": "mamba"}', "model_type is 'mamba'"),
        ('{"model_type": "llama", "hidden_size": 8}', "'num_attention_heads' is missing or wrong"),
        (json.dumps({**LLAMA, "num_attention_heads": 0}), "is missing or wrong"),
    ],
)
def test_a_config_that_tells_no_size(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        training_costs(experiment(tmp_path), Machine(), {"stranger": path})
    assert told in str(caught.value)


def test_a_gguf_file_is_known_by_its_name() -> None:
    root = Path(__file__).parents[2]
    size = size_of(load_experiment(root / "config" / "smollm2.yaml"), "smollm2")
    assert size is not None and size.parameters == 134_515_008


# ----------------------------------------------------------------------------------------------------------- DeepSpeed


@pytest.mark.parametrize("name", ["zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_deepspeed_files_that_ship(tmp_path: Path, name: str) -> None:
    path = Path(__file__).parents[2] / "config" / "deepspeed" / f"{name}.json"
    edit = ("dtype: bfloat16", f"dtype: bfloat16\n      deepspeed: {path}")
    given = experiment(tmp_path, edit)
    training = given.compressors["auto"].training
    stage, moved = zero_stage(training)
    assert stage == int(name[4])
    assert moved == {"zero2_offload": {"optimizer"}, "zero3_offload": {"optimizer", "weights"}}.get(name, set())
    cost = costs_of(given, Machine(processes=4))["auto-s3"]
    assert cost.memory and cost.parameters and cost.trained
    expected = 0 if "weights" in moved else 2 * cost.parameters // (4 if stage == 3 else 1)
    assert cost.memory.weights == expected
    assert cost.memory.optimizer == (0 if moved else 12 * cost.trained // 4)
    assert (cost.host_bytes > 12 * cost.trained // 4 - 1) == bool(moved)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "there is no file zero.json, "), ("{", "cannot be read"), ("[1]", "expected a JSON object")],
)
def test_a_deepspeed_file_that_cannot_be_read(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "zero.json").write_text(content)
    given = experiment(tmp_path, ("dtype: bfloat16", "dtype: bfloat16\n      deepspeed: zero.json"))
    with pytest.raises(InputError, match=told):
        training_costs(given, Machine(), beside=[tmp_path / "folder" / "e.yaml"])


def test_fsdp_shares_out_everything(tmp_path: Path) -> None:
    given = experiment(tmp_path, ("dtype: bfloat16", "dtype: bfloat16\n      fsdp: true"))
    cost = costs_of(given, Machine(processes=8))["auto-s3"]
    assert cost.memory and cost.parameters and cost.memory.weights == 6 * cost.parameters // 8


# -------------------------------------------------------------------------------------------------------- command line


def plan(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from synopsis.cli import main; main()", "plan", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "", "COLUMNS": "200"})


def test_the_tables(tmp_path: Path) -> None:
    path = write(tmp_path, TEXT)
    done = plan(path, "--processes", 4, "--set", "training_seeds=[7]")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "big"
    auto = next(line for line in lines if line.startswith("auto-s7"))
    assert auto.split()[1:6] == ["1.32B", "1.32B", "1000", "32", "197M"]
    assert next(line for line in lines if line.startswith("gist-s7")).split()[1:] == [
        *("?", "?", "10", "32", "25.9k", "?", "?")
    ]
    assert "The size of 'stranger' is not known: name its config.json with --size stranger=FILE" in done.stdout
    assert "On 4 x H100 at 35 % of the peak" in done.stdout and "Jobs after training: none." in done.stdout


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, spoilt(("facebook/opt-1.3b", "facebook/opt-2.7b"), text=TEXT))
    small, large = plan(path, "--device", "A100-SXM4-40GB"), plan(path, "--device", "H200")
    assert "(too much)" in small.stdout and "Too much for the device" in small.stdout
    assert "too much" not in large.stdout.lower()


def test_json(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    done = plan(write(tmp_path, TEXT), "--json", "--size", "stranger=llama.json")
    found = json.loads(done.stdout)
    assert (found["experiment"], found["device"], found["processes"], found["mfu"]) == ("big", "H100", 1, 0.35)
    runs = {run["run"]: run for run in found["runs"]}
    assert set(runs) == {"auto-s3", "full-s3", "gist-s3"} and runs["gist-s3"]["parameters"] == 6_738_415_616
    memory = runs["auto-s3"]["memory_bytes"]
    assert memory["total"] == sum(value for part, value in memory.items() if part != "total")
    totals_of = found["totals"]
    assert totals_of["gpu_hours"] == pytest.approx(sum(run["gpu_hours"] for run in runs.values()))
    assert (totals_of["runs"], totals_of["unknown"]) == (3, 0)
    assert found["jobs"] == {"perplexity": 0, "icl": 0, "needle": 0, "generate": 0, "judge": 0, "benchmark": 0}


def test_jobs_are_those_of_the_grid(tmp_path: Path) -> None:
    found = json.loads(plan(write(tmp_path), "--json").stdout)
    assert found["jobs"] == {"perplexity": 7, "icl": 5, "needle": 3, "generate": 8, "judge": 4, "benchmark": 4}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "abacus"], "--device abacus: expected one of H100"),
        (["--mfu", "0"], "--mfu 0: expected a share of the peak"),
        (["--mfu", "35"], "--mfu 35: expected a share of the peak"),
        (["--processes", "0"], "--processes"),
        (["--size", "opt"], "--size opt: expected MODEL=FILE"),
        (["--size", "optt=x"], "--size optt: the experiment has the models opt, stranger"),
        (["--size", "opt=none.json"], "none.json: cannot be read"),
        (["--set", "training_seeds=3"], "training_seeds"),
    ],
)
def test_what_is_wrong_ends_with_2(tmp_path: Path, words: list[str], told: str) -> None:
    done = plan(write(tmp_path, TEXT), *words)
    assert (done.returncode, done.stdout) == (2, "") and told in done.stderr and "Traceback" not in done.stderr


def test_a_bad_experiment_is_told_as_always(tmp_path: Path) -> None:
    path = write(tmp_path, spoilt(("method: autocompressor", "method: cat"), text=TEXT))
    done = plan(path)
    assert done.returncode == 2 and done.stderr.startswith("synopsis: the configuration has 1 fault:\n")


def test_a_peak_that_is_not_known_leaves_hours_open(tmp_path: Path) -> None:
    done = plan(write(tmp_path), "--device", "B200")  # float32, of which the data sheet of B200 says nothing
    assert done.returncode == 0 and "The peak of B200 in float32 is not known" in done.stdout


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['synopsis', 'plan', {str(write(tmp_path, TEXT))!r}]\n"
        "from synopsis.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'pandas', 'datasets'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "?"),
        (0, "0"),
        (512, "512"),
        (999.7, "1k"),
        (1000, "1k"),
        (999_600, "1M"),
        (2_651_596_800, "2.65B"),
        (15e12, "15T"),
    ],
)
def test_short_numbers(number: float | None, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(("count", "text"), [(None, "?"), (0, "0.0"), (40.26e9, "40.3"), (68.2e6, "0.068")])
def test_gigabytes(count: float | None, text: str) -> None:
    assert gigabytes(count) == text


@pytest.mark.parametrize(("value", "text"), [(None, "?"), (376.4, "376"), (1.25, "1.2"), (0.02, "under 0.1")])
def test_hours(value: float | None, text: str) -> None:
    assert hours(value) == text
