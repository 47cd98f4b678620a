"""Which files the score stage reads and the report stage writes: pure functions of the experiment.

The Snakefile reads this at every start, so nothing heavy is imported here.

    report_files(experiment)["figures"]        # [Path('results/demo/figures/perplexity.svg'), ...]
    report_item("results/demo/tables/icl.html")  # caption, category and labels for Snakemake's report(), else None
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from synopsis.artifacts import Layout
from synopsis.config.data import TextCorpus
from synopsis.config.experiment import Experiment

TABLE_FORMATS = ("csv", "md", "tex", "html")
FIGURE_FORMATS = ("svg", "pdf", "png")
TABLES_ALONE = ("perplexity_domains", "perplexity_details", "icl_speed")
"""Tables without a figure of their name."""


@dataclass(frozen=True)
class ReportItem:
    """How one file appears in Snakemake's HTML report.

    caption: name of the file in workflow/report; category: heading in the menu; labels: what tells the entries of a
    category apart.
    """

    caption: str
    category: str
    labels: dict[str, str] = field(default_factory=dict)


def _item(kind: str, name: str, category: str, content: str) -> ReportItem:
    # One label alone: with two, the report makes a switch of one, behind which half the results are hidden.
    return ReportItem(f"{kind}-{name}.rst", category, {"result": f"{content} ({kind})"})


REPORT_ITEMS: dict[str, ReportItem] = {
    "tables/perplexity.html": _item("table", "perplexity", "Perplexity", "by context length"),
    "tables/perplexity_domains.html": _item("table", "perplexity-domains", "Perplexity", "by domain"),
    "tables/perplexity_details.html": _item("table", "perplexity-details", "Perplexity", "in detail"),
    "tables/icl.html": _item("table", "icl", "In-context learning", "accuracy"),
    "tables/icl_speed.html": _item("table", "icl-speed", "In-context learning", "speed"),
    "tables/needle.html": _item("table", "needle", "Needle", "keys found"),
    "tables/rouge.html": _item("table", "rouge", "Instructions", "ROUGE"),
    "tables/judgements.html": _item("table", "judgements", "Instructions", "judgements"),
    "tables/benchmark.html": _item("table", "benchmark", "Time and memory", "cached against uncached"),
    "figures/perplexity.svg": _item("figure", "perplexity", "Perplexity", "by context length"),
    "figures/perplexity_vectors.svg": _item("figure", "perplexity-vectors", "Perplexity", "by summary vectors"),
    "figures/icl.svg": _item("figure", "icl", "In-context learning", "accuracy"),
    "figures/needle.svg": _item("figure", "needle", "Needle", "keys found"),
    "figures/rouge.svg": _item("figure", "rouge", "Instructions", "ROUGE"),
    "figures/judgements.svg": _item("figure", "judgements", "Instructions", "judgements"),
    "figures/benchmark.svg": _item("figure", "benchmark", "Time and memory", "cached against uncached"),
    "figures/training.svg": _item("figure", "training", "Training", "loss curves"),
}
"""File below results/<experiment> -> its place in the HTML report. Tables appear as HTML
(a CSV file would be offered as a download only), figures as SVG."""


def report_item(path: str | Path) -> ReportItem | None:
    """The place of a file in the HTML report; None for the formats that are not shown there."""
    path = Path(path)
    return REPORT_ITEMS.get(f"{path.parent.name}/{path.name}")


def table_names(experiment: Experiment) -> list[str]:
    """The tables of an experiment: one for each section that measures at least one run."""
    names = []
    if experiment.runs_of("perplexity"):
        names.append("perplexity")
        if len(domains_of(experiment)) > 1:
            names.append("perplexity_domains")
        names.append("perplexity_details")
    if experiment.runs_of("icl"):
        names += ["icl", "icl_speed"]
    if experiment.runs_of("needle"):
        names.append("needle")
    if experiment.runs_of("generate"):
        names.append("rouge")
    if experiment.judged_pairs():
        names.append("judgements")
    if experiment.runs_of("benchmark"):
        names.append("benchmark")
    return names


def figure_names(experiment: Experiment) -> list[str]:
    """The figures of an experiment: those of its tables, and more of what has summary vectors or is trained."""
    names = [name for name in table_names(experiment) if name not in TABLES_ALONE]
    methods = {experiment.method_of(run) for run in experiment.runs_of("perplexity")}
    if methods & {"autocompressor", "rmt"}:
        names.insert(names.index("perplexity") + 1, "perplexity_vectors")
    return [*names, "training"] if runs_with_metrics(experiment) else names


def report_files(experiment: Experiment) -> dict[str, list[Path]]:
    """What the report stage writes, by kind (`tables`, `figures`)."""
    layout = Layout(experiment)
    return {
        "tables": [layout.tables / f"{n}.{suffix}" for n in table_names(experiment) for suffix in TABLE_FORMATS],
        "figures": [layout.figures / f"{n}.{suffix}" for n in figure_names(experiment) for suffix in FIGURE_FORMATS],
    }


def domains_of(experiment: Experiment) -> list[str]:
    """Domains of the evaluated corpus, where the configuration names them."""
    corpus = experiment.corpora.get(experiment.perplexity.corpus) if experiment.perplexity else None
    return list(corpus.domains) if isinstance(corpus, TextCorpus) else []


def runs_with_metrics(experiment: Experiment) -> list[str]:
    """Runs that are trained here and so leave a `metrics.jsonl`."""
    scratch = [name for name, model in experiment.models.items() if model.architecture is not None]
    return [*scratch, *experiment.trained_runs]


def judgement_summaries(experiment: Experiment) -> dict[tuple[str, str, str, str], Path]:
    """(judge, run a, run b, split) -> summary of the judgements."""
    if experiment.judge is None or experiment.generate is None:
        return {}
    layout = Layout(experiment)
    return {
        (judge, a, b, split): layout.judgements(judge, a, b, split).with_suffix(".json")
        for judge in experiment.judge.judges
        for a, b in experiment.judged_pairs()
        for split in experiment.generate.splits
    }


def icl_records(result: Path) -> Path:
    """The records of the single examples that lie beside a result of in-context learning."""
    return result.with_suffix(".examples.jsonl.gz")


def score_inputs(experiment: Experiment) -> list[Path]:
    """Every artifact that the score stage reads; a trained model stands for the `metrics.jsonl` inside it."""
    layout = Layout(experiment)
    icl, generate = experiment.icl, experiment.generate
    return [
        *(layout.model(run) for run in runs_with_metrics(experiment)),
        *(layout.perplexity(run) for run in experiment.runs_of("perplexity")),
        *(
            path
            for run in experiment.runs_of("icl")
            for dataset in (icl.datasets if icl else [])
            for seed in experiment.evaluation_seeds
            for path in (layout.icl(run, dataset, seed), icl_records(layout.icl(run, dataset, seed)))
        ),
        *(layout.needle(run) for run in experiment.runs_of("needle")),
        *(
            layout.generations(run, split).with_suffix(".json")
            for run in experiment.runs_of("generate")
            for split in (generate.splits if generate else [])
        ),
        *judgement_summaries(experiment).values(),
        *(layout.benchmark(run) for run in experiment.runs_of("benchmark")),
    ]
