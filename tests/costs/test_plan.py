"""`synopsis plan`: what the runs of an experiment cost, by hand and by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiment_text import spoilt, write
from synopsis.cli import run_command
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.costs.model_size import known
from synopsis.costs.plan import Machine, RunCost, training_costs
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
LLAMA = {**(known("meta-llama/Llama-2-7b-hf") or {}), "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no results lie


def experiment(tmp_path: Path, *edits: tuple[str, str]) -> Experiment:
    return load_experiment(write(tmp_path, spoilt(*edits, text=TEXT)))


def costs_of(experiment: Experiment, machine: Machine | None = None, **options: Any) -> dict[str, RunCost]:
    return {cost.run: cost for cost in training_costs(experiment, machine or Machine(), **options)}


# --------------------------------------------------------------------------------------------------------------- costs


def test_a_run_is_added_up(tmp_path: Path) -> None:
    costs = costs_of(experiment(tmp_path), Machine("A100", processes=4, mfu=0.5))
    cost = costs["auto-s3"]
    assert cost.flops is not None and cost.memory_bytes is not None and cost.gpu_hours is not None
    assert (cost.steps, cost.sequences, cost.tokens) == (1000, 2 * 4 * 4, 1000 * 32 * 6144)
    assert cost.parameters == 1_315_758_080 and cost.trained == cost.parameters + 50 * 2048
    # Six for each weight and each token, more for attention and for the vectors between segments.
    assert 6 * cost.parameters * cost.tokens < cost.flops.model < 6 * cost.parameters * cost.tokens * 1.25
    assert cost.gpu_hours == pytest.approx(cost.flops.total / (0.5 * 312e12 * 3600))
    assert cost.memory_bytes["optimizer"] == 8 * cost.trained and cost.memory_bytes["weights"] == 6 * cost.parameters
    assert costs["full-s3"].parameters == cost.parameters + 2048 * 2048, "a longer table of positions"
    unknown = costs["gist-s3"]
    assert unknown.parameters is unknown.flops is unknown.memory_bytes is unknown.gpu_hours is None
    sharded = experiment(tmp_path, ("dtype: bfloat16", "dtype: bfloat16\n      fsdp: true"))
    memory = costs_of(sharded, Machine(processes=8))["auto-s3"].memory_bytes
    assert memory and memory["weights"] == 6 * cost.parameters // 8


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
    edit = ("{instructions: alpaca, ", "{instructions: alpaca, max_length: 30, max_target_length: 20, ")
    long, short = (costs_of(experiment(tmp_path, *edits))["gist-s3"] for edits in ([hub], [hub, edit]))
    assert (long.tokens / 80, short.tokens / 80) == (81, 50) and long.flops and short.flops
    assert short.flops.model < 0.7 * long.flops.model
    assert long.memory_bytes and short.memory_bytes
    assert short.memory_bytes["activations"] < long.memory_bytes["activations"]


# ------------------------------------------------------------------------------------------------------ size of models


@pytest.mark.parametrize("place", ["named", "named folder", "prepared", "path"])
def test_a_config_gives_the_size(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "results" / "big" / "models" / "stranger" if place == "prepared" else tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    edits = [("hub: someone/stranger", f"path: {folder}")] if place == "path" else []
    files = {"named": {"stranger": folder / "config.json"}, "named folder": {"stranger": folder}}.get(place)
    cost = costs_of(experiment(tmp_path, *edits), files=files)["gist-s3"]
    assert (cost.parameters, cost.trained) == (6_738_415_616, 6_738_415_616 + 4096)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: cannot be read: No such file"),
        ("{", "config.json: not valid JSON"),
        ('{"model_type": "mamba"}', "model_type is 'mamba', whose size cannot be estimated"),
        ("[]", "expected the config.json of a model"),
        (json.dumps({**LLAMA, "num_attention_heads": 0}), "expected the config.json of a model"),
        (json.dumps({**LLAMA, "hidden_size": "wide"}), "expected the config.json of a model"),
    ],
)
def test_a_config_that_gives_no_size(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        training_costs(experiment(tmp_path), Machine(), {"stranger": path})
    assert message in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- DeepSpeed


@pytest.mark.parametrize("name", ["zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_deepspeed_files_that_ship(tmp_path: Path, name: str) -> None:
    path = Path(__file__).parents[2] / "config" / "deepspeed" / f"{name}.json"
    given = experiment(tmp_path, ("dtype: bfloat16", f"dtype: bfloat16\n      deepspeed: {path}"))
    cost = costs_of(given, Machine(processes=4))["auto-s3"]
    assert cost.memory_bytes and cost.parameters and cost.trained
    weights = 2 * cost.parameters // (4 if name.startswith("zero3") else 1)
    moved = name.endswith("offload")
    assert cost.memory_bytes["weights"] == (0 if name == "zero3_offload" else weights)
    assert cost.memory_bytes["optimizer"] == (0 if moved else 12 * cost.trained // 4)
    assert (cost.host_bytes > 12 * cost.trained // 4 - 1) == moved


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file zero.json, "), ("{", "cannot be read"), ("[1]", "expected a JSON object")],
)
def test_a_deepspeed_file_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "zero.json").write_text(content)
    given = experiment(tmp_path, ("dtype: bfloat16", "dtype: bfloat16\n      deepspeed: zero.json"))
    with pytest.raises(InputError, match=message):
        training_costs(given, Machine(), beside=[tmp_path / "folder" / "e.yaml"])


# -------------------------------------------------------------------------------------------------------- command line


def plan(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `synopsis plan`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["synopsis", "plan", *map(str, words)])
        code = run_command()
    return code, *capsys.readouterr()


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, TEXT)
    code, out, err = plan(capsys, path, "--processes", 4, "--set", "training_seeds=[7]")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in reversed(out.splitlines()) if line}
    assert out.startswith("big\n") and lines["auto-s7"][:5] == ["1.32B", "1.32B", "1000", "32", "197M"]
    assert lines["gist-s7"] == ["?", "?", "10", "32", "25.9k", "?", "?"]
    assert "The size of 'stranger' is not known: name its config.json with --size stranger=FILE" in out
    assert "On 4 x H100 at 35 % of the peak" in out and "Jobs after training: none." in out
    assert "too much" not in out.lower()
    large = write(tmp_path, spoilt(("facebook/opt-1.3b", "facebook/opt-2.7b"), text=TEXT))
    _, out, _ = plan(capsys, large, "--device", "A100-SXM4-40GB")
    assert "(too much)" in out and "Too much for the device" in out
    _, out, _ = plan(capsys, write(tmp_path), "--device", "B200")  # its data sheet says nothing of float32
    assert "The peak of B200 in float32 is not known" in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    found = json.loads(plan(capsys, write(tmp_path, TEXT), "--json", "--size", "stranger=llama.json")[1])
    assert (found["experiment"], found["device"], found["processes"], found["mfu"]) == ("big", "H100", 1, 0.35)
    runs = {run["run"]: run for run in found["runs"]}
    assert set(runs) == {"auto-s3", "full-s3", "gist-s3"} and runs["gist-s3"]["parameters"] == 6_738_415_616
    memory = runs["auto-s3"]["memory_bytes"]
    assert memory["total"] == sum(value for part, value in memory.items() if part != "total")
    assert found["totals"]["gpu_hours"] == pytest.approx(sum(run["gpu_hours"] for run in runs.values()))
    assert (found["totals"]["runs"], found["totals"]["unknown"]) == (3, 0)
    counts = {"perplexity": 7, "icl": 5, "needle": 3, "generate": 8, "judge": 4, "benchmark": 4}
    assert found["jobs"] == dict.fromkeys(counts, 0)
    assert json.loads(plan(capsys, write(tmp_path), "--json")[1])["jobs"] == counts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "abacus"], "--device abacus: expected one of H100"),
        (["--mfu", "0"], "--mfu 0: expected a share of the peak"),
        (["--mfu", "35"], "--mfu 35: expected a share of the peak"),
        (["--processes", "0"], "--processes"),
        (["--size", "opt"], "--size opt: expected MODEL=FILE"),
        (["--size", "optt=x"], "--size optt: the experiment has the models opt, stranger"),
        (["--set", "training_seeds=3"], "training_seeds"),
    ],
)
def test_what_is_wrong_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    code, out, err = plan(capsys, write(tmp_path, TEXT), *words)
    assert (code, out) == (2, "") and message in err
