"""The typed experiment: its grid, its schema, and every file that ships."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from experiment_text import TASK, TEXT, faults, spoilt, write
from synopsis.artifacts import Layout
from synopsis.config.experiment import json_schema, load_experiment
from synopsis.config.files import JudgeDefinition, Task
from synopsis.config.yaml_files import read_yaml
from synopsis.stages.icl.section import settings_of

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow" / "schemas" / "experiment.schema.json"
EXPERIMENTS = sorted([*(ROOT / "config").glob("*.yaml"), *(ROOT / "config" / "paper").glob("*.yaml")])
TASKS = sorted((ROOT / "config" / "tasks").glob("*.yaml"))
JUDGES = sorted((ROOT / "config" / "judges").glob("*.yaml"))


def content_of(path: Path) -> dict:
    document = read_yaml(path, faults := [])
    assert document is not None and faults == []
    return document


# ------------------------------------------------------------------------------------------------------ what ships


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_that_ship_are_sound(path, monkeypatch, tmp_path):
    jsonschema.Draft202012Validator(json_schema()).validate(content_of(path))
    monkeypatch.chdir(tmp_path)  # tasks and judges are found beside the file, wherever one stands
    experiment = load_experiment(path)
    assert experiment.run_names
    for stage in ("perplexity", "icl", "needle", "generate", "benchmark"):
        assert getattr(experiment, stage) is None or experiment.runs_of(stage)


def test_tasks_and_judges_that_ship_are_sound():
    assert {"demo", "smollm2"} <= {path.stem for path in EXPERIMENTS} and len(TASKS) >= 3 and len(JUDGES) >= 2
    for path in TASKS:
        Task.model_validate(content_of(path))
    for path in JUDGES:
        JudgeDefinition.model_validate(content_of(path))


# ------------------------------------------------------------------------------------------------------- the schema


def test_the_schema_that_ships_is_generated():
    made = json.dumps(json_schema(), indent=2) + "\n"
    assert SCHEMA.read_text() == made, "run: synopsis schema > workflow/schemas/experiment.schema.json"
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize(
    "edit",
    [
        ("scored_tokens: 30", "scored_tokens: 0"),
        ("max_length: 64", "max_lenght: 64"),
        ("method: rmt", "method: rtm"),
        ("training_seeds: [0, 1]", "training_seeds: [1, 1]"),
        ("name: small", "extra: 1\nname: small"),
        ("name: small\n", ""),
    ],
)
def test_the_schema_refuses_faults_of_form_too(tmp_path, edit):
    path = write(tmp_path, spoilt(edit))
    assert len(faults(path)) == 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(content_of(path))


def test_the_schema_leaves_room_for_anchors(tmp_path):
    path = write(tmp_path, "x-anchors: &a {steps: 3}\n" + TEXT)
    jsonschema.Draft202012Validator(json_schema()).validate(content_of(path))
    assert faults(path) == []


# ---------------------------------------------------------------------------------------- what stands elsewhere


@pytest.mark.parametrize("verb", ["eats", "visits", "wears"])
def test_the_verbs_of_tasks_are_those_of_the_generated_language(verb):
    from synopsis.data.world import ATTRIBUTES

    assert set(ATTRIBUTES) == {"eats", "visits", "wears"}
    rows = {path.stem: content_of(path) for path in TASKS}
    shipped = rows.get(f"world_{verb}")
    assert shipped is None or shipped["options"] == list(ATTRIBUTES[verb]), "options stand in label order"


# --------------------------------------------------------------------------------------------------------- the grid


@pytest.fixture
def experiment(tmp_path):
    return load_experiment(write(tmp_path, spoilt(("  pos-1:\n", "  pos-1:\n    training_seeds: [1, 2]\n"))))


def test_runs(experiment):
    assert experiment.run_names == [
        *("base", "opt", "auto-s0", "auto-s1", "rmt-s0", "rmt-s1", "full-s0", "full-s1"),
        *("gist-1-s0", "gist-1-s1", "pos-1-s1", "pos-1-s2"),
    ]
    assert experiment.trained_runs["pos-1-s2"] == ("pos-1", 2)
    assert experiment.base_of("rmt-s1") == "base" and experiment.base_of("opt") == "opt"
    assert experiment.subject("opt").method == "base" and experiment.subject("gist-1-s0").method == "gist"
    with pytest.raises(KeyError):
        experiment.subject("auto")


def test_runs_of_a_stage_are_those_that_it_can_measure(experiment):
    assert experiment.runs_of("perplexity") == ["base", "auto-s0", "auto-s1", "rmt-s0", "rmt-s1", "full-s0", "full-s1"]
    assert experiment.runs_of("generate") == ["gist-1-s0", "gist-1-s1", "pos-1-s1", "pos-1-s2"]
    assert len(experiment.generate.runs) == 2, "without names every run"
    assert all(experiment.can_measure("generate", name) for name in experiment.subjects)
    assert experiment.models["opt"].measured_on("generate", "t5"), "which has no next token of plain text"
    assert experiment.runs_of("benchmark") == ["auto-s0", "auto-s1", "gist-1-s0", "gist-1-s1"]


def test_a_run_without_summary_vectors_leaves_out_the_settings_that_need_them(experiment):
    assert list(settings_of(experiment, "base")) == ["zero_shot", "icl_90"]
    assert list(settings_of(experiment, "rmt-s0")) == ["zero_shot", "icl_90", "summary_12"]


def test_what_shows_no_demonstration_is_computed_with_the_first_seed_alone(experiment):
    """A budget that is smaller than the published length of a demonstration shows none."""
    (name,), first = experiment.icl.datasets, experiment.evaluation_seeds[0]
    every = ["zero_shot", "icl_90", "summary_12"]
    assert list(settings_of(experiment, "rmt-s0", name, first)) == every
    assert list(settings_of(experiment, "rmt-s0", name, first + 1)) == every[1:]
    counted = experiment.tasks[name].model_copy(update={"tokens_per_demonstration": 31})
    changed = experiment.model_copy(update={"tasks": {name: counted}})
    assert list(settings_of(changed, "rmt-s0", name, first + 1)) == ["icl_90"]
    fitting = experiment.icl.model_copy(update={"demonstrations": "fitting"})
    changed = changed.model_copy(update={"icl": fitting})
    assert list(settings_of(changed, "rmt-s0", name, first + 1)) == every[1:]


def test_a_copy_with_other_seeds_has_other_runs(experiment):
    assert "rmt-s7" not in experiment.trained_runs
    changed = experiment.compressors["rmt"].model_copy(update={"training_seeds": [7]})
    copied = experiment.model_copy(update={"compressors": {"rmt": changed}})
    assert list(copied.trained_runs) == ["rmt-s7"] and list(copied.subjects)[-1] == "rmt"


def test_pairs_are_judged_seed_by_seed(experiment):
    assert experiment.judged_pairs() == [("gist-1-s1", "pos-1-s1")]
    assert experiment.paired_runs("gist-1", "opt") == [("gist-1-s0", "opt"), ("gist-1-s1", "opt")]
    assert experiment.paired_runs("base", "opt") == [("base", "opt")]


def test_stages_that_are_not_configured_have_no_runs(tmp_path):
    experiment = load_experiment(write(tmp_path, "name: bare\nmodels: {a: {hub: x}}\n"))
    assert experiment.run_names == ["a"]
    assert experiment.runs_of("icl") == [] == experiment.judged_pairs()


@pytest.mark.parametrize(("method", "vectors"), [("autocompressor", 12), ("rmt", 4)])
def test_summary_vectors_that_training_shows(tmp_path, method, vectors):
    text = spoilt(("method: autocompressor", f"method: {method}"))
    assert load_experiment(write(tmp_path, text)).compressors["auto"].most_vectors() == vectors


def test_fingerprints_depend_on_values_and_not_on_how_they_are_written(tmp_path):
    one = load_experiment(write(tmp_path))
    other = load_experiment(write(tmp_path, spoilt(("learning_rate: 1e-3}", "learning_rate: 0.001}"))))
    assert one.fingerprint(one.models["base"], 1) == other.fingerprint(other.models["base"], 1)
    assert one.fingerprint(one.models["base"], 1) != one.fingerprint(one.models["base"], 2)


def test_an_experiment_is_not_changed_after_reading(experiment):
    with pytest.raises(ValueError, match="frozen"):
        experiment.name = "other"


# -------------------------------------------------------------------------------------------- several files, overrides


def test_later_files_win_key_by_key(tmp_path):
    first, second = write(tmp_path), tmp_path / "more.yaml"
    second.write_text(
        "x-y: 1\ntraining_seeds: [5]\ncompressors: {gist-1: {training: {steps: 7}}}\ngenerate: {splits: [seen]}\n"
    )
    experiment = load_experiment(first, second)
    assert experiment.training_seeds == [5] and experiment.generate.splits == ["seen"]
    assert experiment.compressors["gist-1"].training.steps == 7 and experiment.compressors["pos-1"].training.steps == 10


def test_a_fault_names_the_file_that_its_value_is_from(tmp_path):
    first, second = write(tmp_path, spoilt(("scored_tokens: 30", "scored_tokens: x"))), tmp_path / "more.yaml"
    second.write_text("icl:\n  max_examples: many\ngenerate: {max_new_tokens: x}\n")
    found = faults(first, second, benchmark__repeats=0)
    assert {tuple(fault.split(": ")[:2]) for fault in found} == {
        ("e.yaml:52", "perplexity.scored_tokens"),
        ("more.yaml:2", "icl.max_examples"),
        ("more.yaml:3", "generate.max_new_tokens"),
        ("--set", "benchmark.repeats"),
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "icl.max_exmples",
            5,
            "--set: icl.max_exmples: found an unknown key; expected one of datasets, settings",
        ),
        ("compressors.gist-1.training.stepz", 5, "did you mean 'steps'?"),
        ("icl.max_examples", "many", "--set: icl.max_examples: found 'many'; expected a valid integer"),
        ("no.such.key", 1, "--set: no: found an unknown key; expected one of name"),
        ("name.x", 1, "--set: name: found a section (x); expected a valid string"),
        ("training_seeds.1", -1, "--set: training_seeds.1: found -1; expected greater than or equal to 0"),
        ("training_seeds.7", 1, "--set: training_seeds: found a section (7); expected a valid list"),
        ("training_seeds.x", 1, "--set: training_seeds: found a section (x); expected a valid list"),
        ("judge.pairs.0.1", "auto", "--set: judge.pairs.0.1: found 'auto'; expected the name of a compressor whose"),
        (
            "icl.settings",
            {"a": {"plain_tokens": "x"}},
            "--set: icl.settings.a.plain_tokens: found 'x'; expected a valid",
        ),
        ("tasks.animals.balanced", True, "--set: tasks: found an unknown key; expected 'icl.datasets' instead"),
        ("icl..x", 1, "--set: icl.: found an unknown key"),
        ("generate", None, "judge: found judgements without outputs; expected a section 'generate'"),
        (
            "compressors.gist-1.training.max_length",
            300,
            "--set: compressors.gist-1.training.max_length: found 300 pos",
        ),
    ],
)
def test_faults_of_overrides(tmp_path, key, value, message):
    [fault] = faults(write(tmp_path), **{key: value})
    assert message in fault


def test_overrides_reach_into_lists_and_names_with_dots(tmp_path):
    text = TEXT.replace("gist-1", "gist-1.5")
    changes = {"compressors.gist-1.5.training.steps": 3, "training_seeds.1": 9, "icl.settings.new.plain_tokens": 8}
    experiment = load_experiment(write(tmp_path, text), overrides=changes)
    assert experiment.compressors["gist-1.5"].training.steps == 3
    assert experiment.training_seeds == [0, 9] and experiment.icl.settings["new"].plain_tokens == 8


def test_a_section_can_be_switched_off(tmp_path):
    experiment = load_experiment(write(tmp_path), overrides={"icl": None, "judge": None})
    assert experiment.icl is None and experiment.tasks == {} == experiment.judges


def test_tasks_are_found_beside_the_file_first_and_above_it_then(tmp_path):
    path = write(tmp_path)
    nested = tmp_path / "paper"
    nested.mkdir()
    (nested / "e.yaml").write_text(TEXT)
    assert load_experiment(nested / "e.yaml").tasks["animals"].options == ["plums", "seeds"]
    (nested / "tasks").mkdir()
    (nested / "tasks" / "animals.yaml").write_text(spoilt(("plums", "figs"), text=TASK))
    assert load_experiment(nested / "e.yaml").tasks["animals"].options == ["figs", "seeds"]
    assert load_experiment(path).tasks["animals"].options == ["plums", "seeds"]


def test_the_sequences_of_a_step_do_not_follow_from_the_processes():
    from synopsis.config.training import LanguageModelTraining
    from synopsis.errors import InputError

    shared = {"corpus": "stories", "sequence_length": 8, "steps": 1, "learning_rate": 0.1, "batch_size": 4}
    fixed = LanguageModelTraining(**shared, sequences_per_step=32)
    assert [fixed.accumulation(processes) for processes in (1, 2, 8)] == [8, 4, 1]
    assert {fixed.sequences(processes) for processes in (1, 2, 8)} == {32}
    growing = LanguageModelTraining(**shared, gradient_accumulation=2)
    assert (growing.accumulation(3), growing.sequences(3)) == (2, 24)
    for processes in (3, 16):
        with pytest.raises(InputError, match=f"sequences_per_step 32: found {processes} processes of batch_size 4"):
            fixed.accumulation(processes)


def test_the_home_folder_of_results_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment = load_experiment(write(tmp_path, spoilt(("name: small", "name: small\nresults: ~/my results"))))
    assert Layout(experiment).root == tmp_path / "my results" / "small"
