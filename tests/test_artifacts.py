"""Files appear whole or not at all, and what is wrong with one is said with its name."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from experiment_text import write
from hypothesis import example, given
from hypothesis import strategies as st
from synopsis import artifacts
from synopsis.artifacts import (
    PROVENANCE,
    TOKENIZER_FILES,
    Layout,
    Provenance,
    atomic_directory,
    atomic_file,
    check_outputs,
    file_hash,
    read_csv,
    read_json,
    write_csv,
    write_json,
    write_json_lines,
    write_text,
)
from synopsis.config.experiment import load_experiment
from synopsis.errors import ArtifactError, SynopsisError


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(os.listdir(folder))


# ---------------------------------------------------------------------------------------------------- whole or not


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "whole" and names(path.parent) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_former_one(tmp_path):
    for content in ("former", "new"):
        with atomic_directory(tmp_path / "model") as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / f"{content}.txt").write_text(content)
    assert names(tmp_path / "model" / "sub") == ["new.txt"] and names(tmp_path) == ["model"]


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt, OSError(errno.EIO, "broken")])
@pytest.mark.parametrize("kind", [atomic_file, atomic_directory])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, kind, failure):
    place = tmp_path / "a"
    for content in ("former", "half"):
        with suppress(type(failure) if isinstance(failure, OSError) else failure), kind(place) as temporary:
            (temporary if kind is atomic_file else temporary / "b").write_text(content)
            if content == "half":
                raise failure
    assert names(tmp_path) == ["a"] and (place if kind is atomic_file else place / "b").read_text() == "former"


def test_a_folder_that_cannot_be_moved_into_place_does_not_cost_the_former_one(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("former")
    moves = []

    def replace(source, target, original=os.replace):
        moves.append(target)
        if len(moves) == 2:
            raise OSError(errno.EIO, "broken disk")
        original(source, target)

    monkeypatch.setattr(artifacts.os, "replace", replace)
    with pytest.raises(OSError, match="broken disk"), atomic_directory(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "former" and names(tmp_path) == ["model"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_reported_and_the_former_file_kept(tmp_path, monkeypatch, number, step):
    path = tmp_path / "a.json"
    write_json(path, "x", {"value": 1}, {})

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifacts.os, step, full)
    with pytest.raises(SynopsisError, match=r"a\.json: the disk is full .* Free some space and start again"):
        write_json(path, "x", {"value": 2}, {})
    monkeypatch.undo()
    assert read_json(path, "x")["value"] == 1 and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("kind", [atomic_file, atomic_directory])
def test_a_disk_that_fills_up_within_the_block_is_reported(tmp_path, monkeypatch, kind):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(SynopsisError, match="model: the disk is full"), kind(tmp_path / "model"):
        raise full
    # torch and safetensors hide why they could not write.
    with pytest.raises(RuntimeError, match="unexpected pos"), kind(tmp_path / "model"):
        raise RuntimeError("unexpected pos 64 vs 0")

    def no_room(*_):
        raise full

    monkeypatch.setattr(artifacts.os, "fsync", no_room)
    with pytest.raises(SynopsisError, match="model: the disk is full"), kind(tmp_path / "model"):
        raise RuntimeError("unexpected pos 64 vs 0")
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "results").write_text("")
    with pytest.raises(SynopsisError, match=r"results/a\.txt: its folder cannot be made: .*results"):
        write_text(tmp_path / "results" / "a.txt", "x")
    monkeypatch.setattr(artifacts.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SynopsisError, match=r"a\.txt: cannot be written: .* allows no new files"):
        write_text(tmp_path / "a.txt", "x")


# ----------------------------------------------------------------------------------------------------- JSON and CSV


def test_a_result_comes_back_with_its_provenance(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "icl", {"value": "é", "path": Path("x")}, {"seed": 3})
    document = read_json(path, "icl")
    assert len(document["provenance"].pop("sha256")) == 64
    assert document == {"kind": "icl", "format": 1, "value": "é", "path": "x", "provenance": {"seed": 3}}
    content = path.read_text()
    for length in range(len(content) - 2):  # without its last line break it is whole, and another text
        path.write_text(content[:length])
        with pytest.raises(ArtifactError, match=r"a\.json: not valid JSON \(line \d+: .*truncated or damaged"):
            read_json(path, "icl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"kind": "perplexity", "format": 1}', "holds 'perplexity'; expected a result of kind 'icl'"),
        (b"{}", "holds None; expected a result of kind 'icl'"),
        (b"[1]", "holds 'list'; expected a result of kind 'icl'"),
        (b'{"kind": "icl", "format": 2}', "format 2; this version of Synopsis reads format 1. Delete it and run again"),
        (b'{"kind": "icl"}', "format None; this version"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_foreign_result_is_an_error(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read_json(tmp_path / "a.json", "icl")
    assert str(caught.value).startswith(f"{tmp_path}/a.json: ") and message in str(caught.value)


@pytest.mark.parametrize("read", [lambda path: read_json(path, "icl"), lambda path: read_csv(path, ["a"])])
def test_what_is_no_file_is_an_error(tmp_path, read):
    with pytest.raises(ArtifactError, match="no such file; the stage that writes it has not run"):
        read(tmp_path / "none")
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_json_lines_of_equal_rows_are_equal_bytes(tmp_path):
    rows = [{"a": 1, "b": "é\n"}, {"a": 2, "b": ""}]
    for name in ("x.jsonl", "x.jsonl.gz", "y.jsonl.gz"):
        write_json_lines(tmp_path / name, rows)
    packed = (tmp_path / "x.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "y.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "x.jsonl").read_bytes()
    assert [json.loads(line) for line in gzip.decompress(packed).splitlines()] == rows


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
@example([("a" * 500_000, "")])
def test_any_text_comes_back_from_a_table(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    table = [{"x": x, "y": y} for x, y in rows]
    write_csv(path, table, ["x", "y"])
    assert read_csv(path, ["x", "y"]) == table


def test_wherever_a_table_is_cut_it_is_an_error_or_whole_rows_are_left(tmp_path):
    path = tmp_path / "a.csv"
    rows = [{"id": str(n), "text": 'two\nlines, "quoted"', "value": str(1000 + n)} for n in range(3)]
    write_csv(path, rows, ["id", "text", "value"])
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            assert read_csv(path, ["id", "text", "value"]) == rows[: len(read_csv(path, ["id"]))]
            assert content[length - 1 : length] == b"\n"
        except ArtifactError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the column a, b is missing; found nothing"),
        ("a,c\r\n1,2\r\n", "the column b is missing; found a, c"),
        ("a,b\r\n1\r\n", "row 1 does not have 2 values; the file is truncated or damaged"),
        ("a,b\r\n1,2,3\r\n", "row 1 does not have 2 values"),
        ('a,b\r\n1,"2', "unexpected end of data; the file is truncated or damaged"),
        ("a,b\r\n1,2", "the last line has no end; the file is truncated"),
    ],
)
def test_a_table_that_is_not_whole_is_an_error(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content.encode())
    with pytest.raises(ArtifactError) as caught:
        read_csv(tmp_path / "a.csv", ["a", "b"])
    assert str(caught.value).startswith(f"{tmp_path}/a.csv: ") and message in str(caught.value)


# ------------------------------------------------------------------------------------------------------ provenance


def test_provenance_says_where_a_result_is_from(tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("x")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    record = Provenance("1a2b", inputs=[tmp_path / "in.txt", tmp_path / "none"], seed=5).record(judge_models=["m"])
    hashes = {str(tmp_path / "in.txt"): hashlib.sha256(b"x").hexdigest(), str(tmp_path / "none"): None}
    assert record["inputs"] == hashes and record["config"] == "1a2b" and record["seed"] == 5
    assert record["judge_models"] == ["m"] and record["wall_seconds"] >= 0
    assert {"commit", "dirty", "packages", "python", "platform", "device", "dtype", "finished"} <= set(record)
    assert record["slurm_job"] == "7" and "slurm_array" not in record
    assert "torch" in json.loads(json.dumps(record))["packages"]
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert artifacts.git_state.__wrapped__() == {"commit": None, "dirty": None}


def test_the_hash_of_a_folder_follows_names_and_contents(tmp_path):
    seen = set()
    for name, content in [("a", "1"), ("a", "2"), ("b", "2"), ("sub/b", "2")]:
        write_text(tmp_path / name, content)
        seen.add(file_hash(tmp_path))
    assert len(seen) == 4 and file_hash(tmp_path) in seen


# ---------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, place: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A model folder, a result with its records, a store of judgements, a log and a checkpoint."""
    root = tmp_path / "results" / "small"
    with atomic_directory(root / "model") as temporary:
        for name, content in {"config.json": "{}", "shards/a.bin": "weights", "tokenizer.json": "[]"}.items():
            write_text(temporary / name, content)
        write_json(temporary / PROVENANCE, "model", {}, {"seed": 0}, [temporary])
    write_json_lines(root / "icl" / "seed0.examples.jsonl.gz", [{"id": 0}])
    write_json(root / "icl" / "seed0.json", "icl", {"a": 0.5}, {}, [root / "icl" / "seed0.examples.jsonl.gz"])
    for name in ("judgements/seen.jsonl", "logs/icl.log", "checkpoints/base/step-1/weights.bin", ".base.x.partial/a"):
        write_text(root / name, "x")
    return root


