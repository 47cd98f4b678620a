"""Judge the outputs of two runs, both orders of each pair; resumes where it stopped.

\b
  synopsis judge --config config/demo.yaml reference gist-1-s0 pos_control-1-s0 seen
  synopsis judge --a outputs-a.csv --b outputs-b.csv --judge reference --out judged
  synopsis judge --a outputs-a.csv --b outputs-b.csv --judge gpt-4o-mini --out judged --labels people.csv
  synopsis judge --a outputs-a.csv --b outputs-b.csv --judge gpt-4o-mini --out judged --dry-run
  synopsis judge --replay results/chatgpt --out recounted

A first run may ask thousands of questions: --dry-run counts them, their tokens (4 bytes each) and their price, and
max_cost in the judge's file is a limit that is not passed. A run that was stopped resumes where it stopped; two runs at
once ask nothing twice.

The second form takes any two files of outputs; rows meet by id, or by position where there is none. The folder gets the
judgements, their summary, and judgements.html to read them. The third form counts the released judgements of the gist
paper again, beside what was published.
"""

from synopsis.stages import Word, run_of
from synopsis.stages.generate import WORDS as OUTPUTS

WORDS = {
    "judge": Word("A judge of the section judge.", lambda experiment: experiment.judges),
    "a": run_of("generate", "The run in question."),
    "b": run_of("generate", "The run it is compared with."),
    "split": OUTPUTS["split"],
}
