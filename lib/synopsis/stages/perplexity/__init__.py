"""Measure the loss of long documents by the length of the context.

\b
  synopsis perplexity --config config/demo.yaml autocompressor-s0
"""

from synopsis.stages import run_of

WORDS = {"run": run_of("perplexity")}
