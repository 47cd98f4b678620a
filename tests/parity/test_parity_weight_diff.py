"""Weight diffs of the published code give the tuned weights back to the bit, and its checkpoints load as they are."""

from __future__ import annotations

import json
import re

import pytest
import torch
from published import Golden
from safetensors.torch import load_file
from synopsis import compressors
from synopsis.compressors.published.weight_diff import frequencies, make_diff, recover, weight_sum
from synopsis.compressors.published.weight_files import read_weights
from synopsis.errors import ArtifactError, InputError
from torch import Tensor
from transformers import AutoConfig

FREQUENCIES = "rotary_emb.inv_freq"


FOLDERS = "gist_weight_diff*"
MODELS = ("ac_opt*", "ac_llama*", "gist_llama*", "gist_t5*")


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.golden(FOLDERS)
def test_the_tuned_weights_are_recovered_to_the_bit(golden: Golden) -> None:
    for folder in golden.paths(FOLDERS):
        raw, diff = (read_weights(folder / name) for name in ("raw", "diff"))
        tuned = load_file(folder / "tuned.safetensors")
        equal(recover(raw, diff), tuned)
        equal(make_diff(raw, tuned), diff)
        without = {name: tensor for name, tensor in raw.items() if not name.endswith(FREQUENCIES)}
        equal(recover(without, diff), tuned)
        for name, tensor in tuned.items():
            if name.endswith(FREQUENCIES):
                assert torch.equal(frequencies(2 * len(tensor), 10000.0), tensor)


@pytest.mark.golden(FOLDERS)
def test_the_sums_are_those_that_the_published_code_found(golden: Golden) -> None:
    for folder in golden.paths(FOLDERS):
        record = json.loads((folder / "weight_diff.json").read_text())
        config = AutoConfig.from_pretrained(folder / "diff")
        tuned = load_file(folder / "tuned.safetensors")
        whole, without = record["sum_over_state_dict_incl_inv_freq"], record["sum_over_parameters_only"]
        for weights in (tuned, {name: t for name, t in tuned.items() if not name.endswith(FREQUENCIES)}):
            found = weight_sum(weights, config)
            assert found.with_frequencies == pytest.approx(whole, abs=1e-4)
            assert found.without_frequencies == pytest.approx(without, abs=1e-4)
        for case, outcome in record["recover"].items():
            off = re.fullmatch(r"check_sum_off_by_([\d.]+)", case)
            if off:
                assert found.agrees(whole + float(off[1])) == (outcome == "ok"), case


@pytest.mark.golden(FOLDERS)
def test_the_folders_of_the_published_code_load(golden: Golden) -> None:
    for folder in golden.paths(FOLDERS):
        record = json.loads((folder / "weight_diff.json").read_text())
        whole, without = record["sum_over_state_dict_incl_inv_freq"], record["sum_over_parameters_only"]
        tuned = load_file(folder / "tuned.safetensors")
        token = json.loads((folder / "diff" / "added_tokens.json").read_text())["<GIST>"]
        for checksum in (whole, without):
            model = compressors.load(folder / "diff", "cpu", base=folder / "raw", checksum=checksum)
            assert type(model).__name__ == "GistLlamaForCausalLM" and model.config.gist_token_id == token
            equal(model.state_dict(), {name: t for name, t in tuned.items() if not name.endswith(FREQUENCIES)})
        with pytest.raises(ArtifactError, match=f"expected {whole + 0.02:.4f}"):
            compressors.load(folder / "diff", "cpu", base=folder / "raw", checksum=whole + 0.02)
        with pytest.raises(InputError, match="a weight diff, not a model"):
            compressors.load(folder / "diff", "cpu")


@pytest.mark.golden(*(f"{name}/model.safetensors" for name in MODELS))
def test_models_of_the_published_code_load_as_they_are(golden: Golden) -> None:
    """Every model folder, by its configuration alone; gist models without a tokenizer need the token's id."""
    for folder in {path.parent for name in MODELS for path in golden.paths(f"{name}/model.safetensors")}:
        name = folder.name
        config, meta = golden.document(f"{name}/config.json"), golden.document(f"{name}/cases.json").get("meta", {})
        model = compressors.load(
            folder, "cpu", gist_token_id=meta.get("gist_token") if "summary_length" not in config else None
        )
        expected = "AutoCompressorModel" if "summary_length" in config else "Gist"
        assert expected in type(model).__name__, name
        state = model.state_dict()
        for key, tensor in read_weights(folder).items():
            assert key.endswith(FREQUENCIES) or torch.equal(state[key], tensor), (name, key)
