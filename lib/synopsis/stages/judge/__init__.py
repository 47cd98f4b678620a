"""Judge the outputs of two runs, both orders of each pair; resumes where it stopped.

\b
  synopsis judge --config config/demo.yaml reference gist-1-s0 pos_control-1-s0 seen
"""

from synopsis.stages import Word, run_of
from synopsis.stages.generate import WORDS as OUTPUTS

WORDS = {
    "judge": Word("A judge of the section judge.", lambda experiment: experiment.judges),
    "a": run_of("generate", "The run in question."),
    "b": run_of("generate", "The run it is compared with."),
    "split": OUTPUTS["split"],
}
