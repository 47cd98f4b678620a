"""Measure in-context learning on one data set with one seed, in all settings.

\b
  synopsis icl --config config/demo.yaml autocompressor-s0 world_eats --seed 1 --json
"""

from synopsis.stages import Word, run_of

WORDS = {
    "run": run_of("icl"),
    "dataset": Word("A data set of the section icl.", lambda experiment: experiment.icl.datasets),
    "seed": Word("Draw of the demonstrations."),
}