def test_every_flipped_byte_of_a_result_is_an_error_or_harmless(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "icl", {"accuracy": 0.25, "text": 'a "quoted" é'}, {"seed": 3})
    content, document = path.read_bytes(), read_json(path, "icl")
    provenance = document.pop("provenance")
    passed = 0
    for place in range(len(content)):
        flip(path, place)
        try:
            found = read_json(path, "icl")
        except ArtifactError as error:
            assert str(error).startswith(f"{path}: ")
        else:  # what names the hash is damaged, and nothing else
            passed += 1
            assert {key: found[key] for key in document} == document
            assert found.get("provenance", {}).get("sha256") != provenance["sha256"]
        path.write_bytes(content)
    assert passed == len("provenance") + len("sha256")


@pytest.mark.parametrize("name", ["config.json", "shards/a.bin", "tokenizer.json"])
@pytest.mark.parametrize("damage", [flip, lambda path: write_text(path, ""), os.remove])
def test_a_file_that_has_changed_is_named(results, name, damage):
    folder = results / "model"
    record = read_json(folder / PROVENANCE, "model")["provenance"]
    assert record["outputs"]["shards/a.bin"] == {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    check_outputs(folder / PROVENANCE)
    damage(folder / name)
    with pytest.raises(ArtifactError) as caught:
        check_outputs(folder / PROVENANCE)
    fault = "has changed since it was written" if (folder / name).exists() else "is missing"
    advice = f"Restore it from a copy, or delete the folder {folder} and run again."
    assert str(caught.value) == f"{folder / name}: {fault}. {advice}"


def test_only_files_that_are_read_are_checked(results):
    folder = results / "model"
    flip(folder / "shards/a.bin")
    for patterns in (TOKENIZER_FILES, ["elsewhere/*"]):
        check_outputs(folder / PROVENANCE, patterns)
    with pytest.raises(ArtifactError, match=r"shards/a\.bin: has changed"):
        check_outputs(folder / PROVENANCE, ["shards/*"])
    flip(folder / "tokenizer.json")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: has changed"):
        check_outputs(folder / PROVENANCE, TOKENIZER_FILES)


def test_of_large_files_only_the_sizes_are_compared(results, monkeypatch):
    folder = results / "model"
    monkeypatch.setattr(artifacts, "CHECKED_BYTES", 10)  # the two small files have 4 bytes, the large one 7
    flip(folder / "shards/a.bin")
    check_outputs(folder / PROVENANCE)
    write_text(folder / "shards/a.bin", "weight")
    with pytest.raises(ArtifactError, match=r"a\.bin: has changed"):
        check_outputs(folder / PROVENANCE)


@pytest.mark.parametrize("record", [None, {"kind": "model", "format": 1, "provenance": {}}, {"source": "hub"}, []])
def test_a_folder_of_another_program_or_an_earlier_version_is_read(tmp_path, record):
    (tmp_path / "config.json").write_text("{}")
    if record is not None:
        (tmp_path / PROVENANCE).write_text(json.dumps(record))
    check_outputs(tmp_path / PROVENANCE)


def test_verify_whole_results(results, call):
    assert call("verify", results)[:2] == (0, f"{results}: 6 files are as they were written; 1 have no hash\n")
    code, out, err = call("verify", results / "none")
    assert (code, out) == (2, "") and "none: no such folder; expected one of results" in err


FOLDER_AND_RECORDS = ["icl/seed0.examples.jsonl.gz", "model/config.json", "model/shards/a.bin"]


@pytest.mark.parametrize(
    ("damaged", "damage"),
    [
        *((FOLDER_AND_RECORDS, damage) for damage in (flip, lambda path: flip(path, -2), os.remove)),
        (["icl/seed0.json"], flip),
        ([f"model/{PROVENANCE}"], lambda path: flip(path, -2)),
    ],
)
def test_verify_names_each_damaged_file_once(results, damaged, damage, call, monkeypatch):
    monkeypatch.setattr(artifacts, "CHECKED_BYTES", 0)  # files of any size are read
    for name in damaged:
        damage(results / name)
    code, out, err = call("verify", results)
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(results / name) for name in damaged]
    assert code == 2 and f"{results}: {len(damaged)} of " in err


# ---------------------------------------------------------------------------------------------------------- layout


def test_every_artifact_has_a_place_of_its_own(tmp_path):
    experiment = load_experiment(write(tmp_path))
    layout = Layout(experiment)
    paths = [layout.tokenizer("base"), layout.scores, layout.accuracy, layout.tables, layout.figures]
    paths += [layout.corpus(name, "base") for name in experiment.corpora]
    paths += [layout.instructions(name) for name in experiment.instructions]
    paths += [layout.task(name) for name in experiment.tasks]
    for run in experiment.run_names:
        paths += [layout.model(run), layout.checkpoints(run), layout.perplexity(run), layout.benchmark(run)]
        paths += [layout.icl(run, "animals", 0), layout.icl(run, "animals", 1)]
        paths += [layout.generations(run, split) for split in experiment.generate.splits]
    paths += [layout.judgements("rule", a, b, "seen") for a, b in experiment.judged_pairs()]
    assert len(paths) == len(set(paths))
    assert all(path.is_relative_to("results/small") for path in paths)
    assert layout.tokenizer("opt") == layout.model("opt")  # a loaded model has its tokenizer beside its weights
