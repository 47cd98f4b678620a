"""Hide a key in long texts and ask for it, by the length of the text and the place of the key.

\b
  synopsis needle --config config/demo.yaml autocompressor-s0
"""

from synopsis.stages import run_of

WORDS = {"run": run_of("needle")}
