"""A page to read judgements on: one HTML file without anything from elsewhere, made of what the store holds."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence

from synopsis.stages.judge.pairs import Pair
from synopsis.stages.judge.records import Judgement
from synopsis.stages.judge.statistics import verdict, verdicts

WINNERS = {"A": "A wins", "B": "B wins", "tie": "tie", "none": "not scored"}
STYLE = """
body{font:14px/1.5 system-ui,sans-serif;color:#1c1c1c;margin:0 auto;max-width:76rem;padding:0 1rem 3rem}
header{position:sticky;top:0;background:#fff;border-bottom:2px solid #1c1c1c;padding:.6rem 0}
h1{font-size:1.15rem;margin:0}h2{font-size:1rem;margin:0 0 .5rem}h3{font-size:.8rem;margin:.5rem 0 .1rem;color:#555}
label{margin-right:1.2rem;white-space:nowrap}article{border-bottom:1px solid #ccc;padding:1rem 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;background:#f4f4f4;padding:.4rem .6rem;margin:0;
max-height:24rem;overflow:auto;min-height:1.5em}.two{display:grid;grid-template-columns:1fr 1fr;gap:0 1rem}
.A .a,.B .b{background:#e2f0e2}.note{color:#555}@media(max-width:45rem){.two{grid-template-columns:1fr}}
"""
SCRIPT = """
const winner = document.getElementById("winner"), differ = document.getElementById("differ");
const articles = [...document.querySelectorAll("article")];
function show() {
  for (const it of articles)
    it.hidden = (winner.value && it.dataset.winner !== winner.value) || (differ.checked && !it.dataset.differ);
  document.getElementById("shown").textContent = articles.filter(it => !it.hidden).length + " of " + articles.length;
}
winner.onchange = differ.onchange = show;
show();
"""


def judgement_page(
    title: str,
    names: tuple[str, str],
    pairs: Sequence[Pair],
    judgements: Sequence[Judgement],
    labels: Mapping[str, str] | None = None,
) -> str:
    """The page of one comparison. names: of run a and b; labels: id -> choice of people, shown beside the judge's."""
    found = verdicts(judgements)
    counts = Counter(verdict(found.get(pair.id, [])) or "none" for pair in pairs)
    choices = "".join(f'<option value="{key}">{name} ({counts[key]})</option>' for key, name in WINNERS.items())
    articles = [_article(pair, found.get(pair.id, []), (labels or {}).get(pair.id)) for pair in pairs]
    differ = "the two orders" + (", or judge and labels," if labels else "") + " differ"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>\n<header><h1>{_text(title)}</h1>"
        f'<p class="note">A is {_text(names[0])}, B is {_text(names[1])}.</p>'
        f'<label>Winner <select id="winner"><option value="">any</option>{choices}</select></label>'
        f'<label><input type="checkbox" id="differ"> {differ}</label><span id="shown"></span> examples</header>\n'
        f"{''.join(articles)}<script>{SCRIPT}</script></body></html>\n"
    )


def _article(pair: Pair, judgements: Sequence[Judgement], label: str | None) -> str:
    winner = verdict(judgements) or "none"
    differ = len({one.state for one in judgements}) > 1 or (label is not None and label != winner)
    people = f"; labelled {WINNERS[label]}" if label else ""
    task = "\n".join(part for part in (pair.instruction, pair.input) if part)
    said = "".join(
        f"<h3>{'A' if one.order == 'ab' else 'B'} shown first: {WINNERS.get(one.state, one.state)}</h3>"
        + _block("not asked: identical outputs" if one.identical else one.error or one.answer)
        for one in judgements
    )
    return (
        f'<article class="{winner}" data-winner="{winner}" data-differ="{"yes" if differ else ""}">'
        f"<h2>{_text(pair.id)}: {WINNERS[winner]}{people}</h2>"
        + (f"<h3>Task</h3>{_block(task)}" if task else "")
        + f'<div class="two"><div><h3>A</h3>{_block(pair.answer_a, "a")}</div>'
        f"<div><h3>B</h3>{_block(pair.answer_b, 'b')}</div></div>"
        f'<details><summary class="note">true output</summary>{_block(pair.reference)}</details>'
        f"{said or '<h3>No judgement</h3>'}</article>\n"
    )


def _block(text: str, kind: str = "") -> str:
    return f'<pre class="{kind}">{_text(text)}</pre>'


def _text(text: str) -> str:
    """A text as HTML; control characters, which HTML does not allow, as the signs that Unicode has for them."""
    signs = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
    return html.escape(text).translate(signs)
