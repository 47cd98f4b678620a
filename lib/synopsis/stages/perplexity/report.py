"""Perplexity in the scores, tables and figures.

A reading is a length of context and the number of summary tokens a step, where they are fewer than the compressor has.
One without finite losses has no number (never zero), and its message is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synopsis.config.data import TextCorpus
from synopsis.reporting.items import figure, table
from synopsis.reporting.reading import Result, json_lines, read_result
from synopsis.reporting.rendering import Cell, Column, Table, at_most, cell_text, counts_text
from synopsis.reporting.statistics import SKIPPED, Estimate, Group, distinct, failures, groups, skipped, together
from synopsis.stages.perplexity.section import STAGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from synopsis.config.experiment import Experiment
    from synopsis.reporting.style import Style

METRICS = ("loss", "loss_low", "loss_high", "perplexity", "bits_per_byte", "summary_vectors", "n_documents")
TOO_SHORT = "too_short"
MOST_UNUSABLE = 6
TOKEN_TITLES = {
    "all": "all tokens",
    "dependent": "tokens that only context predicts",
    "topic": "topic words",
    "recall": "recalled words",
}


# --------------------------------------------------------------------------------------------------------- scores


def rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Every number of every run; what is not a number has a `message` beside.

    skipped: the positions that a reading would have needed; its count is those that the model has. too_short: documents
    that were left out; its count is those that were measured. ArtifactError when a result is missing or damaged.
    """
    for job in STAGE.jobs(experiment):
        document = read_result(job.record, STAGE.kind)
        common = {**job.wildcards, "dataset": document["corpus"], "split": document["split"]}
        for found in document.parts("rows"):
            place = {axis: found[axis] for axis in STAGE.axes}
            yield from ({**common, **place, **row} for row in _numbers(found, document["not_finite"]))
        of_all = {**common, "domain": "all"}
        for found in document.parts("skipped"):
            place = {axis: found[axis] for axis in ("context_length", "summary_length")}
            value, n = found["positions"], found["model_positions"]
            yield {**of_all, **place, "tokens": "all", "metric": SKIPPED, "value": value, "n": n}
        yield {**of_all, "metric": TOO_SHORT, "value": document["too_short"], "n": document["documents"]}


