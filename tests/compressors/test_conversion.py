"""Published checkpoints become ours and ours published, there and back to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressor_models import architecture_model
from published_checkpoints import CHECKPOINTS, FREQUENCIES, WORDS
from safetensors.torch import load_file, save_file
from synopsis.artifacts import read_json
from synopsis.compressors import load
from synopsis.compressors.published import conversion
from synopsis.compressors.published.conversion import Converted, convert
from synopsis.compressors.published.weight_diff import RECORD
from synopsis.compressors.published.weight_files import read_weights
from synopsis.errors import ArtifactError, InputError
from torch import Tensor

TIED = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, values to the bit (also that of zero), and precisions."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("form", ["bin", "safetensors-shards"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_there_and_back(name: str, form: str, tmp_path: Path) -> None:
    published = CHECKPOINTS[name]
    weights = published.write(tmp_path / "source", form)
    done = convert(tmp_path / "source", tmp_path / "ours")
    assert done.form == "synopsis" and done.dtype == "float32"
    ours = load(tmp_path / "ours", "cpu")
    assert type(ours).__name__ == published.cls
    assert {key: getattr(ours.config, key) for key in published.fields} == published.fields
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, weights[key]) if key in weights else key in TIED
    assert sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors")) == ["model.safetensors"]

    convert(tmp_path / "ours", tmp_path / "published", to="published", file_format=form.split("-")[0])
    back = read_weights(tmp_path / "published")
    # OPT's head is the table of words, and 4.34 writes it once or twice; frequencies belong to gist models alone.
    left_out = {"lm_head.weight"} if name.endswith("OPT-unsaid") else set()
    left_out |= set(FREQUENCIES) if name == "FullAttention-Llama" else set()
    equal(back, {key: tensor for key, tensor in weights.items() if key not in left_out})
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    said = {key: value for key, value in published.config.items() if key != "architectures" and value is not None}
    said["transformers_version"] = "4.28.1" if "gist" in name else "4.34.0"
    assert {key: config[key] for key in said} == said
    assert "dtype" not in config and "rope_parameters" not in config

    convert(tmp_path / "published", tmp_path / "again")
    equal(read_weights(tmp_path / "again"), read_weights(tmp_path / "ours"))
    for file, document in published.files.items():
        assert json.loads((tmp_path / "again" / file).read_text()) == document


def test_precision_is_kept(tmp_path: Path) -> None:
    weights = CHECKPOINTS["AutoCompressor-Llama"].write(tmp_path / "source", torch_dtype="bfloat16")
    halves = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(halves, tmp_path / "source" / "model.safetensors")
    assert convert(tmp_path / "source", tmp_path / "ours").dtype == "bfloat16"
    equal(read_weights(tmp_path / "ours"), halves)
    halves["embed_summary.weight"] = weights["embed_summary.weight"]  # trained in float32 beside a base in bfloat16
    save_file(halves, tmp_path / "source" / "model.safetensors")
    assert convert(tmp_path / "source", tmp_path / "mixed").dtype == "float32"
    equal(read_weights(tmp_path / "mixed"), {name: tensor.float() for name, tensor in halves.items()})


# ----------------------------------------------------------------------------------------------------- weight diffs


def gist_and_base(tmp_path: Path, precision: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A gist model of ours and a base that it is not near to, so that many float32 differences are not exact."""
    base = CHECKPOINTS["gist-Llama"].write(tmp_path / "base", "bin", seed=1, vocab_size=WORDS - 1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        base[name] = base[name][:-1]
    torch.save(base, tmp_path / "base" / "pytorch_model.bin")
    CHECKPOINTS["gist-Llama"].write(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "whole", gist_condition="neg_control", gist_tokens=3)
    tuned = {name: tensor.to(precision) for name, tensor in load_file(tmp_path / "whole" / "model.safetensors").items()}
    tuned["lm_head.weight"][3, :4] = torch.tensor([-0.0, 0.0, 1e-12, -1e-30])
    save_file(tuned, tmp_path / "whole" / "model.safetensors")
    (tmp_path / "whole" / "provenance.json").unlink()  # it has the hash of other weights
    return tuned


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_gist_model_becomes_a_weight_diff_and_comes_back(precision: torch.dtype, tmp_path: Path) -> None:
    tuned = gist_and_base(tmp_path, precision)
    done = convert(tmp_path / "whole", tmp_path / "diff", to="published", base=tmp_path / "base")
    assert done.form == "weight diff"
    inputs = read_json(tmp_path / "diff" / "provenance.json", "model")["provenance"]["inputs"]
    assert list(inputs) == [str(tmp_path / "whole"), str(tmp_path / "base")]
    # What the published code makes of it: base + diff, with a zero row for the gist token.
    base, diff = (torch.load(tmp_path / name / "pytorch_model.bin") for name in ("base", "diff"))
    assert all(diff[name].dtype == torch.float32 and not diff[name].any() for name in FREQUENCIES)
    for name, tensor in tuned.items():
        start = torch.cat([base[name], torch.zeros(len(tensor) - len(base[name]), *tensor.shape[1:])])
        torch.testing.assert_close(start + diff[name], tensor.float(), atol=1e-6, rtol=0)
    done = convert(tmp_path / "diff", tmp_path / "back", base=tmp_path / "base")
    assert done.verified == RECORD and done.dtype == str(precision).removeprefix("torch.")
    equal(load_file(tmp_path / "back" / "model.safetensors"), tuned)
    config = load(tmp_path / "back", "cpu").config
    assert (config.gist_condition, config.gist_tokens, config.gist_token_id) == ("neg_control", 3, WORDS - 1)
    convert(tmp_path / "diff", tmp_path / "published", to="published", base=tmp_path / "base")  # whole, not a diff
    assert torch.load(tmp_path / "published" / "pytorch_model.bin")["model.norm.weight"].mean() > 0.5


def test_a_diff_of_ours_is_verified(tmp_path: Path) -> None:
    gist_and_base(tmp_path)
    convert(tmp_path / "whole", tmp_path / "diff", to="published", base=tmp_path / "base")
    weights = torch.load(tmp_path / "base" / "pytorch_model.bin")
    weights["model.norm.weight"][0] += 0.05
    torch.save(weights, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"their sum is .*; expected .* \(weight_diff\.json\)"):
        convert(tmp_path / "diff", tmp_path / "back", base=tmp_path / "base")
    assert not (tmp_path / "back").exists()
    (tmp_path / "diff" / RECORD).write_text("{}")
    with pytest.raises(ArtifactError, match=r"diff/weight_diff\.json: has changed since it was written"):
        load(tmp_path / "diff", "cpu", base=tmp_path / "base")
    (tmp_path / "diff" / "provenance.json").unlink()
    with pytest.raises(ArtifactError, match=r"weight_diff\.json is damaged"):
        load(tmp_path / "diff", "cpu", base=tmp_path / "base")


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "gguf"}, "no such form; expected synopsis or published"),
        ({"to": "published", "file_format": "h5"}, "expected safetensors or bin"),
        ({"condition": "gist"}, "no setting condition; expected accumulate_summary"),
        ({"base": "base"}, "neither a weight diff nor an adapter"),
        ({"to": "published", "base": "base"}, "only gist models on Llama are published as weight diffs"),
    ],
)
def test_requests_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    for name in ("source", "base"):
        CHECKPOINTS["RMT-OPT"].write(tmp_path / name)
    changes = {key: tmp_path / value if key == "base" else value for key, value in changes.items()}
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "source", tmp_path / "ours", **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "source"]


