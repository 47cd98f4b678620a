"""Measure time, FLOPs and memory of decoding with and without a compressed context.

\b
  synopsis benchmark --config config/demo.yaml autocompressor-s0
"""

from synopsis.stages import run_of

WORDS = {"run": run_of("benchmark")}
