"""A small experiment with every section, and artifacts of all its stages with numbers to check by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synopsis.artifacts import Layout, write_csv, write_json, write_json_lines, write_text
from synopsis.config.experiment import Experiment
from synopsis.reporting.items import items
from synopsis.reporting.style import drawing
from synopsis.stages.benchmark.report import AXES, METRICS, OTHER_LOAD
from synopsis.stages.icl.section import Setting, settings_of
from synopsis.stages.judge.pairs import Pair
from synopsis.stages.judge.run import hash_of, judge_pairs
from synopsis.stages.perplexity.report import domains_of
from synopsis.stages.record import stages

TEXT_TRAINING = {"steps": 40, "batch_size": 2, "learning_rate": 1e-3, "corpus": "world", "sequence_length": 64}
GIST_TRAINING = {"steps": 40, "batch_size": 2, "learning_rate": 1e-3, "instructions": "words"}
STAGES = ("perplexity", "icl", "generate", "judge", "benchmark")

# Loss with no context; each 100 tokens of context take off this much, by class of tokens.
LOSS_WITHOUT_CONTEXT = {"all": 2.0, "dependent": 2.5, "topic": 2.6, "recall": 2.4}
LOSS_OF_DOMAIN = {"books": 0.2, "code": -0.2}
GAIN = {"base": 1.0, "full_attention": 1.2, "autocompressor": 0.8, "rmt": 0.4}
FOUND = {"base": 0.8, "full_attention": 0.9, "autocompressor": 0.5, "rmt": 0.3}
NEEDLE: dict[str, Any] = {
    **{"lengths": [200, 60], "depths": [0.5, 0.0], "examples": 10, "choices": 4, "tokens_per_step": 30},
    **{"filler": ["old fox eats plums"], "needle": "guest Mira holds {key}", "question": "guest Mira holds"},
    "keys": ["lantern", "compass", "violin", "ladder"],
}
ROUGE_L = {"gist-1": 50.0, "pos_control": 60.0, "neg_control": 20.0, "base": 30.0, "cut": 25.0}
TASK = {"source": {"world": "eats"}, "template": "{text} {answer}", "input_fields": ["text"], "options": ["a", "b"]}
ICL_EXAMPLES = {"world_eats": 100, "world_wears": 50}
ACCURACY = {"zero_shot": 0.4, "plain_48": 0.7, "summary_4": 0.6}


def experiment(folder: Path, only: str | None = None, **changes: Any) -> Experiment:
    """Every stage but `needle`, which `needle=NEEDLE` adds, or `only` one; a section that is None is left out."""
    trained = {"base": "base", "training": TEXT_TRAINING}
    summary = {**trained, "summary_length": 4}
    gist = {"method": "gist", "base": "base", "training": GIST_TRAINING}
    settings = {"zero_shot": {}, "plain_48": {"plain_tokens": 48}, "summary_4": {"compressed_tokens": [48]}}
    lengths = {"context_lengths": [0, 50, 100], "scored_tokens": 32, "tokens_per_step": 50}
    sections: dict[str, Any] = {
        "name": "small",
        "results": str(folder / "results"),
        "evaluation_seeds": [0, 1, 2],
        "corpora": {"world": {"source": "world"}},
        "instructions": {"words": {"source": "world"}},
        "models": {"base": {"architecture": {}, "pretraining": TEXT_TRAINING}},
        "compressors": {
            "full_attention": {"method": "full_attention", **trained},
            "autocompressor": {"method": "autocompressor", "training_seeds": [0, 1], **summary},
            "rmt": {"method": "rmt", **summary},
            "gist-1": {"condition": "gist", **gist},
            "pos_control": {"condition": "pos_control", **gist},
            "neg_control": {"condition": "neg_control", **gist},
        },
        "perplexity": {"corpus": "world", **lengths},
        "icl": {"datasets": ["world_eats", "world_wears"], "settings": settings},
        "tasks": {name: TASK for name in ICL_EXAMPLES},
        "judges": {"reference": {"kind": "reference"}},
        "generate": {
            **{"instructions": "words", "splits": ["seen", "unseen"], "max_tokens": 64},
            "runs": ["gist-1", "pos_control", "neg_control"],
        },
        "judge": {"judges": ["reference"], "pairs": [["gist-1", "pos_control"], ["gist-1", "neg_control"]]},
        "benchmark": {"context_lengths": [64, 128], "batch_sizes": [1, 8]},
    }
    sections |= {stage: None for stage in STAGES if only not in (None, stage)} | changes
    return Experiment.model_validate({key: value for key, value in sections.items() if value is not None})


def write_artifacts(subject: Experiment) -> Layout:
    """Write everything that the score stage of `subject` reads."""
    layout = Layout(subject)
    writers = (_write_training, _write_perplexity, write_icl_result, _write_needle, _write_rouge, _write_judgements)
    for stage, write in zip(("train", "perplexity", "icl", "needle", "generate", "judge"), writers, strict=True):
        for job in stages()[stage].jobs(subject):
            write(subject, **job.wildcards)
    for run in subject.runs_of("benchmark"):
        _write_benchmark(subject, run)
    return layout


def names(subject: Experiment, kind: str) -> list[str]:
    """The tables or figures of an experiment."""
    return [item.name for _, item in items(subject, kind)]


def figure(subject: Experiment, name: str, scores: Any) -> Any:
    (found,) = [item for _, item in items(subject, "figure") if item.name == name]
    with drawing():
        return found.make(subject, scores)


def cell(table: Any, column: str, *keys: Any) -> Any:
    """The cell under `column` in the only row that starts with `keys`."""
    (row,) = [row for row in table.rows if tuple(found.value for found in row[: len(keys)]) == keys]
    return row[table.names.index(column)]


def row(table: Any, *keys: str) -> dict[str, str]:
    """The only row that starts with `keys`, as people read it."""
    (found,) = [texts for texts in table.texts() if tuple(texts[: len(keys)]) == keys]
    return dict(zip(table.names, found, strict=True))


def training_seed(run: str) -> int:
    """The training seed at the end of a run's name; 0 for a model."""
    return int(run.rsplit("-s", 1)[1]) if "-s" in run else 0