def test_architectures_that_were_not_published(tmp_path: Path) -> None:
    architecture_model("summary", "mistral", summary_length=3).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match="the published code has no summary model on mistral, only summary on opt, "):
        convert(tmp_path / "source", tmp_path / "published", to="published")


def test_the_destination_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKPOINTS["RMT-OPT"].write(tmp_path / "source")
    with monkeypatch.context() as patched:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(conversion, "_write_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "source", tmp_path / "published", to="published")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = convert(tmp_path / "source", tmp_path / "ours")
    with pytest.raises(InputError, match="is there already; remove it"):
        convert(tmp_path / "source", tmp_path / "ours")
    record = read_json(tmp_path / "ours" / "provenance.json", "model")
    assert Converted(**{key: record[key] for key in Converted.__dataclass_fields__}) == done
    assert list(record["provenance"]["inputs"]) == [str(tmp_path / "source")]
    assert record["provenance"]["dtype"] == "float32" and len(record["provenance"]["config"]) == 64


def test_long_weights_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SHARD_SIZE", "30KB")
    weights = CHECKPOINTS["RMT-OPT"].write(tmp_path / "source")
    for to, pattern in (("synopsis", "model-*.safetensors"), ("published", "pytorch_model-*.bin")):
        convert(tmp_path / "source", tmp_path / to, to=to)
        assert len(list((tmp_path / to).glob(pattern))) > 1
        equal(read_weights(tmp_path / to), weights)
        assert type(load(tmp_path / to, "cpu")).__name__ == "OPTAutoCompressorModel"
