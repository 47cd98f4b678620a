"""Every fault of an experiment is reported with its line, what stood there and what is allowed."""

from __future__ import annotations

import copy
import random

import pytest
import yaml
from experiment_text import JUDGE, TASK, TEXT, faults, spoilt, write
from synopsis.config.experiment import load_experiment
from synopsis.errors import ConfigError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Away from the tasks and judges that ship."""
    monkeypatch.chdir(tmp_path)


def test_the_text_that_is_spoilt_here_is_sound(tmp_path):
    assert faults(write(tmp_path)) == []


NAME = "name: small"
PRE = "models.base.pretraining"
STORIES = "{source: world, facts: 32}"
WORLD = "instructions:\n  translations: {source: world}"
RUNS = "  runs: [base, auto, rmt, full]\n"
MOST = "  max_new_tokens: 16\n  runs"
FREE = "runs: [base, auto, rmt, full]"
WARMUP = "      steps: 10\n      warmup_steps: 5\n      schedule: constant\n"
RANDOM = ("      substeps: 2\n", "      substeps: 2\n      random_summary_length: true\n")
OPT = "opt: {hub: facebook/opt-125m, type: opt, max_positions: 2048}"
T5 = (OPT, "flan: {hub: google/flan-t5-small, type: t5}")

# What is replaced, by what, and a part of the only fault: "key: found ...; expected ...".
ONE_FAULT = [
    # keys
    ("  max_new_tokens: 16", "  max_new_token: 16", "generate.max_new_token: found an unknown key; expected one of in"),
    ("  max_new_tokens: 16", "  max_new_token: 16", "; did you mean 'max_new_tokens'?"),
    (NAME, f"{NAME}\nextra: 1", "extra: found an unknown key; expected one of name, results, title, training_seeds"),
    (NAME, f"{NAME}\ntasks: {{}}", "tasks: found an unknown key; expected 'icl.datasets' instead, and one file for ea"),
    ("max_length: 64", "max_length: 64\n      bogus: 3", "compressors.gist-1.training.bogus: found an unknown key; ex"),
    ("facts: 32", "factz: 32", "corpora.stories.factz: found an unknown key; expected one of source, documents"),
    (f"{NAME}\n", "", "name: found nothing; expected a value: the key is required"),
    ("    summary_length: 4\n", "", "compressors.auto.summary_length: found nothing; expected a value: the key"),
    ("    method: rmt\n", "", "compressors.rmt.method: found nothing; expected one of"),
    ("method: rmt", "method: rtm", "; did you mean 'rmt'?"),
    ("method: rmt", "method: {a: 1}", "compressors.rmt.method: found a section (a); expected one of"),
    ("    summary_length: 4\n", "    sumary_length: 4\n", "sumary_length: found an unknown key; expected one of base,"),
    (STORIES, "{facts: 32}", "corpora.stories.source: found nothing; expected one of world, text"),
    ("  gist-1:\n", "  g:\n  gist-1:\n", "compressors.g: found nothing; expected a section of keys and values"),
    (STORIES, f"{STORIES}\n  a b: {STORIES}", "corpora.a b: found the name 'a b'; expected a name of letters, digits"),
    # kinds of values
    (NAME, "name: 5", "name: found 5; expected a valid string; in quotes, '5' is one"),
    (NAME, "name: a/b", "name: found 'a/b'; expected a name of letters, digits, '_', '-' and '.' that begins"),
    (NAME, f"name: {'n' * 5000}", "...; expected at most 100 characters"),
    (NAME, f"{NAME}\nresults: ''", "results: found ''; expected the path of a folder (no line breaks"),
    (NAME, f'{NAME}\nresults: "a\\0"', "results: found 'a\\x00'; expected the path of a folder (no line"),
    (NAME, f"{NAME}\nresults: r{{run}}", "results: found 'r{run}'; expected the path of a folder (no line"),
    ("scored_tokens: 30", "scored_tokens: 1", "perplexity.scored_tokens: found 1; expected greater than or equal to 2"),
    ("scored_tokens: 30", "scored_tokens: true", "perplexity.scored_tokens: found true; expected a valid integer"),
    ("scored_tokens: 30", "scored_tokens: 30.0", "perplexity.scored_tokens: found 30.0; expected a valid integer"),
    ("scored_tokens: 30", "scored_tokens: '30'", "perplexity.scored_tokens: found '30'; expected a valid integer"),
    ("scored_tokens: 30", "scored_tokens:", "perplexity.scored_tokens: found nothing; expected a valid integer"),
    ("scored_tokens: 30", "scored_tokens: [30]", "perplexity.scored_tokens: found a list of 1 entry; expected a"),
    ("[0, 30, 90]", "[0, thirty, 90]", "perplexity.context_lengths.1: found 'thirty'; expected a valid integer"),
    ("[0, 30, 90]", "[]", "perplexity.context_lengths: found a list of 0 entries; expected at least 1 item"),
    ("[0, 30, 90]", "30", "perplexity.context_lengths: found 30; expected a valid list"),
    ("learning_rate: 1e-3}", "learning_rate: .inf}", f"{PRE}.learning_rate: found inf; expected less than or equal to"),
    ("learning_rate: 1e-3}", "learning_rate: .nan}", f"{PRE}.learning_rate: found nan; expected less than or equal to"),
    ("steps: 10, ", "steps: 10, schedule: cosin, ", f"{PRE}.schedule: found 'cosin'; expected one of linear, cosine"),
    ("facts: 32", "facts: 32, instruction_share: 2", "corpora.stories.instruction_share: found 2; expected less than"),
    ("zero_shot: {}", "zero_shot:", "icl.settings.zero_shot: found nothing; expected a section of keys and values"),
    ("[[gist-1, pos-1]]", "[[gist-1]]", "judge.pairs.0.1: found nothing; expected a value: the key is required"),
    ("[[gist-1, pos-1]]", "[gist-1]", "judge.pairs.0: found 'gist-1'; expected a valid list"),
    ("[[gist-1, pos-1]]", "[[gist-1, pos-1, auto]]", "judge.pairs.0: found a list of 3 entries; expected at most 2 it"),
    # lists of distinct entries
    ("training_seeds: [0, 1]", "training_seeds: [0, 0]", "training_seeds.1: found 0 again; expected each entry once"),
    ("training_seeds: [0, 1]", "training_seeds: [0, -1]", "training_seeds.1: found -1; expected greater than or equal"),
    ("training_seeds: [0, 1]", "training_seeds: [4294967296]", "training_seeds.0: found 4294967296; expected less tha"),
    ("[[gist-1, pos-1]]", "[[gist-1, pos-1], [gist-1, pos-1]]", "judge.pairs.1: found [gist-1, pos-1] again; exp"),
    # keys that do not fit each other
    ("{hub: facebook", "{path: x, hub: facebook", "models.opt: found 'hub' and 'path'; expected exactly one of 'hub'"),
    ("{hub: facebook/opt-125m, ", "{", "models.opt: found no source; expected exactly one of 'hub', 'path', 'gguf'"),
    ("  base:\n    arch", "  base:\n    type: llama\n    arch", "models.base.type: found a key of loaded models besid"),
    ("hidden_size: 32", "hidden_size: 36", "architecture.hidden_size: found 36; expected a multiple of 8, twice"),
    ("steps: 10, batch", "warmup_steps: 11, steps: 10, batch", f"{PRE}.warmup_steps: found 11; expected at most steps"),
    ("      steps: 10\n", WARMUP, "warmup_steps: found 5; expected 0, or the schedule constant_with_warmup"),
    ("steps: 10, batch", "lora: {}, steps: 10, batch", f"{PRE}.lora: found an adapter; expected none: a model from"),
    ("substeps: 2", "substeps: 7", "auto.training.sequence_length: found 120; expected a multiple of substeps (7)"),
    (STORIES, "{source: text, domains: {a: {}}}", "corpora.stories.domains.a: found no source; expected 'hub', 'fil"),
    (WORLD, f"{WORLD}\n  a: {{source: alpaca_plus, splits: {{train: x}}}}", "a.splits.train: found a validation split"),
    # names that point nowhere
    ("base: base", "base: bass", "auto.base: found 'bass'; expected the name of a model (base, opt); did you mean 'ba"),
    ("{corpus: stories, s", "{corpus: storys, s", f"{PRE}.corpus: found 'storys'; expected the name of a corpus (sto"),
    ("translations\n      max", "t\n      max", "instructions: found 't'; expected the name of an instruction set"),
    ("perplexity:\n  corpus: stories", "perplexity:\n  corpus: x", "perplexity.corpus: found 'x'; expected the name"),
    (FREE, "runs: [base, gist-1]", "perplexity.runs.1: found 'gist-1', of the method gist; expected a run that 'perp"),
    (FREE, "runs: [base, atuo]", "expected the name of a model or compressor that 'perplexity' can measure (base, opt"),
    ("runs: [auto, gist-1]", "runs: [base]", "benchmark.runs.0: found 'base', a model without compression; exp"),
    ("[animals]", "[animal]", "icl.datasets.0: found 'animal'; expected a file in tasks/ (animals); did you mean 'an"),
    ("[rule]", "[rules]", "judge.judges.0: found 'rules'; expected a file in judges/ (rule); did you mean 'rule'?"),
    ("[seen, unseen]", "[seen, human]", "generate.splits.1: found 'human'; expected the name of a validation split"),
    ("[[gist-1, pos-1]]", "[[gist-1, auto]]", "judge.pairs.0.1: found 'auto'; expected the name of a compressor who"),
    ("[[gist-1, pos-1]]", "[[gist-1, gist-1]]", "judge.pairs.0: found 'gist-1' against itself; expected two differ"),
    # combinations that cannot work
    ("  opt:", "  gist-1-s0:", "models.gist-1-s0: found the name 'gist-1-s0'; expected another name: it is the run of"),
    ("  opt:", "  full:", "compressors.full: found 'full', the name of a model; expected a name of its own"),
    ("  stories:", "  tokenizers: {source: world}\n  stories:", "corpora.tokenizers: found the name 'tokenizers'; exp"),
    ("max_length: 64", "max_length: 64\n      lora: {rank: 33}", "lora.rank: found 33; expected at most 32, the hidde"),
    ("sequence_length: 160,", "sequence_length: 300, pack_documents: true,", "found 300 positions in one pass; exp"),
    ("summary_length: 4", "summary_length: 60", "(180 summary vectors + 30 tokens of a segment + 60 summary tokens);"),
    ("max_length: 64", "max_length: 257", "training.max_length: found 257 positions in one pass; expected at most 256"),
    ("plain_tokens: 90", "plain_tokens: 256", "icl_90.plain_tokens: found 257 positions in one pass (256 plain tokens"),
    ("[30, 30, 30]", "[30, 30, 30, 30]", "found 16 vectors for 'auto' (4 steps); expected at most 12, as many as sta"),
    ("[30, 30, 30]", "[30, 30, 250]", "found 262 positions in one pass (8 summary vectors + 250 tokens + 4 summary to"),
    ("max_new_tokens: 16", "max_new_tokens: 256", "found 257 positions in one pass (256 new tokens + 1 token of a pro"),
    (MOST, "  runs", "generate: found no limit; expected exactly one of 'max_new_tokens' and 'max_tokens'"),
    (MOST, f"  max_tokens: 9\n{MOST}", "generate: found two limits; expected exactly one of 'max_new_tokens' and"),
    (MOST, "  max_tokens: 257\n  runs", "generate.max_tokens: found 257 positions in one pass; expected at most"),
    (MOST, f"  sampling: {{top_p: 0}}\n{MOST}", "generate.sampling.top_p: found 0; expected greater than 0"),
    (MOST, f"  sampling: {{top_k: 9}}\n{MOST}", "generate.sampling.top_k: found an unknown key; expected one of"),
    (MOST, f"  context: none\n{MOST}", "generate.context: found 'none'; expected one of compressed, full"),
    ("[64, 192]", "[64, 250]", "found 266 positions in one pass (250 tokens of context + 16 new tokens); expected at"),
    ("[64, 192]", "[1, 192]", "found a context of 1; expected at least 2, the fewest that 'gist-1' compresses"),
    ("generate:", "x-generate:", "judge: found judgements without outputs; expected a section 'generate' beside it"),
    ("  gist-1:\n", "  gist-1:\n    training_seeds: [7]\n", "judge.pairs.0: found 'gist-1' with the training seeds [7"),
    (FREE, "runs: [opt]", "perplexity.corpus: found a corpus of the generated language for 'opt', a loaded model"),
    (STORIES, f"{STORIES}\n  a: {{source: text, domains: {{a: {{files: {{train: a}}}}}}}}", "split validation, test;"),
    (*T5, None),
    (FREE, "runs: [base, flan]", "perplexity.runs.1: found 'flan', of the architecture t5; expected a run that 'perp"),
    # summary lengths of perplexity
    (RUNS, f"  summary_lengths: [4, 2]\n{RUNS}", "perplexity.summary_lengths.1: found 2 summary tokens for 'auto'; ex"),
    (RUNS, f"  summary_lengths: [4, 5]\n{RUNS}", "for 'auto'; expected at most 4, the summary_length"),
    (RUNS, f"  summary_lengths: [0]\n{RUNS}", "perplexity.summary_lengths.0: found 0; expected greater than or equal"),
    # needle
    ("Mira holds {key}", "Mira holds", "needle.needle: found no {key}; expected a sentence that shows {key} where"),
    ("n: guest Mira holds", "n: 'Mira {key}'", "needle.question: found {key}; expected a text without {key}: the key"),
    ("n: guest Mira holds", "n: ' '", "needle.question: found ' '; expected a text that is not white space alone"),
    ("[lantern, compass]", "[map, map]", "needle.keys.1: found 'map' again; expected each entry once"),
    ("choices: 2", "choices: 3", "needle.keys: found 2 keys; expected 3 or more, as many as 'choices' says"),
    ("choices: 2", "choices: 2\n  depths: [0, 1.5]", "needle.depths.1: found 1.5; expected less than or equal to 1"),
    ("runs: [base, auto]", "runs: [gist-1]", "needle.runs.0: found 'gist-1', of the method gist; expected a run that"),
    ('  filler: ["old fox eats plums"]\n', "", "needle.filler: found the default text, English, for 'base', trained f"),
    ("  keys: [lantern, compass]\n", "", "needle.keys: found the default text, English, for 'base', trained from"),
    ("lengths: [30, 90]", "lengths: [255, 300]", "needle.lengths: found 257 positions in one pass (255 tokens of cont"),
]


@pytest.mark.parametrize(("old", "new", "message"), ONE_FAULT, ids=range(len(ONE_FAULT)))
def test_one_fault(tmp_path, old, new, message):
    edits = [(old, new)] if "flan" not in new or old == OPT else [T5, (old, new)]
    found = faults(write(tmp_path, spoilt(*edits)))
    assert len(found) == (message is not None) and all(message in fault for fault in found), found


SHORT = (("_embeddings: 256", "_embeddings: 160"), ("[64, 192]", "[64]"), ("tokens_per_step: 30", "tokens_per_step: 2"))
NEEDLE = (("lengths: [30, 90]", "lengths: [600]"), ("tokens_per_step: 30\n  filler", "tokens_per_step: 250\n  filler"))


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([(RUNS, f"  summary_lengths: [4, 2]\n{RUNS}"), RANDOM], None),
        ([(RUNS, "  summary_lengths: [2]\n  runs: [base, full]\n")], None),
        ([("lengths: [30, 90]", "lengths: [30, 5000]")], None),
        ([*SHORT, (RUNS, "  runs: [auto]\n")], "210 positions in one pass (180 summary vectors + 30 scored tokens); e"),
        ([*SHORT, (RUNS, "  summary_lengths: [1, 2]\n  runs: [auto]\n"), RANDOM], None),
        ([*NEEDLE, ("runs: [base, auto]\n", "runs: [auto]\n")], "(8 summary vectors + 250 tokens + 4 summary tokens)"),
        ([T5, (FREE, "runs: [full]"), ("full_attention\n    base: base", "full_attention\n    base: flan")], "full.ba"),
    ],
)
def test_what_several_keys_say_together(tmp_path, edits, message):
    found = faults(write(tmp_path, spoilt(*edits)))
    assert not found if message is None else message in found[0], found


def test_an_architecture_that_a_method_does_not_serve(tmp_path):
    more = "  g: {method: gist, base: opt, condition: gist, training: *translations}\nperplexity:"
    (fault,) = faults(write(tmp_path, spoilt(("perplexity:", more), ("type: opt", "type: bloom"))))
    assert "g.base: found 'opt' of the architecture bloom; expected for the method gist a model of the archi" in fault


def test_a_stage_that_nothing_can_be_measured_by(tmp_path):
    section = TEXT[TEXT.index("perplexity:") : TEXT.index("icl:")].replace(RUNS, "")
    text = "name: a\nmodels: {flan: {hub: f, type: t5}}\ncorpora: {stories: {source: world}}\n" + section
    (fault,) = faults(write(tmp_path, text))
    assert "perplexity: found nothing that it can measure; expected a decoder among the models, or a comp" in fault


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("scored_tokens: 30", "scored_tokens: x", "  scored_tokens: x"),
        ("[0, 30, 90]", "[0,\n    x,\n    90]", "    x,"),
        ("{plain_tokens: 90}", "\n      plain_tokens: x", "      plain_tokens: x"),
        ("max_length: 64", "max_lenght: 64", "max_lenght"),
        ("    condition: gist\n", "", "  gist-1:"),
        ("base: base", "base: bass", "base: bass"),
        ("[30, 30, 30]", "[30, 30, 30, 30]", "    summary_12"),
    ],
)
def test_the_line_of_a_fault_is_the_one_to_edit(tmp_path, old, new, line):
    text = spoilt((old, new))
    wanted = text[: text.index(line)].count("\n") + 1
    assert [fault.split(": ")[0] for fault in faults(write(tmp_path, text))] == [f"e.yaml:{wanted}"]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("corpora.stories.documents", [10**26, 10**9 + 1], "less than or equal to 1000000000"),
        ("models.base.architecture.hidden_size", [10**12, 2**16 + 8], "less than or equal to 65536"),
        ("models.opt.max_positions", [10**30], "less than or equal to 16777216"),
        ("compressors.auto.summary_length", [10**9], "less than or equal to 65536"),
        ("compressors.auto.training.keep_checkpoints", [1], "greater than or equal to 2"),
        ("compressors.auto.training.learning_rate", [1e300, float("inf")], "less than or equal to 10"),
        ("compressors.auto.training.weight_decay", [-1], "greater than or equal to 0"),
        ("compressors.auto.training.adam_beta2", [1.0], "less than 1"),
        ("compressors.auto.training.lora", [{"dropout": 1.0}], "less than 1"),
        ("corpora.stories.documents", [1e26], "a valid integer"),
    ],
)
def test_a_number_out_of_range(tmp_path, key, values, message):
    path = write(tmp_path)
    for value in values:
        inside, found = next(iter(value.items())) if isinstance(value, dict) else ("", value)
        whole = f"{key}.{inside}" if inside else key
        assert faults(path, **{key: value}) == [f"--set: {whole}: found {found!r}; expected {message}"]


def test_every_fault_of_form_is_reported_at_once_and_then_every_other(tmp_path):
    form = [
        ("      max_length: 64", "      max_lenght: 64\n      bogus: 3"),
        ("scored_tokens: 30", "scored_tokens: x"),
        ("steps: 10\n", "steps: many\n"),
        ("[animals]", "[animals, plants]"),
    ]
    others = [
        ("base: base", "base: bass"),
        ("[30, 30, 30]", "[30, 30, 30, 30]"),
        ("runs: [base, auto, rmt]", "runs: [base, rmt, nope]"),
        ("[seen, unseen]", "[seen, unsen]"),
        ("[64, 192]", "[64, 1000]"),
    ]
    path = write(tmp_path, spoilt(*form, *others), task="template: '{text'\n", judge="kind: x")
    assert sorted(fault.split(": ")[1] for fault in faults(path)) == [
        "compressors.auto.training.steps",
        "compressors.gist-1.training.bogus",
        "compressors.gist-1.training.max_lenght",
        "icl.datasets.1",
        "input_fields",
        "kind",
        "perplexity.scored_tokens",
        "source",
    ]
    keys = [fault.split(": ")[1] for fault in faults(write(tmp_path, spoilt(*others)))]
    assert keys == ["compressors.auto.base", "icl.runs.2", "generate.splits.1", "benchmark.context_lengths"]


def test_everything_of_the_wrong_kind(tmp_path):
    keys = ["name", "models", "corpora", "compressors", "icl", "perplexity", "judge", "generate", "benchmark"]
    values = ["{}", "[]", "5", "x", "1", "[]", "true", "1.5", "a"]
    text = "\n".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
    found = faults(write(tmp_path, text))
    assert [fault.split(": ")[:2] for fault in found] == [[f"e.yaml:{n}", key] for n, key in enumerate(keys, start=1)]


# ------------------------------------------------------------------------------------------------ tasks and judges

ANSWER = "{text} {answer}"
OPTIONS = "[plums, seeds]"
TASK_FAULTS = [
    ("{world: eats}", "{world: sings}", "1: source.world: found 'sings'; expected one of eats, visits, wears"),
    ("{world: eats}", "{world: eats, hub: x}", "1: source.world: found 'eats' beside another source; expected 'world'"),
    ("{world: eats}", "{}", "1: source: found no source; expected 'world', or 'hub', 'mirror' or both"),
    ("{world: eats}", "{mirror: x, hub_config: cb}", "1: source.hub_config: found 'cb'; expected 'hub' beside it"),
    (ANSWER, "{text} {answer", "2: template: found braces that do not match; expected {column} for a column"),
    (ANSWER, "{text}", "2: template: found no {answer}; expected a text that ends with {answer}, the place of"),
    (ANSWER, "{answer} {text}", "2: template: found text after the {answer}; expected a text that ends"),
    (ANSWER, "{answer} {text} {answer}.", "2: template: found text after the last {answer}; expected a"),
    (ANSWER, "{text!r} {answer}", "2: template: found {text!r}; expected the name of a column between braces"),
    (ANSWER, "{text:>9} {answer}", "2: template: found {text:>9}; expected the name of a column between"),
    (ANSWER, "{text[0]} {answer}", "2: template: found {text[0]}; expected the name of a column between"),
    (ANSWER, "{} {answer}", "2: template: found {}; expected the name of a column between braces, and nothing"),
    (ANSWER, "{text} {more} {answer}", "2: template: found {more}; expected {text} and {answer}, all that the"),
    ("[text]", "[txt]", "3: input_fields.0: found 'txt'; expected a column that the template shows (text)"),
    (OPTIONS, "[plums]", "4: options: found a list of 1 entry; expected at least 2 items"),
    (OPTIONS, "[plums, plums]", "4: options.1: found 'plums' again; expected each entry once"),
    (OPTIONS, "[plums, '']", "4: options.1: found ''; expected a text that is not white space alone"),
    (OPTIONS, "[plums, true]", "4: options.1: found true; expected a valid string; in quotes, 'true' is one"),
    (OPTIONS, "[plums, ' ']", "4: options.1: found ' '; expected a text that is not white space alone"),
    ("options:", "calibrate: true\noptions:", "4: calibrate: found an unknown key; expected one of source, train_spli"),
    ("options:", "label_field: x\noptions:", "4: label_field: found names of columns; expected nothing: the generated"),
    (f"options: {OPTIONS}\n", "", " (top level): found neither of them; expected either 'options' or 'option_fields'"),
]


@pytest.mark.parametrize(("old", "new", "message"), TASK_FAULTS, ids=range(len(TASK_FAULTS)))
def test_a_fault_of_a_task_names_its_own_file(tmp_path, old, new, message):
    (found,) = faults(write(tmp_path, task=spoilt((old, new), text=TASK)))
    assert found.startswith(f"tasks/animals.yaml:{message}")


REAL_TASK = """\
source: {hub: x}
template: "{text} {candidate} {answer}"
columns: {candidate: answer, good: label}
input_fields: [text]
option_fields: [one, two]
label_field: good
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{text} {c", "{text} {answer} {c", None),
        ("answer, good", "answer, one: choice 1, good", None),
        ("answer, good", "answer, extra: x, good", "3: columns.extra: found 'extra', which is not read; expected a fi"),
        ("{candidate: answer", "{answer: candidate", "3: columns.answer: found 'answer'; expected another name for th"),
        ("answer, good", "'', good", "3: columns.candidate: found ''; expected at least 1 character"),
        ("answer, good", "3, good", "3: columns.candidate: found 3; expected a valid string; in quotes, '3' is one"),
        ("{text} {c", "{text} {id} {c", "2: template: found 'id', the name of a column; expected another name (column"),
        ("[one, two]", "[one, id]", "5: option_fields: found 'id', the name of a column; expected another name"),
        ("[one, two]", "[one]", "5: option_fields: found one column; expected at least 2, one for each option"),
        ("[one, two]", "[one, two]\ncalibration: dataset", "6: calibration: found 'dataset' beside 'option_fields'; e"),
        ("[text]", "[text, answer]", "4: input_fields.1: found 'answer'; expected a column that the template shows"),
        ("[one, two]", "[one, text]", "4: input_fields.0: found 'text'; expected a field that is no option: after a c"),
    ],
)
def test_fields_of_a_task_that_do_not_fit_each_other(tmp_path, old, new, message):
    found = faults(write(tmp_path, task=spoilt((old, new), text=REAL_TASK)))
    real = "icl.datasets.0: found a task of real text for 'base', trained from scratch; expected a task of source"
    assert len(found) == 1 and (real if message is None else f"tasks/animals.yaml:{message}") in found[0]


