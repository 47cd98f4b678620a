"""Write outputs for a validation split, and their ROUGE; or answer questions.

\b
  synopsis generate --config config/demo.yaml gist-1-s0 seen
  synopsis generate --model MODEL --context story.safetensors "Who is it about?" "Where?"

Without --context the model answers without having read anything. A question may be - for standard input. An
AutoCompressor continues the question. A gist model takes it as the input of the compressed instruction (none where
there is no question), and without a context as the instruction itself.
"""

from synopsis.stages import Word, run_of

WORDS = {
    "run": run_of("generate"),
    "split": Word("A split of the section generate.", lambda experiment: experiment.generate.splits),
}
