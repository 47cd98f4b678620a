"""The architectures that Synopsis is tested on, named as in `config.model_type`. Imports no torch."""

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "phi3", "opt")
"""Summary vectors and gist tokens are tested on each of them."""
ENCODER_DECODERS = ("t5",)
"""They have no next-token loss of plain text, so only methods that name them serve them."""
LEARNED_POSITIONS = ("opt",)
"""Positions are rows of a table; summary tokens and vectors take none of them."""