CHAT = "kind: openai\nmodel: m\nprompt: '{instruction} {answer_a} {answer_b}'\n"


@pytest.mark.parametrize(
    ("text", "edit", "message"),
    [
        (JUDGE, ("reference", "human"), ":1: kind: found 'human'; expected one of reference, openai, replay"),
        (JUDGE, ("nce", "nce\ntie_margin: 2"), ":2: tie_margin: found 2; expected less than or equal to 1"),
        (JUDGE, ("nce", "nce\nmodel: m"), ":2: model: found a key that is not read; expected nothing: a"),
        (CHAT, ("model: m\n", ""), ": model: found nothing; expected the name of the service's model"),
        (CHAT, (" {answer_b}", ""), ":3: prompt: found a text without {answer_b}; expected the question to the judge"),
        (CHAT, ("l: m", "l: m\nbase_url: localhost"), ":3: base_url: found 'localhost'; expected an address that begi"),
        (CHAT, ("l: m", "l: m\napi_key_env: a-b"), ":3: api_key_env: found 'a-b'; expected the name of an environment"),
        (CHAT, ("l: m", "l: m\ntie_margin: 0.1"), ":3: tie_margin: found a key that is not read; expected nothing"),
        (CHAT, ("l: m", "l: m\ntemperature: .inf"), ":3: temperature: found inf; expected a finite number"),
    ],
)
def test_a_fault_of_a_judge_names_its_own_file(tmp_path, text, edit, message):
    (found,) = faults(write(tmp_path, judge=spoilt(edit, text=text)))
    assert f"judges/rule.yaml{message}" in found


