"""The size of a model from its configuration alone: what parameters, FLOPs and memory follow from.

Neither weights nor torch nor a network are needed:

    Dimensions.of(model.config)                           # of a transformers configuration
    Dimensions.of(json.loads(Path("config.json").read_text()))
    known("meta-llama/Llama-2-7b-hf").parameters          # 6738415616
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIED = {"opt": True, "t5": True, "gemma2": True, "gemma3_text": True, "smollm3": True}
"""Architectures whose input and output embeddings are one matrix unless the configuration says otherwise."""

NORMS = {"gemma2": 4, "gemma3_text": 4}
"""Normalisations in a layer, where there are not two."""

OPT_OFFSET = 2
"""Rows of OPT's position table that no position uses."""


@dataclass(frozen=True)
class Dimensions:
    """Widths and counts of a transformer; T5 has encoder layers beside the decoder's `layers`."""

    model_type: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    gated: bool = True
    """Three matrices in a feed-forward block, one of which opens and closes the others; else two."""
    tied: bool = False
    encoder_layers: int = 0
    embedding: int = 0
    """Width of the embeddings where it is not `hidden` (OPT-350m); 0: the same."""
    positions: int = 0
    """Positions of a learned table (OPT); 0: positions are rotary or relative."""
    extra: int = 0
    """Biases, normalisations, position tables: what no matrix product reads."""

    @classmethod
    def of(cls, config: Any) -> Dimensions | None:
        """Of a transformers configuration, or of the values of its config.json; None for another architecture.

        KeyError when a number is missing.
        """
        values = config if isinstance(config, Mapping) else config.to_dict()
        kind = str(values.get("base_model_type", values.get("model_type", "")))
        if kind == "t5":
            return _t5(values)
        if kind == "opt":
            return _opt(values)
        return _rotary(kind, values) if kind in ROTARY else None

    # ------------------------------------------------------------------------------------------------------- widths

    @property
    def attention(self) -> int:
        """Numbers in the queries of a position, over all heads."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Numbers in the keys of a position, over all heads; the values have as many."""
        return self.kv_heads * self.head_width

    @property
    def feed_forward(self) -> int:
        """Weights of the matrices of a feed-forward block."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Weights of the matrices of a decoder layer without cross-attention, or of an encoder layer."""
        return 2 * self.hidden * (self.attention + self.keys) + self.feed_forward

    @property
    def cross_attention(self) -> int:
        """Weights of the matrices of the cross-attention of a decoder layer."""
        return 2 * self.hidden * (self.attention + self.keys) if self.encoder_layers else 0

    # --------------------------------------------------------------------------------------------------- parameters

    @property
    def embeddings(self) -> int:
        """Weights of the input embeddings, and of the output layer where it has its own."""
        return self.vocabulary * (self.embedding or self.hidden) * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Every weight, tied ones once."""
        layers = (self.layers + self.encoder_layers) * self.layer + self.layers * self.cross_attention
        projections = 2 * self.embedding * self.hidden
        return layers + self.embeddings + projections + self.extra

    def matrix(self, name: str) -> tuple[int, int, int]:
        """(inputs, outputs, how many of them a model has) of a linear layer by its last name; count 0: it has none."""
        wide, narrow = (self.hidden, self.attention), (self.hidden, self.keys)
        up, down = (self.hidden, self.intermediate), (self.intermediate, self.hidden)
        shapes = (
            {"q": wide, "k": narrow, "v": narrow, "o": wide[::-1], "wi": up, "wi_0": up, "wi_1": up, "wo": down}
            if self.model_type == "t5"
            else {"q_proj": wide, "k_proj": narrow, "v_proj": narrow, "fc1": up, "fc2": down}
            | {"out_proj" if self.model_type == "opt" else "o_proj": wide[::-1]}
            | {"gate_proj": up, "up_proj": up, "down_proj": down}
            | {"qkv_proj": (self.hidden, self.attention + 2 * self.keys), "gate_up_proj": (up[0], 2 * up[1])}
        )
        if name not in shapes:
            return 0, 0, 0
        twice = self.layers if self.encoder_layers and name in "qkvo" else 0  # attention to the encoder
        return *shapes[name], self.layers + self.encoder_layers + twice

    def cache_bytes(self, element: int = 2) -> int:
        """Bytes of the keys and values of one position in all layers."""
        return 2 * self.layers * self.keys * element


# ------------------------------------------------------------------------------------------------------ configurations

ROTARY = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "phi3"})
"""Decoders with rotary positions and gated feed-forward blocks, which differ in biases and normalisations."""


def _rotary(kind: str, values: Mapping[str, Any]) -> Dimensions:
    hidden, heads, layers = values["hidden_size"], values["num_attention_heads"], values["num_hidden_layers"]
    width = values.get("head_dim") or hidden // heads
    groups = values.get("num_key_value_heads") or heads
    intermediate, queries, keys = values["intermediate_size"], heads * width, groups * width
    of_layer = NORMS.get(kind, 2) * hidden
    if kind in {"qwen3", "gemma3_text"}:
        of_layer += 2 * width  # queries and keys are normalised
    if kind == "qwen2" or values.get("attention_bias"):
        of_layer += queries + 2 * keys
    if values.get("attention_bias"):
        of_layer += hidden
    if values.get("mlp_bias"):
        of_layer += 2 * intermediate + hidden
    return Dimensions(
        model_type=kind,
        vocabulary=values["vocab_size"],
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=groups,
        head_width=width,
        tied=bool(values.get("tie_word_embeddings", TIED.get(kind, False))),
        extra=layers * of_layer + hidden,
    )


def _opt(values: Mapping[str, Any]) -> Dimensions:
    hidden, heads, layers = values["hidden_size"], values["num_attention_heads"], values["num_hidden_layers"]
    embedding, intermediate = values.get("word_embed_proj_dim") or hidden, values["ffn_dim"]
    biases = 5 * hidden + intermediate if values.get("enable_bias", True) else 0
    last = 2 * hidden if values.get("do_layer_norm_before", True) else 0
    positions = values["max_position_embeddings"]
    return Dimensions(
        model_type="opt",
        vocabulary=values["vocab_size"],
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=hidden // heads,
        gated=False,
        tied=bool(values.get("tie_word_embeddings", True)),
        embedding=0 if embedding == hidden else embedding,
        positions=positions,
        extra=layers * (biases + 4 * hidden) + last + (positions + OPT_OFFSET) * hidden,
    )


def _t5(values: Mapping[str, Any]) -> Dimensions:
    hidden, heads, encoder = values["d_model"], values["num_heads"], values["num_layers"]
    decoder = values.get("num_decoder_layers") or encoder
    # transformers' T5Config calls every T5 tied; only those that scale the decoder's outputs are.
    tied = values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True))
    # Each half has one table of relative positions and a normalisation at its end.
    tables = 2 * values.get("relative_attention_num_buckets", 32) * heads
    return Dimensions(
        model_type="t5",
        vocabulary=values["vocab_size"],
        hidden=hidden,
        intermediate=values["d_ff"],
        layers=decoder,
        heads=heads,
        kv_heads=heads,
        head_width=values["d_kv"],
        gated=str(values.get("feed_forward_proj", "relu")).startswith("gated"),
        tied=bool(tied),
        encoder_layers=encoder,
        extra=hidden * (2 * encoder + 3 * decoder + 2) + tables,
    )


# -------------------------------------------------------------------------------------------------------- known models


def _llama(**values: Any) -> dict[str, Any]:
    return {"model_type": "llama", "vocab_size": 32000, **values}


def _published_opt(hidden: int, layers: int) -> dict[str, Any]:
    """Zhang et al. 2022, table 1; heads and vocabulary as in the published config.json."""
    sizes = {"hidden_size": hidden, "ffn_dim": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": 32}
    return {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, **sizes}


def _flan_t5(width: int, feed_forward: int, layers: int, heads: int) -> dict[str, Any]:
    """Chung et al. 2022 on T5 1.1: gated feed-forward blocks, an output layer of its own."""
    sizes = {"d_model": width, "d_ff": feed_forward, "num_layers": layers, "num_heads": heads, "d_kv": 64}
    fixed = {"vocab_size": 32128, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return {"model_type": "t5", **sizes, **fixed}


SEVEN_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
"""Touvron et al. 2023, table 2 of LLaMA; Llama 2 has the same sizes at 7B."""

SMOLLM2_135M = _llama(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
"""The model's config.json."""

KNOWN: dict[str, dict[str, Any]] = {
    "facebook/opt-1.3b": _published_opt(2048, 24),
    "facebook/opt-2.7b": _published_opt(2560, 32),
    "meta-llama/Llama-2-7b-hf": _llama(**SEVEN_BILLION),
    "huggyllama/llama-7b": _llama(**SEVEN_BILLION),
    "google/flan-t5-small": _flan_t5(512, 1024, 8, 6),
    "google/flan-t5-base": _flan_t5(768, 2048, 12, 12),
    "google/flan-t5-large": _flan_t5(1024, 2816, 24, 16),
    "google/flan-t5-xl": _flan_t5(2048, 5120, 24, 32),
    "google/flan-t5-xxl": _flan_t5(4096, 10240, 24, 64),
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2_135M,
}
"""Hub id -> the values of its config.json that sizes follow from."""


def known(hub: str) -> Dimensions | None:
    """The dimensions of a hub model of the table above; None for any other."""
    values = {name.lower(): config for name, config in KNOWN.items()}.get(hub.lower())
    return None if values is None else Dimensions.of(values)
