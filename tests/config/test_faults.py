"""Every fault of an experiment is told, once, with its line, and nothing that only follows from another."""

from __future__ import annotations

import copy
import random

import pytest
import yaml
from experiment_text import JUDGE, TASK, TEXT, faults, spoilt, write
from synopsis.config.experiment import load_experiment
from synopsis.errors import ConfigError

TRAINING = "{instructions: translations, steps: 1, batch_size: 1, learning_rate: 1e-4}"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Away from the tasks and judges that ship."""
    monkeypatch.chdir(tmp_path)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_the_text_that_is_spoilt_here_is_sound(tmp_path):
    assert faults(write(tmp_path)) == []


# Each row: what is replaced, and the whole fault without its place: "key: found ...; expected ..." (a part of it).
ONE_FAULT = [
    # keys
    (
        "  max_new_tokens: 16",
        "  max_new_token: 16",
        "generate.max_new_token: found an unknown key; expected one of instr",
    ),
    ("  max_new_tokens: 16", "  max_new_token: 16", "did you mean 'max_new_tokens'?"),
    ("name: small", "name: small\nextra: 1", "extra: found an unknown key; expected one of name, results, title"),
    ("name: small", "name: small\ntasks: {}", "tasks: found an unknown key; expected 'icl.datasets' instead"),
    (
        "      max_length: 64",
        "      max_length: 64\n      bogus: 3",
        "compressors.gist-1.training.bogus: found an unknown key",
    ),
    ("facts: 32", "factz: 32", "corpora.stories.factz: found an unknown key"),
    ("name: small\n", "", "name: found nothing; expected a name of letters, digits"),
    (
        "    summary_length: 4\n",
        "",
        "compressors.auto.summary_length: found nothing; expected a whole number from 1 to 65536: the",
    ),
    # kinds of values
    ("name: small", "name: 5", "name: found 5; expected a name of letters, digits, '_', '-' and '.' that begins"),
    ("name: small", "name: 5", "in quotes, '5' is one"),
    ("name: small", "name: -x", "name: found '-x'; expected a name"),
    ("name: small", "name: a/b", "name: found 'a/b'; expected a name"),
    ("name: small", f"name: {'n' * 5000}", "...; expected at most 100 characters"),
    ("name: small", "name: small\nresults: ''", "no braces) that is not empty"),
    ("name: small", 'name: small\nresults: "a\\0"', "results: found 'a\\x00'; expected the path of a folder (no line"),
    ("name: small", 'name: small\nresults: "a\\nb"', "results: found 'a\\nb'; expected the path of a folder (no line"),
    ("name: small", 'name: small\nresults: "a\\n"', "results: found 'a\\n'; expected the path of a folder (no line"),
    ("name: small", "name: small\nresults: r{run}", "results: found 'r{run}'; expected the path of a folder (no line"),
    (
        "scored_tokens: 30",
        "scored_tokens: thirty",
        "perplexity.scored_tokens: found 'thirty'; expected a whole number from 2",
    ),
    ("scored_tokens: 30", "scored_tokens: 1", "perplexity.scored_tokens: found 1; expected a whole number from 2 to"),
    (
        "scored_tokens: 30",
        "scored_tokens: true",
        "perplexity.scored_tokens: found true; expected a whole number from 2",
    ),
    ("scored_tokens: 30", "scored_tokens: 30.0", "perplexity.scored_tokens: found 30.0; expected a whole number"),
    ("scored_tokens: 30", "scored_tokens: '30'", "perplexity.scored_tokens: found '30'; expected a whole number"),
    ("scored_tokens: 30", "scored_tokens:", "perplexity.scored_tokens: found nothing; expected a whole number"),
    ("scored_tokens: 30", "scored_tokens: [30]", "perplexity.scored_tokens: found a list of 1 entry; expected a whole"),
    ("scored_tokens: 30", "scored_tokens: {a: 1}", "perplexity.scored_tokens: found a section (a); expected a whole"),
    (
        "[0, 30, 90]",
        "[0, thirty, 90]",
        "perplexity.context_lengths.1: found 'thirty'; expected a whole number from 0 to",
    ),
    ("[0, 30, 90]", "[]", "perplexity.context_lengths: found a list of 0 entries; expected a list of at least 1 entry"),
    ("[0, 30, 90]", "30", "perplexity.context_lengths: found 30; expected a list of at least 1 entry"),
    ("learning_rate: 1e-3}", "learning_rate: .inf}", "pretraining.learning_rate: found inf; expected a number above 0"),
    ("learning_rate: 1e-3}", "learning_rate: 0}", "pretraining.learning_rate: found 0; expected a number above 0"),
    ("steps: 10, ", "steps: 10, schedule: cosin, ", "schedule: found 'cosin'; expected one of linear, cosine"),
    ("steps: 10, ", "steps: 10, schedule: cosin, ", "; did you mean 'cosine'?"),
    (
        "facts: 32",
        "facts: 32, instruction_share: 2",
        "stories.instruction_share: found 2; expected a number from 0 to 1",
    ),
    (
        "zero_shot: {}",
        "zero_shot:",
        "icl.settings.zero_shot: found nothing; expected a section of keys and values ({} for an",
    ),
    ("pairs: [[gist-1, pos-1]]", "pairs: [[gist-1]]", "judge.pairs.0.1: found nothing; expected a name"),
    ("pairs: [[gist-1, pos-1]]", "pairs: [gist-1]", "judge.pairs.0: found 'gist-1'; expected a list of 2 entries"),
    (
        "pairs: [[gist-1, pos-1]]",
        "pairs: [[gist-1, pos-1, auto]]",
        "judge.pairs.0: found a list of 3 entries; expected a",
    ),
    (
        "method: rmt",
        "method: rtm",
        "compressors.rmt.method: found 'rtm'; expected one of autocompressor, full_attention",
    ),
    ("method: rmt", "method: rtm", "did you mean 'rmt'?"),
    (
        "    method: rmt\n",
        "",
        "compressors.rmt.method: found nothing; expected one of autocompressor, full_attention, gist",
    ),
    ("method: rmt", "method: {a: 1}", "compressors.rmt.method: found a section (a); expected one of"),
    ("{source: world, facts: 32}", "{facts: 32}", "corpora.stories.source: found nothing; expected one of text, world"),
    ("  gist-1:\n", "  g:\n  gist-1:\n", "compressors.g: found nothing; expected a section of keys and values"),
    (
        "  gist-1:\n",
        f"  a b: {{method: gist, base: base, condition: gist, training: {TRAINING}}}\n  gist-1:\n",
        "compressors.a b: found the name 'a b'; expected a name of letters, digits",
    ),
    # lists of distinct entries
    (
        "training_seeds: [0, 1]",
        "training_seeds: [0, 1, 0]",
        "training_seeds.2: found 0 again; expected each entry once",
    ),
    ("training_seeds: [0, 1]", "training_seeds: [0, -1]", "found -1; expected a whole number from 0 to 4294967295"),
    ("training_seeds: [0, 1]", "training_seeds: [4294967296]", "training_seeds.0: found 4294967296; expected a whole"),
    ("[animals]", "[animals, animals]", "icl.datasets.1: found 'animals' again; expected each entry once"),
    ("[seen, unseen]", "[seen, seen]", "generate.splits.1: found 'seen' again; expected each entry once"),
    ("[[gist-1, pos-1]]", "[[gist-1, pos-1], [gist-1, pos-1]]", "judge.pairs.1: found [gist-1, pos-1] again"),
    ("[rule]", "[rule, rule]", "judge.judges.1: found 'rule' again; expected each entry once"),
    # keys that do not fit each other
    ("{hub: facebook", "{path: x, hub: facebook", "models.opt: found 'hub' and 'path'; expected exactly one of 'hub'"),
    ("{hub: facebook/opt-125m, ", "{", "models.opt: found no source; expected exactly one of 'hub', 'path'"),
    (
        "  base:\n    arch",
        "  base:\n    type: llama\n    arch",
        "models.base.type: found a key of loaded models beside",
    ),
    (
        "hidden_size: 32",
        "hidden_size: 36",
        "hidden_size: found 36; expected a multiple of 8, twice num_attention_heads",
    ),
    (
        "attention_heads: 4",
        "attention_heads: 4, num_key_value_heads: 3",
        "found 3; expected a divisor of num_attention_",
    ),
    # names that point nowhere
    (
        "base: base",
        "base: bass",
        "auto.base: found 'bass'; expected the name of a model (base, opt); did you mean 'base'?",
    ),
    (
        "training: {corpus: stories, s",
        "training: {corpus: storys, s",
        "found 'storys'; expected the name of a corpus (stories)",
    ),
    (
        "instructions: translations\n      max",
        "instructions: t\n      max",
        "found 't'; expected the name of an instruction",
    ),
    (
        "perplexity:\n  corpus: stories",
        "perplexity:\n  corpus: story",
        "perplexity.corpus: found 'story'; expected the name",
    ),
    (
        "runs: [base, auto, rmt, full]",
        "runs: [base, gist-1]",
        "perplexity.runs.1: found 'gist-1', of the method gist; exp",
    ),
    (
        "runs: [base, auto, rmt, full]",
        "runs: [base, atuo]",
        "expected the name of a model or compressor that 'perplexity'",
    ),
    (
        "runs: [auto, gist-1]",
        "runs: [base]",
        "benchmark.runs.0: found 'base', a model without compression; expected a run",
    ),
    (
        "[animals]",
        "[animal]",
        "icl.datasets.0: found 'animal'; expected a file in tasks/ (animals); did you mean 'animals'?",
    ),
    ("[rule]", "[rules]", "judge.judges.0: found 'rules'; expected a file in judges/ (rule); did you mean 'rule'?"),
    ("[seen, unseen]", "[seen, human]", "generate.splits.1: found 'human'; expected the name of a validation split of"),
    ("[[gist-1, pos-1]]", "[[gist-1, auto]]", "judge.pairs.0.1: found 'auto'; expected the name of a compressor whose"),
    ("[[gist-1, pos-1]]", "[[gist-1, gist-1]]", "judge.pairs.0: found 'gist-1' against itself; expected two different"),
    # combinations that cannot work
    (
        "steps: 10, batch_size: 2, learning_rate: 1e-3}\n  opt",
        "steps: 10, warmup_steps: 11, batch_size: 2, learning_rate: 1e-3}\n  opt",
        "models.base.pretraining.warmup_steps: found 11; expected at most steps (10)",
    ),
    (
        "      steps: 10\n",
        "      steps: 10\n      warmup_steps: 5\n      schedule: constant\n",
        "warmup_steps: found 5; expected 0, or the schedule constant_with_warmup",
    ),
    (
        "steps: 10, batch",
        "lora: {}, steps: 10, batch",
        "models.base.pretraining.lora: found an adapter; expected none: a model from scratch has no weights to adapt",
    ),
    (
        "      max_length: 64",
        "      max_length: 64\n      lora: {rank: 33}",
        "compressors.gist-1.training.lora.rank: found 33; expected at most 32, the hidden_size of 'base'",
    ),
    (
        "substeps: 2",
        "substeps: 2\n      sequences_per_step: 20002",
        "compressors.auto.training.sequences_per_step: found 20002 sequences in an optimizer step; expected at most "
        "20000, as many as there are in 'stories'",
    ),
    (
        "substeps: 2",
        "substeps: 2\n      gradient_accumulation: 10001",
        "compressors.auto.training.batch_size: found 20002 sequences in an optimizer step; expected at most 20000, as",
    ),
    (
        "sequence_length: 160, steps: 10, batch_size: 2",
        "sequence_length: 200, pack_documents: true, steps: 10, batch_size: 16001",
        "pretraining.batch_size: found 16001 sequences in an optimizer step; expected at most 16000, as",
    ),
    (
        "      max_length: 64\n      steps: 10\n      batch_size: 2",
        "      max_length: 64\n      steps: 10\n      batch_size: 4001",
        "gist-1.training.batch_size: found 4001 sequences in an optimizer step; expected at most 4000, as many as "
        "there are in 'translations'",
    ),
    (
        "  stories:",
        "  tokenizers: {source: world}\n  stories:",
        "corpora.tokenizers: found the name 'tokenizers'; expected",
    ),
    (
        "  opt:",
        "  gist-1-s0:",
        "models.gist-1-s0: found the name 'gist-1-s0'; expected another name: it is the run of the",
    ),
    ("  opt:", "  full:", "compressors.full: found 'full', the name of a model; expected a name of its own"),
    (
        "sequence_length: 160,",
        "sequence_length: 300, pack_documents: true,",
        "found 300 positions in one pass; expected at",
    ),
    (
        "sequence_length: 160,",
        "sequence_length: 161,",
        "found 161 tokens of one document; expected at most 160, the tokens",
    ),
    ("sequence_length: 120", "sequence_length: 162", "found 162 tokens of one document; expected at most 160"),
    ("substeps: 2", "substeps: 7", "found 120; expected a multiple of substeps (7)"),
    (
        "summary_length: 4",
        "summary_length: 60",
        "(180 summary vectors + 30 tokens of a segment + 60 summary tokens); exp",
    ),
    (
        "max_length: 64",
        "max_length: 257",
        "gist-1.training.max_length: found 257 positions in one pass; expected at most 256",
    ),
    (
        "plain_tokens: 90",
        "plain_tokens: 256",
        "icl_90.plain_tokens: found 257 positions in one pass (256 plain tokens + 1 t",
    ),
    (
        "[30, 30, 30]",
        "[30, 30, 30, 30]",
        "found 16 summary vectors for 'auto' (4 x 4); expected at most 12: it is trained",
    ),
    (
        "[30, 30, 30]",
        "[30, 30, 250]",
        "found 262 positions in one pass (8 summary vectors + 250 tokens + 4 summary tokens)",
    ),
    (
        "[0, 30, 90]",
        "[0, 30, 131]",
        "found 161 tokens of one document; expected at most 160, the tokens of a document of 's",
    ),
    (
        "max_new_tokens: 16",
        "max_new_tokens: 256",
        "found 257 positions in one pass (256 new tokens + 1 token of a prompt)",
    ),
    (
        "[64, 192]",
        "[64, 250]",
        "found 266 positions in one pass (250 tokens of context + 16 new tokens); expected at most 256",
    ),
    (
        "[64, 192]",
        "[1, 192]",
        "found a context of 1, of which 1 gist tokens of 'gist-1'; expected more tokens than gist tokens",
    ),
    ("generate:", "x-generate:", "judge: found judgements without outputs; expected a section 'generate' beside it"),
    (
        "  gist-1:\n",
        "  gist-1:\n    training_seeds: [7]\n",
        "judge.pairs.0: found 'gist-1' with the training seeds [7] and",
    ),
    ("runs: [base, auto, rmt]", "runs: [opt, auto]", None),
    (
        "runs: [base, auto, rmt, full]",
        "runs: [opt]",
        "found a corpus of the generated language for 'opt', a loaded model",
    ),
    (
        "{source: world, facts: 32}",
        "{source: world, facts: 32}\n  books: {source: text, domains: {a: {files: {train: a.txt}}}}",
        "corpora.books.domains: found no source of the split validation, test; expected 'hub' or a file for each spli",
    ),
    (
        "{source: world, facts: 32}",
        "{source: world, facts: 32}\n  books: {source: text, domains: {a: {hub: x, weight: 1e300}}}",
        "corpora.books.domains.a.weight: found 1e+300; expected a number from 0.001 to 1000",
    ),
    (
        "instructions:\n  translations: {source: world}",
        "instructions:\n  translations: {source: alpaca_plus, splits: {train: x, seen: y, unseen: z}}",
        "instructions.translations.splits.train: found a validation split of this name; expected the training rows",
    ),
]


def test_an_architecture_without_a_compressor(tmp_path):
    gist = f"  g: {{method: gist, base: opt, condition: gist, training: {TRAINING}}}\n  gist-1:\n"
    text = spoilt(("  gist-1:\n", gist), ("type: opt", "type: bloom"))
    wanted = (
        "compressors.g.base: found 'opt' of the architecture bloom; expected for the method gist a model of the archit"
    )
    (told,) = faults(write(tmp_path, text))
    assert wanted in told


@pytest.mark.parametrize(("old", "new", "told"), ONE_FAULT, ids=range(len(ONE_FAULT)))
def test_one_fault(tmp_path, old, new, told):
    text = spoilt((old, new))
    found = faults(write(tmp_path, text))
    if told is None:
        assert found == []
        return
    matching = [fault for fault in found if told in fault]
    assert len(matching) == 1, found
    if "alpaca_plus" not in new:  # where it also is a language that its model does not know
        assert found == matching
    if not told.startswith("name: found nothing"):
        place, line = matching[0].split(": ")[0].split(":")
        assert place == "e.yaml" and abs(int(line) - line_of(text, new.strip("\n").split("\n")[0] if new else "")) < 60


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
    assert [fault.split(": ")[0] for fault in faults(write(tmp_path, text))] == [f"e.yaml:{line_of(text, line)}"]


# Each row: the key, the numbers that are refused, and what is allowed.
NUMBERS = [
    ("corpora.stories.documents", [10**26, 1e26, 10**9 + 1, 0], "a whole number from 1 to 1000000000"),
    ("corpora.stories.facts", [10**26], "a whole number from 1 to 1000000000"),
    ("instructions.translations.train", [10**26], "a whole number from 1 to 1000000000"),
    ("models.base.architecture.hidden_size", [10**12, 2**16 + 8], "a whole number from 1 to 65536"),
    ("models.base.architecture.intermediate_size", [10**12], "a whole number from 1 to 262144"),
    ("models.base.architecture.num_hidden_layers", [10**12, 1001], "a whole number from 1 to 1000"),
    ("models.base.architecture.max_position_embeddings", [10**30], "a whole number from 1 to 16777216"),
    ("models.opt.max_positions", [10**30], "a whole number from 1 to 16777216"),
    ("compressors.auto.max_positions", [10**30], "a whole number from 1 to 16777216"),
    ("compressors.auto.summary_length", [10**9], "a whole number from 1 to 65536"),
    ("compressors.auto.training.steps", [10**26], "a whole number from 1 to 1000000000"),
    ("compressors.auto.training.batch_size", [10**26], "a whole number from 1 to 1000000000"),
    ("compressors.auto.training.warmup_steps", [10**26, -1], "a whole number from 0 to 1000000000"),
    ("compressors.auto.training.keep_checkpoints", [10**26, 1], "a whole number from 2 to 1000000000"),
    ("compressors.auto.training.learning_rate", [1e300, float("inf"), float("nan")], "a number above 0 and at most 10"),
    ("compressors.auto.training.weight_decay", [1e300, float("nan"), -1], "a number from 0 to 10"),
    ("compressors.auto.training.adam_beta2", [1.0, 0.0, float("nan")], "a number above 0 and below 1"),
    ("compressors.auto.training.max_grad_norm", [1e300, float("nan")], "a number above 0 and at most 1000000000"),
    ("compressors.auto.training.lora", [{"dropout": 1.0}], "a number, 0 or more and below 1"),
    ("benchmark.repeats", [10**26], "a whole number from 1 to 1000000000"),
    ("needle.examples", [10**26], "a whole number from 1 to 1000000000"),
]


@pytest.mark.parametrize(("key", "values", "wanted"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_a_number_out_of_range_is_refused_with_the_range(tmp_path, key, values, wanted):
    path = write(tmp_path)
    for value in values:
        inside, found = next(iter(value.items())) if isinstance(value, dict) else ("", value)
        whole = f"{key}.{inside}" if inside else key
        assert faults(path, **{key: value}) == [f"--set: {whole}: found {found!r}; expected {wanted}"]


def test_what_a_setting_may_at_most_be(tmp_path):
    """What is just allowed, beside the rows of ONE_FAULT."""
    path = write(
        tmp_path, spoilt(("facts: 32", "facts: 32, documents: 8"), ("source: world}\nm", "source: world, train: 8}\nm"))
    )
    at_most = {f"compressors.{name}.training.batch_size": 8 for name in ("auto", "full", "gist-1")}
    at_most |= {"compressors.auto.training.warmup_steps": 10, "compressors.full.training.lora.rank": 32}
    assert faults(path, **at_most) == []
    # A document of instructions is longer than a story: 264 tokens at most, two sequences of 120 and one of 160.
    mixed = {"corpora.stories.documents": 1, "corpora.stories.instruction_share": 0.5}
    held = [told.split("at most ")[1] for told in faults(path, **at_most, **mixed)]
    assert held == [f"{count}, as many as there are in 'stories'" for count in (1, 2, 1)]


def test_faults_of_form_and_between_sections_are_told_at_once(tmp_path):
    text = spoilt(
        ("      max_length: 64", "      max_lenght: 64\n      bogus: 3"),
        ("base: base", "base: bass"),
        ("scored_tokens: 30", "scored_tokens: x"),
        ("steps: 10\n", "steps: many\n"),
        ("[30, 30, 30]", "[30, 30, 30, 30]"),
        ("runs: [base, auto, rmt]", "runs: [base, auto, nope]"),
        ("[seen, unseen]", "[seen, unsen]"),
        ("[64, 192]", "[64, 1000]"),
    )
    keys = [
        fault.split(": ")[1] for fault in faults(write(tmp_path, text, task="template: '{text'\n", judge="kind: x"))
    ]
    assert sorted(keys) == sorted(
        [
            "compressors.gist-1.training.max_lenght",
            "compressors.gist-1.training.bogus",
            "compressors.auto.base",
            "perplexity.scored_tokens",
            "compressors.auto.training.steps",
            "icl.settings.summary_12.compressed_tokens",
            "icl.runs.2",
            "generate.splits.1",
            "benchmark.context_lengths",
            "source",
            "template",
            "input_fields",
            "kind",
            "(top level)",  # a task without options
        ]
    )


@pytest.mark.parametrize(
    ("edits", "keys"),
    [
        # a misspelt section: what it holds is still known
        ([("models:", "modells:")], ["modells"]),
        ([("compressors:", "compresors:")], ["compresors"]),
        (
            [("models:", "modells:"), ("hidden_size: 32", "hiden_size: x")],
            ["modells", "modells.base.architecture.hiden_size"],
        ),
        ([("generate:", "genrate:")], ["genrate"]),
        # a section of the wrong kind: who refers to it is not blamed
        ([("instructions:\n  translations: {source: world}", "instructions: 5")], ["instructions"]),
        ([("  translations: {source: world}", "  translations: {source: wrld}")], ["instructions.translations.source"]),
        ([("{hub: facebook/opt-125m, type", "{hb: facebook/opt-125m, type")], ["models.opt.hb"]),
        ([("method: gist", "method: gst")], ["compressors.gist-1.method"]),
        ([("  gist-1:\n", "  gist 1:\n"), ("gist-1", "gist 1"), ("gist-1", "gist 1")], ["compressors.gist 1"] * 3),
        # a wrong number: the sums that it enters are not told
        ([("max_position_embeddings: 256", "max_position_embeddings: -1")], None),
        (
            [("substeps: 2", "substeps: x"), ("[30, 30, 30]", "[30, 30, 30, 30]")],
            ["compressors.auto.training.substeps"],
        ),
        ([("facts: 32", "facts: x"), ("sequence_length: 160", "sequence_length: 200")], ["corpora.stories.facts"]),
        ([("[64, 192]", "[x, 192]")], ["benchmark.context_lengths.0"]),
        ([("training_seeds: [0, 1]", "training_seeds: [x, 1]")], ["training_seeds.0"]),
        ([("training_seeds: [0, 1]", "training_seeds: [0, x, 1, 0]")], ["training_seeds.1", "training_seeds.3"]),
    ],
    ids=range(15),
)
def test_nothing_is_told_that_follows_from_another_fault(tmp_path, edits, keys):
    found = [fault.split(": ")[1] for fault in faults(write(tmp_path, spoilt(*edits)))]
    if keys is None:
        keys = ["models.base.architecture.max_position_embeddings"]
    elif len(set(keys)) == 1 and len(keys) == 3:
        keys = ["compressors.gist 1", "judge.pairs.0.0", "benchmark.runs.1"]
    assert sorted(found) == sorted(keys)


def test_everything_of_the_wrong_kind(tmp_path):
    keys = ["name", "models", "corpora", "compressors", "icl", "perplexity", "judge", "generate", "benchmark"]
    text = "\n".join(
        f"{key}: {value}" for key, value in zip(keys, ["{}", "[]", 5, "x", 1, "[]", "true", 1.5, "a"], strict=True)
    )
    found = faults(write(tmp_path, text))
    assert [fault.split(": ")[:2] for fault in found] == [[f"e.yaml:{n}", key] for n, key in enumerate(keys, start=1)]


# ------------------------------------------------------------------------------------------------ tasks and judges

TASK_FAULTS = [
    ("{world: eats}", "{world: sings}", "1: source.world: found 'sings'; expected one of eats, visits, wears"),
    (
        "{world: eats}",
        "{world: eats, hub: x}",
        "1: source.world: found 'eats' beside another source; expected 'world' alone",
    ),
    ("{world: eats}", "{}", "1: source: found no source; expected 'world', or 'hub', 'mirror' or both"),
    ("{world: eats}", "{mirror: x, hub_config: cb}", "1: source.hub_config: found 'cb'; expected 'hub' beside it"),
    (
        "{text} {answer}",
        "{text} {answer",
        "2: template: found braces that do not match; expected {column} for a column",
    ),
    (
        "{text} {answer}",
        "{text}",
        "2: template: found no {answer}; expected a text that ends with {answer}, the place of the option",
    ),
    ("{text} {answer}", "{answer} {text}", "2: template: found text after the {answer}; expected a text that ends"),
    ("{text} {answer}", "{answer} {text} {answer}.", "2: template: found text after the last {answer}; expected a"),
    (
        "{text} {answer}",
        "{text!r} {answer}",
        "2: template: found {text!r}; expected the name of a column between braces",
    ),
    ("{text} {answer}", "{text:>9} {answer}", "2: template: found {text:>9}; expected the name of a column between"),
    ("{text} {answer}", "{text[0]} {answer}", "2: template: found {text[0]}; expected the name of a column between"),
    (
        "{text} {answer}",
        "{} {answer}",
        "2: template: found {}; expected the name of a column between braces, and nothing",
    ),
    (
        "{text} {answer}",
        "{text} {more} {answer}",
        "2: template: found {more}; expected {text} and {answer}, all that the",
    ),
    ("[text]", "[txt]", "3: input_fields.0: found 'txt'; expected a column that the template shows (text)"),
    ("[text]", "[text, text]", "3: input_fields.1: found 'text' again; expected each entry once"),
    ("[plums, seeds]", "[plums]", "4: options: found a list of 1 entry; expected a list of at least 2 entries"),
    ("[plums, seeds]", "[plums, plums]", "4: options.1: found 'plums' again; expected each entry once"),
    ("[plums, seeds]", "[plums, '']", "4: options.1: found ''; expected a text that is not empty"),
    ("[plums, seeds]", "[true, false, 1]", "4: options.0: found true; expected a text; in quotes, 'true' is one"),
    ("[plums, seeds]", "[plums, ' ']", "4: options.1: found ' '; expected a text that is not only white space"),
    ("options:", "calibration: yes\noptions:", "4: calibration: found 'yes'; expected one of none, dataset, example"),
    (
        "options:",
        "calibrate: true\noptions:",
        "4: calibrate: found an unknown key; expected one of source, train_split",
    ),
    (
        "options:",
        "normalization: byte\noptions:",
        "4: normalization: found 'byte'; expected one of mean, sum, bytes; did",
    ),
    (
        "options: [plums, seeds]",
        "option_fields: [a, b]\ncalibration: dataset",
        "5: calibration: found 'dataset' beside 'option_fields'; expected 'example' or 'none'",
    ),
    (
        "options:",
        "columns: {text: a}\noptions:",
        "4: columns: found names of columns; expected nothing: the generated language has the columns text and label",
    ),
    (
        "options: [plums, seeds]",
        "option_fields: [a, b]",
        "4: option_fields: found names of columns; expected nothing: the generated",
    ),
    ("options:", "label_field: x\noptions:", "4: label_field: found names of columns; expected nothing: the generated"),
    (
        "options: [plums, seeds]\n",
        "",
        ": (top level): found neither of them; expected either 'options' or 'option_fields'",
    ),
    (
        "options: [plums, seeds]",
        "option_fields: [a]",
        "4: option_fields: found one column; expected at least 2, one for",
    ),
    ("options:", "opshuns:", "4: opshuns: found an unknown key; expected one of source, train_split"),
]


@pytest.mark.parametrize(("old", "new", "told"), TASK_FAULTS, ids=range(len(TASK_FAULTS)))
def test_a_fault_of_a_task_names_its_own_file(tmp_path, old, new, told):
    found = faults(write(tmp_path, task=spoilt((old, new), text=TASK)))
    assert all(fault.startswith("tasks/animals.yaml") for fault in found)
    assert sum(f"tasks/animals.yaml:{told}" in fault.replace("yaml: (top", "yaml:: (top") for fault in found) == 1, (
        found
    )


REAL_TASK = """\
source: {hub: x}
template: "{text} {candidate} {answer}"
columns: {candidate: answer, good: label}
input_fields: [text]
option_fields: [one, two]
label_field: good
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{text} {c", "{text} {answer} {c", None),
        ("answer, good", "answer, one: choice 1, good", None),
        (
            "answer, good",
            "answer, extra: x, good",
            "3: columns.extra: found 'extra', which is not read; expected a field of the template, an option or the "
            "label (text, candidate, one, two, good)",
        ),
        (
            "{candidate: answer",
            "{answer: candidate",
            "3: columns.answer: found 'answer'; expected another name for this",
        ),
        ("answer, good", "'', good", "3: columns.candidate: found ''; expected a text that is not empty"),
        ("answer, good", "3, good", "3: columns.candidate: found 3; expected a text; in quotes, '3' is one"),
        (
            "{text} {c",
            "{text} {id} {c",
            "2: template: found 'id', the name of a column; expected another name (columns: ",
        ),
        ("[one, two]", "[one, id]", "5: option_fields: found 'id', the name of a column; expected another name"),
        ("[text]", "[text, answer]", "4: input_fields.1: found 'answer'; expected a column that the template shows"),
        (
            "[one, two]",
            "[one, text]",
            "4: input_fields.0: found 'text'; expected a field that is no option: after a content-free input",
        ),
    ],
)
def test_fields_of_a_task_that_do_not_fit_each_other(tmp_path, old, new, told):
    found = [fault for fault in faults(write(tmp_path, task=spoilt((old, new), text=REAL_TASK))) if "tasks/" in fault]
    if told is None:
        assert found == []
    else:
        assert len(found) == 1 and f"tasks/animals.yaml:{told}" in found[0], found