def _numbers(found: Result, not_finite: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for metric in METRICS:
        row = {"metric": metric, "value": found[metric], "n": found["n_tokens"]}
        if metric == "loss" and row["value"] is None:
            yield {**row, "message": _message(found, not_finite)}
        elif metric != "bits_per_byte" or row["value"] is not None:  # bytes are known of all tokens together alone
            yield row


def _message(found: Result, not_finite: Sequence[Mapping[str, Any]]) -> str:
    keys = ("context_length", "summary_length")
    of_row = [
        record
        for record in not_finite
        if found["domain"] in ("all", record["domain"]) and all(record[key] == found[key] for key in keys)
    ]
    first = f", the first in document {of_row[0]['document']} (domain {of_row[0]['domain']})" if of_row else ""
    return f"losses that are not finite in {len(of_row)} of its documents{first}"


def examples(outputs: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Losses of the documents of all domains, from what one job wrote; those that are not finite are left out."""
    keys = ("context_length", "summary_length", "document", "hash", "n", "loss")
    for record in json_lines(outputs[1], keys, STAGE.name):
        text = {name: record[name] for name in keys[:2]} | {"id": record["document"], "truth": record["hash"]}
        for tokens, loss in record["loss"].items():
            if loss is not None:
                yield {**text, "tokens": tokens, "metric": "loss", "value": loss, "weight": record["n"][tokens]}


def readings(scores: pd.DataFrame) -> list[Group]:
    """A group for each domain, class of tokens, reading and compressor."""
    keys = ("domain", "tokens", "context_length", "summary_length", "compressor")
    return together(groups(scores[scores["metric"].isin(METRICS)], STAGE.name, *keys), "domain", "tokens")


def overall(scores: pd.DataFrame) -> list[Group]:
    """The readings over all domains: those of a domain `all`, or every one of a corpus with one domain alone."""
    found = readings(scores)
    return [group for group in found if group.domain == "all"] or found


def most_vectors(found: Sequence[Group]) -> list[Group]:
    """Of each compressor the readings with all its summary tokens, or the most that were measured."""
    most: dict[str, int | None] = {}
    for group in found:
        if group.context_length:
            numbers = (most.get(group.compressor, 0), group.summary_length)
            most[group.compressor] = None if None in numbers else max(filter(None, numbers))
    return [group for group in found if not group.context_length or group.summary_length == most[group.compressor]]


def domains_of(experiment: Experiment) -> list[str]:
    """Domains of the evaluated corpus, where the configuration names them."""
    corpus = experiment.corpora.get(experiment.perplexity.corpus)
    return list(corpus.domains) if isinstance(corpus, TextCorpus) else []


def headline(experiment: Experiment, scores: pd.DataFrame) -> dict[str, float | None]:
    numbers: dict[str, float | None] = {}
    for group in overall(scores):
        key = f"perplexity/{group.compressor}/context={group.context_length}/tokens={group.tokens}"
        if group.summary_length is not None:
            key += f"/summary_length={group.summary_length}"
        numbers |= {f"{key}/{metric}": group.mean(metric) for metric in ("loss", "bits_per_byte")}
    return numbers


def findings(experiment: Experiment, scores: pd.DataFrame) -> list[str]:
    """What each model and compressor gains from the longest context that it was measured with."""
    found, sentences = most_vectors(overall(scores)), []
    classes = distinct(found, "tokens")
    tokens = "dependent" if "dependent" in classes else classes[0]
    for compressor in distinct(found):
        line = [group for group in _line(found, tokens, compressor) if group.mean("loss") is not None]
        if len(line) > 1:
            vectors = _vectors(line[-1])
            read = f", read as {vectors:,} summary vectors" if vectors else ""
            sentences.append(
                f"{compressor}: loss of {TOKEN_TITLES.get(tokens, tokens)} {_loss_text(line[0])} nats after "
                f"{line[0].context_length:,} tokens of context, {_loss_text(line[-1])} after "
                f"{line[-1].context_length:,}{read}."
            )
    return sentences


def _loss_text(group: Group) -> str:
    loss = Cell.of(group.estimate("loss"))
    return cell_text(loss if loss.deviation is not None else replace(loss, interval=_interval(group)), 3)


# --------------------------------------------------------------------------------------------------------- tables


@table("perplexity", "by context length")
def perplexity_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Perplexity of the last tokens of a document, by the number of tokens of context read before them. With corpora of
    the generated language there are rows for classes of tokens: "dependent" ones can be predicted from context only,
    and are "topic" words or "recall" of what was said before. ± is the standard deviation over training seeds, where
    there are several.
    """
    return _by_context("Perplexity by context length", "tokens", overall(scores), scores)


@table("perplexity_domains", "by domain", when=lambda experiment: len(domains_of(experiment)) > 1)
def perplexity_domain_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    Perplexity of the last tokens of a document, by domain of the corpus and number of tokens of context read before
    them. ± is the standard deviation over training seeds, where there are several.
    """
    domains = domains_of(experiment)
    found = [group for group in readings(scores) if group.domain in domains and group.tokens == "all"]
    return _by_context("Perplexity by domain and context length", "domain", found, scores)


def _by_context(title: str, key: str, found: Sequence[Group], scores: pd.DataFrame) -> Table:
    """A row for each value of `key` and compressor."""
    lines: dict[tuple[str, str], dict[int, Group]] = {}
    for group in most_vectors(found):
        lines.setdefault((getattr(group, key), group.compressor), {})[group.context_length] = group
    contexts = sorted({context for line in lines.values() for context in line})

    def perplexity(context: int) -> Column:
        def value(line: dict[int, Group]) -> Estimate:
            return line[context].estimate("perplexity") if context in line else Estimate()

        return Column(f"{context:,} tokens", value)

    def first(line: dict[int, Group]) -> Group:
        return next(iter(line.values()))

    columns = [
        Column(key.capitalize(), lambda line: getattr(first(line), key), key=True),
        Column("Compressor", lambda line: first(line).compressor, key=True),
        *map(perplexity, contexts),
        Column("Scored tokens", lambda line: counts_text(n for group in line.values() for n in group.counts("loss"))),
        Column("Runs", lambda line: max(group.estimate("perplexity").count for group in line.values())),
    ]
    return Table(title, columns, lines.values(), remarks=_remarks(scores))


@table("perplexity_details", "in detail")
def perplexity_detail_table(experiment: Experiment, scores: pd.DataFrame) -> Table:
    """
    All scored tokens. Context: tokens read before them, by compressors in steps that give summary vectors, by plain
    models as they are (no vectors). Loss: nats per token with the 95 % interval of a bootstrap over documents. Bits per
    byte: of the UTF-8 bytes of the text of the scored tokens, so that tokenizers can be compared. ± is the standard
    deviation over training seeds, where there are several.
    """
    found = together((group for group in overall(scores) if group.tokens == "all"), "compressor")
    place = {name: number for number, name in enumerate(distinct(found))}
    found.sort(key=lambda group: (place[group.compressor], group.context_length, group.summary_length or 0))
    columns = [
        Column("Compressor", lambda group: group.compressor, key=True),
        Column("Context", lambda group: group.context_length, key=True),
        Column("Summary vectors", _vectors),
        Column("Loss", lambda group: Cell(*_mean_and_deviation(group), interval=_interval(group)), digits=3),
        Column("Perplexity", lambda group: group.estimate("perplexity")),
        Column("Bits per byte", lambda group: group.estimate("bits_per_byte"), digits=3),
        Column("Scored tokens", lambda group: counts_text(group.counts("loss")), brief=False),
        Column("Documents", lambda group: counts_text(group.whole("n_documents")), brief=False),
        Column("Runs", lambda group: group.estimate("loss").count),
    ]
    title = "Perplexity in detail: intervals, bits per byte, summary vectors"
    return Table(title, columns, found, remarks=_remarks(scores))


def _vectors(group: Group) -> int | None:
    mean = group.mean("summary_vectors")
    return None if mean is None else round(mean)


def _mean_and_deviation(group: Group) -> tuple[float | None, float | None]:
    loss = group.estimate("loss")
    return loss.mean, loss.deviation


def _interval(group: Group) -> tuple[float, float] | None:
    low, high = group.mean("loss_low"), group.mean("loss_high")
    return None if low is None or high is None else (low, high)


def _remarks(scores: pd.DataFrame) -> list[str]:
    """Which contexts a model could not read, which documents were too short, and which losses were unusable."""
    remarks = [
        f"{compressor}: not measured after {contexts} tokens of context, which need more than the model's {positions} "
        "positions."
        for compressor, contexts, positions in skipped(scores, STAGE.name, "context_length")
    ]
    short = scores[(scores["stage"] == STAGE.name) & (scores["metric"] == TOO_SHORT)]
    if short["value"].max() > 0:
        left_out = f"{int(short['value'].max()):,} documents are shorter than the longest reading and left out"
        remarks.append(f"{left_out}; {short['n'].max():,} are not.")
    unusable = (
        f"{found['run']}, context={found['context_length']}: {found['message']}."
        for found in failures(scores, STAGE.name)
    )
    return [*remarks, *at_most(unusable, MOST_UNUSABLE, "more readings without finite losses.")]


# -------------------------------------------------------------------------------------------------------- figures


@figure("perplexity", "by context length")
def perplexity_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Loss of the last tokens of a document, by the number of tokens read before them; the contexts stand at equal
    distances. A panel for each class of tokens. Bands: 95 % interval over documents. Dots, where a compressor has
    several training seeds: one each.
    """
    from synopsis.reporting.style import legend_below, styles, subject_handles

    found = most_vectors(overall(scores))
    contexts, looks = sorted(distinct(found, "context_length")), styles(experiment)
    drawn, panels = _panels(found)
    for tokens, panel in panels.items():
        for compressor in distinct(found):
            line = _line(found, tokens, compressor)
            places = [contexts.index(group.context_length) for group in line]
            _loss_line(panel, places, line, looks[compressor], looks[compressor].line)
        panel.set_xticks(range(len(contexts)), [f"{context:,}" for context in contexts])
        panel.set_xlabel("context (tokens)")
    legend_below(drawn, subject_handles(looks, distinct(found)))
    return drawn


def _compresses(experiment: Experiment) -> bool:
    return any(experiment.subject(run).compresses for run in experiment.runs_of(STAGE.name))


@figure("perplexity_vectors", "by summary vectors", when=_compresses)
def perplexity_vectors_figure(experiment: Experiment, scores: pd.DataFrame) -> Figure:
    """
    Loss of the last tokens of a document, by the number of summary vectors read before them. The small numbers are the
    tokens of context that the vectors stand for. Where fewer summary tokens were used than the compressor has, each
    number has a line. A panel for each class of tokens. Bands: 95 % interval over documents. Dots, where a compressor
    has several training seeds: one each.
    """
    from synopsis.reporting.style import LINES, handle, legend_below, styles

    found = overall(scores)
    compressing = {group.compressor for group in found if group.mean("summary_vectors")}
    found = [group for group in found if group.compressor in compressing]
    variants = list(dict.fromkeys((g.compressor, g.summary_length) for g in found if g.mean("summary_vectors")))
    looks, lines = styles(experiment), dict[tuple[str, int | None], str]()
    for compressor, fewer in variants:
        # The compressor's own line for all its summary tokens, the others in turn for fewer.
        others = [line for line in LINES if line != looks[compressor].line]
        taken = sum(name == compressor and number is not None for name, number in lines)
        lines[compressor, fewer] = looks[compressor].line if fewer is None else others[taken % len(others)]
    drawn, panels = _panels(found)
    ticks = sorted({_vectors(group) or 0 for group in found})
    for tokens, panel in panels.items():
        for number, (compressor, fewer) in enumerate(variants):
            line = [g for g in _line(found, tokens, compressor) if g.summary_length == fewer or not g.context_length]
            places = [group.mean("summary_vectors") or 0.0 for group in line]
            _loss_line(panel, places, line, looks[compressor], lines[compressor, fewer])
            _name_contexts(panel, places, line, looks[compressor].colour, left=number % 2 == 1)
        panel.margins(y=0.1)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.set_xlabel("summary vectors")
    handles = [
        handle(
            compressor if fewer is None else f"{compressor}, {fewer} a step",
            color=looks[compressor].colour,
            marker=looks[compressor].marker,
            linestyle=lines[compressor, fewer],
        )
        for compressor, fewer in variants
    ]
    look = {"color": "k", "linestyle": "none", "marker": "$10$", "markersize": 9, "markeredgewidth": 0}
    legend_below(drawn, [*handles, handle("small numbers: context (tokens)", **look)])
    return drawn


def _panels(found: Sequence[Group]) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each class of tokens, with its title and the name of the loss."""
    from synopsis.reporting.style import new_figure

    classes = distinct(found, "tokens")
    drawn, panels = new_figure(len(classes), 3.3, 2.4, most_columns=2)
    for panel, tokens in zip(panels, classes, strict=True):
        panel.set_title(TOKEN_TITLES.get(tokens, tokens))
        panel.set_ylabel("loss (nats per token)")
    return drawn, dict(zip(classes, panels, strict=True))


def _line(found: Sequence[Group], tokens: str, compressor: str) -> list[Group]:
    line = [group for group in found if (group.tokens, group.compressor) == (tokens, compressor)]
    return sorted(line, key=lambda group: group.context_length)


def _loss_line(panel: Axes, places: Sequence[float], line: Sequence[Group], style: Style, dashes: str) -> None:
    """Mean loss, the loss of each training seed where there are several, and the interval over documents."""
    import numpy as np

    low, high = np.array([_interval(group) or (None, None) for group in line], dtype=float).reshape(-1, 2).T
    middle = np.array([group.mean("loss") for group in line], dtype=float)
    panel.plot(places, middle, color=style.colour, marker=style.marker, linestyle=dashes)
    panel.fill_between(places, low, high, color=style.colour, alpha=0.12, linewidth=0)
    for place, group in zip(places, line, strict=True):
        losses = group.values("loss")
        if len(losses) > 1:
            panel.scatter([place] * len(losses), losses, s=6, color=style.colour, alpha=0.6, linewidths=0)


def _name_contexts(panel: Axes, places: Sequence[float], line: Sequence[Group], colour: str, left: bool) -> None:
    """The contexts beside their points."""
    for place, group in zip(places, line, strict=True):
        loss = group.mean("loss")
        if group.context_length and loss is not None:
            side: dict[str, Any] = {"xytext": (-5, -9), "ha": "right"} if left else {"xytext": (4, 3), "ha": "left"}
            side |= {"textcoords": "offset points", "fontsize": 6.5, "color": colour}
            panel.annotate(f"{group.context_length:,}", (place, loss), **side)
