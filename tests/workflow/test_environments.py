"""Where jobs run besides this environment: conda, Apptainer, Kubernetes. None of them is at hand here."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from running import CONFIG, ROOT, Project, environment
from synopsis.errors import InputError
from synopsis.stages.workflow import on_one_volume

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RULES = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
PROFILES = sorted((ROOT / "workflow/profiles").glob("*/config.yaml"))
FAKE_CONDA = """#!/bin/sh
case "$1" in
  info) echo '{"conda_prefix": "FOLDER", "platform": "linux-64"}';;
  config) echo '{"get": {"channel_priority": "strict"}}';;
  --version) echo conda 99.0.0;;
  env) shift; echo "$@" > FOLDER/created.txt;;
esac
"""


def checked_install(words: list[str], folder: Path) -> list[str]:
    """The extras that a `pip install` names, all of whose files are there."""
    constraints, what = words[words.index("--constraint") + 1], words[-1].strip("'")
    assert words[:2] == ["pip", "install"] and (folder / constraints).samefile(ROOT / "envs/constraints.txt")
    path, _, extras = what.rstrip("]").partition("[")
    assert path == "." and (folder / "pyproject.toml").is_file()
    return [extra for extra in extras.split(",") if extra]


def test_conda_makes_an_environment_in_which_the_project_is_installed(tmp_path: Path) -> None:
    """With a conda that notes what it is asked for: the script beside the file runs where its paths exist."""
    pytest.importorskip("snakemake", reason="the package snakemake is not installed")
    (tmp_path / "project").mkdir()
    project = Project.new(tmp_path / "project")
    programs = tmp_path / "bin"
    programs.mkdir()
    pip = f'#!/bin/sh\n(pwd; for word in pip "$@"; do echo "$word"; done) > {tmp_path}/pip.txt\n'
    (programs / "activate").write_text(f"export PATH={programs}:$PATH")
    for name, text in {"conda": FAKE_CONDA.replace("FOLDER", str(tmp_path)), "pip": pip}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    words = ("--sdm", "conda", "--conda-create-envs-only", "--cores", "1", "--configfile", CONFIG)
    done = project.run("snakemake", *words, PATH=f"{programs}:{environment()['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = re.findall(r"--file ([^ ]+)", (tmp_path / "created.txt").read_text())
    content = yaml.safe_load((project.folder / file).read_text())
    assert content["channels"] == ["conda-forge", "nodefaults"] and content["dependencies"] == ["python=3.11", "pip"]
    folder, *asked = (tmp_path / "pip.txt").read_text().splitlines()
    assert Path(folder) == project.folder and checked_install(asked, ROOT) == []


def test_the_recipe_of_the_image_copies_what_it_installs() -> None:
    text = "\n".join(line for line in (ROOT / "envs/synopsis.def").read_text().splitlines() if line[:1] != "#")
    header, *parts = re.split(r"^%(\w+)\n", text, flags=re.M)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert header.split() == ["Bootstrap:", "docker", "From:", "python:3.11"]
    assert list(sections) == ["files", "post", "environment", "test", "runscript"]
    copied = dict(line.split() for line in sections["files"].strip().splitlines())
    for source, target in copied.items():
        assert (ROOT / source).exists() and target == f"/opt/synopsis/{source}"
    assert {PYPROJECT["readme"], *PYPROJECT["license-files"], "lib"} <= set(copied)
    folder, install = sections["post"].strip().splitlines()
    extras = checked_install(install.replace("--no-cache-dir ", "").split(), ROOT)
    assert folder.split() == ["cd", "/opt/synopsis"] and "envs/constraints.txt" in copied
    assert set(extras) <= set(PYPROJECT["optional-dependencies"]) and "workflow" in extras


def test_environments_have_the_python_that_the_project_asks_for_and_constraints_fit() -> None:
    assert PYPROJECT["requires-python"] == ">=3.11"
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line for line in (ROOT / "envs/constraints.txt").read_text().splitlines() if line[:1] != "#"]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for wanted in map(Requirement, sum(PYPROJECT["optional-dependencies"].values(), PYPROJECT["dependencies"])):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.parent.name)
def test_a_profile_names_rules_that_exist(profile: Path) -> None:
    content = yaml.safe_load(profile.read_text())
    named = {*content.get("set-threads", {}), *content.get("set-resources", {})}
    assert named <= set(re.findall(r"^rule (\w+):", RULES, re.M))
    on_gpus = set(re.findall(r"^rule (\w+):(?:\n(?:    .*)?)*?\n        gpu=1", RULES, re.M))
    assert len(on_gpus) == 7
    if content.get("executor", "local") != "local":
        assert on_gpus <= named, "cores or memory of a rule on a GPU are missing"


def test_a_volume_is_shared_and_a_storage_of_copies_is_refused() -> None:
    settings = pytest.importorskip("snakemake.settings.types").StorageSettings
    none = settings(shared_fs_usage=frozenset())
    assert on_one_volume(none) is none, "nothing is changed where no storage is asked for"
    volume = {"default_storage_provider": "fs", "default_storage_prefix": "volume", "shared_fs_usage": frozenset()}
    shared = on_one_volume(settings(**volume)).shared_fs_usage
    assert {usage.name for usage in settings().shared_fs_usage - shared} == {"SOURCE_CACHE"}
    assert on_one_volume(settings(**volume)) == settings(shared_fs_usage=shared)
    with pytest.raises(InputError, match="found s3, 's3://mine'; expected neither"):
        on_one_volume(settings(default_storage_provider="s3", default_storage_prefix="s3://mine"))


def test_kubernetes_plans_the_jobs_of_a_cluster(tmp_path: Path) -> None:
    for plugin in ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"):
        if not find_spec(plugin):
            pytest.skip(f"{plugin} is not installed (the extra `kubernetes`)")
    project = Project.new(tmp_path)
    done = project.run("snakemake", "-n", "--profile", "profiles/kubernetes", "--configfile", CONFIG)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = re.findall(r"^rule train:\n.*?resources: ([^\n]*)", done.stdout + done.stderr, re.M | re.S)
    assert len(jobs) == 3
    for asked in jobs:
        assert {"gpu=1", "mem_mb=64000", "gpu_manufacturer=nvidia", "scale=0"} <= set(asked.split(", "))
    assert "results/micro/models/autocompressor-s0" in done.stdout + done.stderr
    options = ("--default-storage-prefix", "copies", "--configfile", CONFIG)
    done = project.run("snakemake", "-n", "--profile", "profiles/kubernetes", *options)
    assert done.returncode == 2 and "expected neither: all jobs work on" in done.stderr