def test_a_task_of_real_text_needs_a_model_that_can_read(tmp_path):
    task = spoilt(("{world: eats}", "{hub: x}"), text=TASK)
    [told] = faults(write(tmp_path, task=task))
    assert (
        "icl.datasets.0: found a task of real text for 'base', trained from scratch; expected a task of source" in told
    )


CHAT = "kind: openai\nmodel: m\nprompt: '{instruction} {answer_a} {answer_b}'\n"
JUDGE_FAULTS = [
    (JUDGE, ("reference", "human"), "1: kind: found 'human'; expected one of reference, openai"),
    (
        JUDGE,
        ("kind: reference", "kind: reference\ntie_margin: 2"),
        "2: tie_margin: found 2; expected a number from 0 to 1",
    ),
    (
        JUDGE,
        ("kind: reference", "kind: reference\nmodel: m"),
        "2: model: found a key that is not read; expected nothing: a",
    ),
    (CHAT, ("model: m\n", ""), ": model: found nothing; expected the name of the service's model"),
    (CHAT, (" {answer_b}", ""), "3: prompt: found a text without {answer_b}; expected the question to the judge"),
    (CHAT, ("{instruction} {answer_a} {answer_b}", ""), "3: prompt: found nothing; expected the question to the judge"),
    (
        CHAT,
        ("model: m", "model: m\nbase_url: localhost"),
        "3: base_url: found 'localhost'; expected an address that begins",
    ),
    (
        CHAT,
        ("model: m", "model: m\napi_key_env: a-b"),
        "3: api_key_env: found 'a-b'; expected the name of an environment v",
    ),
    (CHAT, ("model: m", "model: m\ntie_margin: 0.1"), "3: tie_margin: found a key that is not read; expected nothing"),
    (
        CHAT,
        ("model: m", "model: m\nconcurrency: 1001"),
        "3: concurrency: found 1001; expected a whole number from 1 to 1000",
    ),
    (CHAT, ("model: m", "model: m\ntemperature: .inf"), "3: temperature: found inf; expected a number, 0 or more"),
]