def _write_training(subject: Experiment, run: str) -> None:
    losses = [1.5 + 3 * math.exp(-step / 12) + 0.1 * math.sin(7 * step + training_seed(run)) for step in range(1, 41)]
    lines = [f'{{"step": {step}, "loss": {loss}, "learning_rate": 0.001}}' for step, loss in enumerate(losses, 1)]
    text = "\n".join([*lines, '{"step": 40, "eval_loss": 1.7}']) + "\n"
    write_text(Layout(subject).model(run) / "metrics.jsonl", text)
    write_json(Layout(subject).model(run) / "provenance.json", "model", {}, {})


def _write_perplexity(subject: Experiment, run: str) -> None:
    """As the stage writes it: a corpus of one domain has rows of that domain only, one of several also of `all`."""
    domains = domains_of(subject)
    rows = [
        perplexity_row(subject, run, domain, tokens, context)
        for domain in (["all", *domains] if domains else ["stories"])
        for tokens in LOSS_WITHOUT_CONTEXT
        for context in subject.perplexity.context_lengths
    ]
    write_json_lines(Layout.examples(Layout(subject).perplexity(run)), _document_losses(subject, rows))
    document = {"corpus": "world", "split": "test", "rows": rows, "skipped": [], "not_finite": [], "documents": 20}
    write_json(Layout(subject).perplexity(run), "perplexity", {**document, "too_short": 0}, {})


