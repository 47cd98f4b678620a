"""Pairwise judging without a network: the reference judge, the summary, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from synopsis.artifacts import Layout, read_json, write_csv, write_json
from synopsis.config.experiment import Experiment, load_experiment
from synopsis.config.files import JudgeDefinition
from synopsis.errors import ArtifactError, DataError, InputError
from synopsis.stages.judge.pairs import Pair, Question, read_pairs
from synopsis.stages.judge.records import Judgement, Reply
from synopsis.stages.judge.reference import ReferenceJudge
from synopsis.stages.judge.run import hash_of, judge

A, B, SPLIT = "gist-s0", "control-s0", "seen"
COLUMNS = ["id", "x", "y_pred", "y_true", "prompt_tokens", "new_tokens"]
SHIPPED = sorted((Path(__file__).parents[2] / "config" / "judges").glob("*.yaml"))


def make_experiment(folder: Path, **definition: object) -> Experiment:
    """An experiment with one judge `j`, whose results lie below `folder`."""
    training = {"instructions": "world", "steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    gist = {"method": "gist", "base": "base", "training": training}
    (folder / "judges").mkdir(exist_ok=True)
    (folder / "judges" / "j.yaml").write_text(yaml.safe_dump({"kind": "reference", **definition}))
    content = {
        "name": "test",
        "results": str(folder / "results"),
        "instructions": {"world": {"source": "world"}},
        "models": {"base": {"hub": "some/model", "type": "llama"}},
        "compressors": {"gist": {**gist, "condition": "gist"}, "control": {**gist, "condition": "pos_control"}},
        "generate": {"instructions": "world", "splits": [SPLIT], "max_new_tokens": 8},
        "judge": {"judges": ["j"], "pairs": [["gist", "control"]]},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content))
    return load_experiment(folder / "experiment.yaml")


def write_outputs(experiment: Experiment, run: str, outputs: list[tuple[str, str, str]]) -> Path:
    """Generations of (id, prediction, true output)."""
    path = Layout(experiment).generations(run, SPLIT)
    rows = [dict(zip(COLUMNS, (id, "x", pred, true, 1, 1), strict=True)) for id, pred, true in outputs]
    write_csv(path, rows, COLUMNS)
    return path


def question(first: str, second: str, reference: str) -> Question:
    return Question(Pair("1", "", "", first, second, reference), "ab")


# ------------------------------------------------------------------------------------------------ the reference judge


def test_reference_judge_prefers_the_nearer_answer():
    judge = ReferenceJudge(tie_margin=0.0)
    assert judge.reply(question("the red house", "a blue boat", "the red house")).choice == 0
    assert judge.reply(question("a blue boat", "the red house", "the red house")).choice == 1
    assert judge.reply(question("houses", "house", "house")).choice == 2, "the stemmer makes both equal"


def test_reference_judge_calls_differences_up_to_the_margin_ties():
    # ROUGE-L F against "a b c d": "a b c d" 1, "a b c" 2 * 1 * 0.75 / 1.75 = 0.857; the difference is 1/7.
    pair = question("w1 w2 w3 w4", "w1 w2 w3", "w1 w2 w3 w4")
    assert ReferenceJudge(tie_margin=1 / 7).reply(pair).choice == 2
    assert ReferenceJudge(tie_margin=0.14).reply(pair).choice == 0


def test_both_orders_are_judged_and_the_order_is_undone(tmp_path):
    experiment = make_experiment(tmp_path)
    # e1: a is right, e2: b is right, e3: both write the same, e4: both are equally far (and differ).
    write_outputs(
        experiment, A, [("e1", "red", "red"), ("e2", "no", "blue"), ("e3", "ok", "ok"), ("e4", "left", "none")]
    )
    write_outputs(
        experiment, B, [("e4", "right", "none"), ("e3", "ok", "ok"), ("e2", "blue", "blue"), ("e1", "no", "red")]
    )
    summary = judge(experiment, "j", A, B, SPLIT)
    path = Layout(experiment).judgements("j", A, B, SPLIT)
    states = {(r["id"], r["order"]): r["state"] for r in map(json.loads, path.read_text().splitlines())}
    expected = {"e1": "A", "e2": "B", "e3": "tie", "e4": "tie"}
    assert states == {(id, order): state for id, state in expected.items() for order in ("ab", "ba")}
    counts = {key: summary[key] for key in ("n", "judgements", "win", "lose", "tie", "parse_error", "api_error")}
    assert counts == {"n": 4, "judgements": 8, "win": 2, "lose": 2, "tie": 4, "parse_error": 0, "api_error": 0}
    assert (summary["win_rate"], summary["consistent"], summary["first_position_wins"]) == (0.5, 4, 2)
    assert (summary["identical"], summary["unmatched"]) == (1, 0)
    stored = read_json(path.with_suffix(".json"), "judgement_summary")
    assert {key: stored[key] for key in summary} == json.loads(json.dumps(summary))
    assert all(stored["provenance"]["inputs"].values()), "hashes of the outputs and of the store"


@pytest.mark.parametrize("reply", [Reply(choice=None, text="?"), Reply(error="503"), Reply(choice=2, error="503")])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_an_error_is_never_a_tie(reply, order):
    made = Judgement.of(Question(Pair("1", "", "", "x", "x", ""), order), reply, "p", "j")
    assert made.state == ("api_error" if reply.error else "parse_error")


# ------------------------------------------------------------------------------------------------------ what is refused


def test_only_examples_of_both_runs_are_compared_and_the_others_are_counted(tmp_path):
    experiment = make_experiment(tmp_path)
    write_outputs(experiment, A, [("e1", "x", "y"), ("e2", "x", "y"), ("e3", "y", "y")])
    write_outputs(experiment, B, [("e3", "x", "y"), ("e4", "x", "y")])
    summary = judge(experiment, "j", A, B, SPLIT)
    assert (summary["n"], summary["unmatched"], summary["scores"]) == (1, 3, {"e3": 1.0})


def test_runs_without_a_common_example_are_refused(tmp_path):
    experiment = make_experiment(tmp_path)
    write_outputs(experiment, A, [("e1", "x", "y")])
    write_outputs(experiment, B, [("e2", "x", "y")])
    with pytest.raises(DataError, match=r"control-s0.seen\.csv: no example is in both"):
        judge(experiment, "j", A, B, SPLIT)
    assert not Layout(experiment).judgements("j", A, B, SPLIT).exists()


def test_other_true_outputs_under_the_same_id_are_refused(tmp_path):
    experiment = make_experiment(tmp_path)
    write_outputs(experiment, A, [("e1", "x", "y")])
    write_outputs(experiment, B, [("e1", "x", "z")])
    with pytest.raises(DataError, match=r"'e1': y_true differs \('y' and 'z'\)"):
        judge(experiment, "j", A, B, SPLIT)


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    experiment = make_experiment(tmp_path)
    write_outputs(experiment, A, [("e1", "x", "y"), ("e1", "x", "y")])
    write_outputs(experiment, B, [("e1", "x", "y")])
    with pytest.raises(DataError, match="'e1' occurs a second time"):
        judge(experiment, "j", A, B, SPLIT)


def test_no_outputs_are_a_data_error_that_names_the_file(tmp_path):
    experiment = make_experiment(tmp_path)
    path = write_outputs(experiment, A, [])
    write_outputs(experiment, B, [])
    with pytest.raises(DataError, match="holds no rows") as caught:
        judge(experiment, "j", A, B, SPLIT)
    assert str(path) in str(caught.value)


def test_missing_outputs_are_named(tmp_path):
    experiment = make_experiment(tmp_path)
    with pytest.raises(ArtifactError, match=r"gist-s0.seen\.csv: no such file"):
        judge(experiment, "j", A, B, SPLIT)


def test_a_chat_judge_without_a_key_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_JUDGE_KEY", raising=False)
    experiment = make_experiment(
        tmp_path, kind="openai", model="m", prompt="{instruction} {answer_a} {answer_b}", api_key_env="SOME_JUDGE_KEY"
    )
    for run in (A, B):
        write_outputs(experiment, run, [("e1", run, "y")])
    rows = [{"id": "e1", "instruction": "do", "input": "", "output": "y"}]
    write_json(Layout(experiment).instructions("world"), "instructions", {"splits": {SPLIT: rows}}, {})
    with pytest.raises(InputError, match="SOME_JUDGE_KEY is not set"):
        judge(experiment, "j", A, B, SPLIT)
    monkeypatch.setenv("SOME_JUDGE_KEY", "secret\nsecret")
    with pytest.raises(InputError, match="SOME_JUDGE_KEY holds characters") as caught:
        judge(experiment, "j", A, B, SPLIT)
    assert "secret" not in str(caught.value)


def test_a_prompt_that_shows_one_answer_only_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"j.yaml:3: prompt: found a text without \{answer_b\};"):
        make_experiment(tmp_path, kind="openai", model="m", prompt="{instruction} {answer_a}")


def test_a_limit_of_the_cost_needs_a_price(tmp_path):
    judge_file = {"kind": "openai", "model": "m", "prompt": "{instruction} {answer_a} {answer_b}", "max_cost": 1.0}
    with pytest.raises(InputError, match=r"j\.yaml:\d: max_cost: found a limit without a price; expected `price:"):
        make_experiment(tmp_path, **judge_file)
    with pytest.raises(InputError, match=r"price\.prompt: found -1"):
        make_experiment(tmp_path, **judge_file, price={"prompt": -1, "completion": 1})


def test_instruction_text_comes_from_the_artifact_and_must_be_there(tmp_path):
    experiment = make_experiment(tmp_path)
    for run in (A, B):
        write_outputs(experiment, run, [("7", "x", "y")])
    path = Layout(experiment).instructions("world")
    row = {"id": 7, "instruction": "Name it.", "input": "a thing", "output": "y"}
    write_json(path, "instructions", {"splits": {SPLIT: [row]}}, {})
    pairs, paths, alone = read_pairs(experiment, A, B, SPLIT, with_instructions=True)
    assert (pairs[0].instruction, pairs[0].input, paths[-1], alone) == ("Name it.", "a thing", path, 0)
    write_json(path, "instructions", {"splits": {SPLIT: [{**row, "id": 8}]}}, {})
    with pytest.raises(ArtifactError, match="id '7' is not in"):
        read_pairs(experiment, A, B, SPLIT, with_instructions=True)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_judges_are_valid(path):
    assert JudgeDefinition.model_validate(yaml.safe_load(path.read_text()))


def test_there_are_shipped_judges_of_every_kind():
    assert {yaml.safe_load(path.read_text())["kind"] for path in SHIPPED} == {"reference", "openai", "replay"}


def test_a_judge_keeps_its_hash_when_judges_get_new_fields():
    """Else judgements that were paid for would be asked again by the next version."""
    definition = JudgeDefinition(kind="openai", model="m", prompt="{instruction}{answer_a}{answer_b}")
    assert hash_of(definition) == "13c3155765b6fb29"
    assert hash_of(definition.model_copy(update={"max_cost": 1.0, "parser": "choice_ab"})) == hash_of(definition)
    assert hash_of(definition.model_copy(update={"structured": True})) != hash_of(definition)


def test_a_dry_run_counts_what_would_be_asked(tmp_path, call, monkeypatch):
    """Without a key, and without a trace."""
    monkeypatch.delenv("SOME_JUDGE_KEY", raising=False)
    price = {"prompt": 0.15, "completion": 0.6}
    judge_file = {"kind": "openai", "model": "m", "prompt": "{instruction} {answer_a} {answer_b}", "price": price}
    experiment = make_experiment(tmp_path, **judge_file, max_tokens=100, api_key_env="SOME_JUDGE_KEY")
    for run in (A, B):
        write_outputs(experiment, run, [("e1", run, "y"), ("e2", "same", "y")])
    rows = [{"id": id, "instruction": "do it", "input": "", "output": "y"} for id in ("e1", "e2")]
    write_json(Layout(experiment).instructions("world"), "instructions", {"splits": {SPLIT: rows}}, {})
    expected = {"calls": 2, "stored": 0, "identical": 2, "prompt_tokens_about": 12, "completion_tokens_at_most": 200}
    code, out, _ = call("judge", "-c", tmp_path / "experiment.yaml", "j", A, B, SPLIT, "--dry-run", "--json")
    found = json.loads(out)
    assert code == 0 and found.pop("price_at_most") == pytest.approx((12 * 0.15 + 200 * 0.6) / 1e6)
    assert found == expected
    assert not Layout(experiment).judgements("j", A, B, SPLIT).parent.exists()
    a, b = (Layout(experiment).generations(run, SPLIT) for run in (A, B))
    files = ("--a", a, "--b", b, "--judge", tmp_path / "judges" / "j.yaml", "--out", tmp_path / "out")
    code, out, _ = call("judge", *files, "--dry-run")
    assert code == 0 and "calls: 2\n" in out and not (tmp_path / "out").exists()