@pytest.mark.parametrize("text", ["", "- a", "a: b: c"])
def test_a_task_file_that_cannot_be_read_is_reported_with_the_rest(tmp_path, text):
    found = faults(write(tmp_path, spoilt(("scored_tokens: 30", "scored_tokens: x")), task=text))
    assert len(found) == 2
    assert found[0].startswith("tasks/animals.yaml") and "scored_tokens" in found[1]


# ------------------------------------------------------------------------------------------------------ any text


@pytest.mark.parametrize("seed", range(60))
def test_no_spoilt_experiment_gives_a_traceback_or_a_doubled_fault(tmp_path, seed):
    """Random entries are removed, replaced, renamed or doubled: either the result is sound, or faults are reported."""
    rng = random.Random(seed)
    content = copy.deepcopy(yaml.safe_load(TEXT))
    for _ in range(rng.randint(1, 5)):
        *above, last = rng.choice(list(paths(content)) or [("name",)])
        section = content
        for step in above:
            section = section[step]
        change = rng.randrange(4)
        if change == 0:
            del section[last]
        elif change == 1:
            values = [None, True, -1, 0, 3.5, 10**6, "x", "", [], {}, ["x", "x"], [[1]]]
            section[last] = copy.deepcopy(rng.choice(values))
        elif isinstance(section, list):
            section.append(copy.deepcopy(section[last]))
        else:
            section[rng.choice(["x", "runz", "1", f"{last}s"])] = section.pop(last) if change == 2 else 1
    path = write(tmp_path, yaml.safe_dump(content, sort_keys=False))
    try:
        load_experiment(path)
    except ConfigError as error:
        found = [str(fault) for fault in error.faults]
        assert len(found) == len(set(found)) > 0
        assert not any("Input should" in fault or "pydantic" in fault for fault in found)


def paths(content, at=()):
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield (*at, key)
        yield from paths(value, (*at, key))