@pytest.mark.parametrize(("text", "edit", "told"), JUDGE_FAULTS, ids=range(len(JUDGE_FAULTS)))
def test_a_fault_of_a_judge_names_its_own_file(tmp_path, text, edit, told):
    found = faults(write(tmp_path, judge=spoilt(edit, text=text)))
    assert [
        fault for fault in found if f"judges/rule.yaml:{told}" in fault.replace("yaml: model", "yaml:: model")
    ] == found
    assert len(found) == 1


@pytest.mark.parametrize("text", ["", "- a", "a: b: c"])
def test_a_task_file_that_cannot_be_read_is_told_with_the_rest(tmp_path, text):
    found = faults(write(tmp_path, spoilt(("scored_tokens: 30", "scored_tokens: x")), task=text))
    assert len(found) == 2
    assert found[0].startswith("tasks/animals.yaml") and "scored_tokens" in found[1]


# ------------------------------------------------------------------------------------------------------ any text


@pytest.mark.parametrize("seed", range(60))
def test_no_spoilt_experiment_gives_a_traceback_or_a_doubled_fault(tmp_path, seed):
    """Random entries are removed, replaced, renamed or doubled: either the result is sound, or faults are told."""
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
            section[last] = copy.deepcopy(
                rng.choice([None, True, -1, 0, 3.5, 10**6, "x", "", [], {}, ["x", "x"], [[1]]])
            )
        elif isinstance(section, list):
            section.append(copy.deepcopy(section[last]))
        else:
            section[rng.choice(["x", "runz", "1", f"{last}s"])] = section.pop(last) if change == 2 else 1
    path = write(tmp_path, yaml.safe_dump(content, sort_keys=False))
    try:
        load_experiment(path)
    except ConfigError as error:
        told = [str(fault) for fault in error.faults]
        assert len(told) == len(set(told)) > 0
        assert not any("Input should" in fault or "pydantic" in fault or "Traceback" in fault for fault in told)


def paths(content, at=()):
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in entries:
        yield (*at, key)
        yield from paths(value, (*at, key))