def _document_losses(subject: Experiment, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """20 documents of 32 tokens, whose losses differ by up to 0.1."""
    losses: dict[int, dict[str, float]] = {}
    for row in rows:
        losses.setdefault(row["context_length"], {}).setdefault(row["tokens"], row["loss"])
    return [
        {
            **{"context_length": context, "summary_length": None, "document": number, "domain": "stories"},
            **{"hash": number, "n": dict.fromkeys(by_class, 32)},
            "loss": {name: loss + 0.1 * math.sin(number) for name, loss in by_class.items()},
        }
        for context, by_class in losses.items()
        for number in range(20)
    ]


def perplexity_row(subject: Experiment, run: str, domain: str, tokens: str, context: int) -> dict[str, Any]:
    name = subject.name_of(run)
    loss = LOSS_WITHOUT_CONTEXT[tokens] - GAIN[name] * context / 100 + 0.1 * training_seed(run)
    return {
        **{"domain": domain, "context_length": context, "summary_length": None, "tokens": tokens},
        "loss": loss + LOSS_OF_DOMAIN.get(domain, 0.0),
        "perplexity": math.exp(loss + LOSS_OF_DOMAIN.get(domain, 0.0)),
        **{"loss_low": loss - 0.05, "loss_high": loss + 0.05, "n_tokens": 640, "n_documents": 20},
        "bits_per_byte": loss / math.log(2) / 4 if tokens == "all" else None,
        "summary_vectors": {"autocompressor": context // 50 * 4, "rmt": min(context, 4)}.get(name, 0),
    }


def write_icl_result(
    subject: Experiment, run: str, dataset: str, seed: int, dropped: Sequence[int] = (), **cells: dict[str, Any]
) -> Path:
    """A result and its records; the first examples are the right ones. `cells`: what is different in a setting."""
    count = ICL_EXAMPLES.get(dataset, 50)
    settings, records = {}, []
    for name, setting in settings_of(subject, run, dataset, seed).items():
        right = round(count * (ACCURACY[name] + (0.02 * seed if setting.largest_budget else 0.0)))
        answers = {number: int(number < right) for number in range(count) if number not in dropped}
        settings[name] = {**_icl_cell(setting, list(answers.values()), len(dropped)), **cells.get(name, {})}
        if "error" in settings[name]:
            settings[name] = {"error": settings[name]["error"]}
            continue
        records += [{"setting": name, "id": id, "label": 1, "prediction": found} for id, found in answers.items()]
    path = Layout(subject).icl(run, dataset, seed)
    write_json(path, "icl", {"examples": count, "dropped": list(dropped), "settings": settings}, {})
    write_json_lines(Layout.examples(path), records)
    return path


def _icl_cell(setting: Setting, answers: list[int], dropped: int) -> dict[str, Any]:
    tokens = len(answers) * 20 + sum(setting.compressed_tokens) + setting.plain_tokens
    cost = {"tokens": tokens, "naive_tokens": 4 * tokens, "seconds": 2.0, "examples_per_second": len(answers) / 2}
    return {
        **{"accuracy": sum(answers) / len(answers) if answers else None, "n": len(answers), "dropped": dropped},
        **{"asked": None, "demonstrations": 6 if setting.largest_budget else 0, "unfilled": 0, "over_budget": 0},
        **{"summary_vectors": 4 * len(setting.compressed_tokens), "cost": cost},
    }


def _write_needle(subject: Experiment, run: str) -> None:
    """Plain models have positions for the shorter length alone; deeper keys are found more often."""
    name = subject.name_of(run)
    steps = {"autocompressor": (2, 6), "rmt": (1, 1)}.get(name, (0,))
    rows = [
        {
            **{"length": length, "depth": depth, "n": 10, "loss": 2.0 - depth, "summary_vectors": 4 * step},
            "choice": FOUND[name] + 0.2 * depth - 0.1 * training_seed(run),
            "exact": FOUND[name] / 2,
        }
        for length, step in zip((60, 200), steps, strict=False)
        for depth in (0.0, 0.5)
    ]
    skipped = [] if len(steps) == 2 else [{"length": 200, "positions": 204, "model_positions": 128}]
    texts = [
        {**row, "example": number, "key": NEEDLE["keys"][number % 4], "choice": number < 10 * row["choice"] - 1e-6}
        for row in rows
        for number in range(10)
    ]
    write_json_lines(Layout.examples(Layout(subject).needle(run)), texts)
    write_json(Layout(subject).needle(run), "needle", {"rows": rows, "skipped": skipped, "failed": []}, {})


def _write_rouge(subject: Experiment, run: str, split: str) -> None:
    value = ROUGE_L[subject.name_of(run)] - (5.0 if split == "unseen" else 0.0)
    metrics = {"rouge1": value + 1, "rouge2": value - 10, "rougeL": value}
    path, name = Layout(subject).generations(run, split), subject.name_of(run)
    # Two of the outputs are those of the other runs; gist-1 has an example less.
    outputs = [
        {"id": number, "y_pred": name if number > 1 else "same", "y_true": "true"}
        for number in range(4 - (name == "gist-1"))
    ]
    write_csv(path, outputs, ["id", "y_pred", "y_true"])
    document = {
        **{"n": 64, **metrics, "exact_match": 12.5},
        "published": {metric: value - 0.1 for metric, value in metrics.items()},
        "intervals": {metric: [value - 4, value + 3] for metric, value in metrics.items()},
    }
    write_json(path.with_suffix(".json"), "rouge", document, {})


def _write_judgements(subject: Experiment, judge: str, a: str, b: str, split: str) -> None:
    """50 examples, 100 judgements of which four are errors: 60 wins, 12 ties and 24 losses; a win rate of 66 / 96."""
    counts = {"win": 60, "tie": 12, "lose": 24, "parse_error": 3, "api_error": 1, "unmatched": 2, "identical": 5}
    more = {"n": 50, "judgements": 100, "scored": 48, "both_orders": 48, "consistent": 36}
    shares = {"win_rate": 66 / 96, "tie_rate": 1 / 8, "interval": [0.6, 0.75], "length_controlled": 0.55}
    bias = {"decided": 80, "first_position_wins": 42, "longer_wins": 0.625, "length_a": 30.0, "length_b": 20.0}
    rest = {"sign_test": 0.012, "scores": {"e1": 1.0, "e2": 0.5}}
    layout, definition = Layout(subject), subject.judges[judge]
    path = layout.judgements(judge, a, b, split)
    document = {**counts, **more, **shares, **bias, **rest}
    write_json(path.with_suffix(".json"), "judgement_summary", document, {})
    splits = {
        name: [{"id": id, "instruction": "Do it.", "input": ""} for id in range(4)] for name in subject.generate.splits
    }
    write_json(layout.instructions("words"), "instructions", {"splits": splits}, {})
    answers = [subject.name_of(run) for run in (a, b)]
    judge_pairs(judge, definition, [Pair("2", "Do it.", "", *answers, "true")], path, hash_of(definition))


def _write_benchmark(subject: Experiment, run: str) -> None:
    """Compressing takes 40 ms a row, the prefix 30 ms; an answer 10, 10 + context / 16 and 10 + context / 8."""
    rows = [
        {
            **dict.fromkeys(METRICS, work / 1000),
            **dict(zip(("run", *AXES, "sample"), (run, mode, batch, context, 16, 1, "float32", sample), strict=True)),
            **{"wall_seconds": factor * work * batch**0.5 / 1000, "profiler_cuda_seconds": "", "note": ""},
            **{"compress_seconds": "" if made is None else made * batch / 1000, "flops": work * batch * 1e8},
            **{"peak_bytes": (20 + work / 10 * batch) * 2**20},
            **{"used_bytes": batch * (4 if mode == "compressed" else context) * 3072},
        }
        for batch in subject.benchmark.batch_sizes
        for context in subject.benchmark.context_lengths
        for mode, work, made in (
            ("compressed", 10, 40),
            ("prefix", 10 + context / 16, 30),
            ("none", 10 + context / 8, None),
        )
        for sample, factor in enumerate((1.0, 1.1, 3.0))
    ]
    rows[0]["note"] = OTHER_LOAD
    path = Layout(subject).benchmark(run)
    write_csv(path, rows, ["run", *AXES, "sample", *METRICS, "note"])
    checks = [{"check": "tokens", "mode": "prefix", "difference": 0.2, "agrees": run != "rmt-s0"}]
    facts = {"checks": checks, "largest_batch": {"none": 3, "prefix": 4, "compressed": 100}}
    write_json(path.with_suffix(".json"), "benchmark", {"by_dtype": {"float32": facts}}, {})
