"""The figure of the gist paper by number of gist tokens, from the regenerated cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synopsis.paper.published import Cell
from synopsis.reporting.style import BLUE, VERMILION, handle, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"gist_tokens_rouge": "ROUGE-L (0 to 100)", "gist_tokens_win_rates": "ChatGPT win rate (%)"}
LOOKS = {"LLaMA-7B": (VERMILION, "o", -0.09), "FLAN-T5-XXL": (BLUE, "^", 0.09)}
KINDS = {"neg_control": "neg.", "gist 1": "1", "gist 2": "2", "gist 5": "5", "gist 10": "10", "pos_control": "pos."}


def gist_tokens_figure(cells: list[Cell]) -> Figure:
    """ROUGE-L and win rates against the positive control by number of gist tokens, with 95 % intervals.

    The lines join numbers of gist tokens; the controls stand apart.
    """
    splits = list(dict.fromkeys(cell.column for cell in cells if cell.table == "gist_tokens_rouge"))
    figure, panels = new_figure(2 * len(splits), 2.4, 2.3, most_columns=len(splits))
    of = {(cell.table, cell.row, cell.column): cell for cell in cells}
    for place, (panel, (table, split)) in enumerate(
        zip(panels, ((table, split) for table in PANELS for split in splits), strict=True)
    ):
        for model, (colour, marker, shift) in LOOKS.items():
            points = {}
            for x, kind in enumerate(KINDS):
                cell = of.get((table, f"{model} {kind}", split))
                if cell is not None and cell.value is not None and cell.interval is not None:
                    low, high = cell.interval
                    errors = [[max(0, cell.value - low)], [max(0, high - cell.value)]]
                    panel.errorbar(
                        [x + shift], [cell.value], yerr=errors, color=colour, marker=marker, linestyle="none"
                    )
                    points[kind] = (x + shift, cell.value)
            panel.plot(
                *zip(*(point for kind, point in points.items() if kind.startswith("gist")), strict=True), color=colour
            )
        if table == "gist_tokens_win_rates":
            panel.axhline(50, color="k", linewidth=0.8, linestyle=":")
        panel.set_xticks(range(len(KINDS)), list(KINDS.values()))
        panel.set_xlim(-0.5, len(KINDS) - 0.5)
        panel.grid(axis="x", visible=False)
        if place < len(splits):
            panel.set_title(split)
        else:
            panel.set_xlabel("gist tokens, and controls")
        if place % len(splits) == 0:
            panel.set_ylabel(PANELS[table])
    legend_below(figure, [handle(name, color=colour, marker=marker) for name, (colour, marker, _) in LOOKS.items()])
    return figure
