"""The histogram and the vocabulary's tables of the page."""

from __future__ import annotations

import math

import numpy as np

from curation.base.markup import text
from curation.config import CurationConfig
from curation.tools.report.survey import Candidate, Survey

TABLE_ROWS, DROPPED_ROWS = 80, 24
WIDEST_HISTOGRAM = 24  # concepts; longer lists share the last bar


def histogram(survey: Survey) -> str:
    """Images by their number of concepts, before and after, as pairs of bars and as a table."""
    before, after = folded(survey.before), folded(survey.after)
    largest, rows = max(int(np.max([before, after])), 1), max(survey.rows, 1)
    labels = [str(number) for number in range(len(before))]
    if len(survey.before) > len(before):
        labels[-1] += "+"
    wide, high, step = 1000, 210, 1000 / len(before)
    bar = min(step * 0.38, 30)
    drawn = []
    for number, label in enumerate(labels):
        middle = (number + 0.5) * step
        for kind, value, left in (("before", before[number], middle - bar), ("after", after[number], middle)):
            tall = high * value / largest
            drawn.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{high - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" rx="2">'
                f"<title>{label} concepts: {value:,} images</title></rect>"
            )
        drawn.append(f'<text x="{middle:.1f}" y="{high + 24}">{label}</text>')
    axis = "".join(
        f'<path class="tick" d="M0 {height:.1f}H{wide}"/><text class="tick" x="-10" y="{height + 5:.1f}">{value:,}</text>'
        for value, height in ((value, high - high * value / largest) for value in ticks(largest))
    )
    in_captions, in_archives = mean(survey.before), mean(survey.after)
    cells = "".join(
        f'<tr><th scope="row">{label}</th><td>{b:,}</td><td>{b / rows:.1%}</td><td>{a:,}</td><td>{a / rows:.1%}</td></tr>'
        for label, b, a in zip(labels, before.tolist(), after.tolist(), strict=True)
    )
    return f"""<figure class="histogram">
<figcaption><span><i class="swatch before"></i>captions, {in_captions:.2f} on average</span>
<span><i class="swatch after"></i>archives, {in_archives:.2f} on average</span></figcaption>
<svg viewBox="-90 -12 {wide + 90} {high + 72}" role="img" aria-label="Histogram of concepts per image: captions hold
{in_captions:.2f} on average, archives {in_archives:.2f}; the numbers are in the table below">
{axis}<line x1="0" y1="{high}" x2="{wide}" y2="{high}"/>{"".join(drawn)}
<text x="{wide / 2:.0f}" y="{high + 50}">concepts of an image</text>
<text class="tick" x="-10" y="{high + 24}">images</text></svg>
</figure>
<details><summary>The numbers</summary><div class="scroll"><table id="histogram-table">
<thead><tr><th scope="col">concepts</th><th scope="col">captions</th><th scope="col">share</th><th scope="col">archives</th>
<th scope="col">share</th></tr></thead><tbody>{cells}</tbody></table></div></details>"""


def ticks(largest: int) -> list[int]:
    """Round numbers up to the largest, two to five of them where there are.

    >>> ticks(1287), ticks(72), ticks(3)
    ([500, 1000], [20, 40, 60], [1, 2, 3])
    """
    step = next(
        step for power in range(20) for step in (10**power, 2 * 10**power, 5 * 10**power) if largest // step <= 5
    )
    return list(range(step, largest + 1, step))


def folded(counts: np.ndarray) -> np.ndarray:
    """Counts of which the last holds all that lie beyond the widest histogram."""
    kept = counts[: WIDEST_HISTOGRAM + 1].copy()
    kept[-1] += counts[WIDEST_HISTOGRAM + 1 :].sum()
    return kept


def mean(counts: np.ndarray) -> float:
    """The mean number of concepts."""
    return float((counts * np.arange(len(counts))).sum() / max(counts.sum(), 1))


def vocabulary(candidates: list[Candidate], survey: Survey, config: CurationConfig) -> str:
    """How visual every concept is, and how often it is said and found."""
    kept = [candidate for candidate in candidates if candidate.kept]
    dropped = [candidate for candidate in candidates if not candidate.kept]
    where = "nouns of the captions" if config.vocabulary.built else "concepts of a file"
    limit = config.vocabulary.smallest_visualness
    rule = f", with a visualness of at least {limit:g}" if limit is not None else ""
    most = max((survey.archived.get(candidate.concept, 0) for candidate in kept), default=1) or 1
    visual = max((abs(c.visualness) for c in candidates if math.isfinite(c.visualness)), default=1.0) or 1.0
    rows = []
    for candidate in kept[:TABLE_ROWS]:
        mentioned = survey.mentioned.get(candidate.concept, 0)
        archived = survey.archived.get(candidate.concept, 0)
        rows.append(
            f'<tr><th scope="row">{text(candidate.concept, 60)}</th><td>{candidate.count:,}</td>'
            f'<td class="wide">{span("found", archived / most)}{span("said", mentioned / most)}'
            f"<span>{archived:,}</span></td>"
            f'<td class="wide">{visualness(candidate, visual)}</td></tr>'
        )
    more = (
        f'<p class="quiet">and {len(kept) - TABLE_ROWS:,} more in vocabulary.csv</p>' if len(kept) > TABLE_ROWS else ""
    )
    return f"""<p>{len(kept):,} concepts: {where}{rule}. Visualness says how much closer a concept is to images whose
captions mention it than to other images, in standard deviations.</p>
<div class="scroll"><table class="vocabulary">
<thead><tr><th scope="col">concept</th><th scope="col">captions</th>
<th scope="col">archives <span class="quiet">(dark: said by the caption)</span></th>
<th scope="col">visualness</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>{more}
{left_out(dropped, visual)}"""


def left_out(dropped: list[Candidate], visual: float) -> str:
    """The candidates that did not enter the vocabulary."""
    if not dropped:
        return ""
    reasons = any(candidate.reason for candidate in dropped)
    rows = "".join(
        f'<tr><th scope="row">{text(candidate.concept, 60)}</th><td>{candidate.count:,}</td>'
        f'<td class="wide">{visualness(candidate, visual)}</td>'
        f"{f'<td>{text(candidate.reason, 60)}</td>' if reasons else ''}</tr>"
        for candidate in dropped[:DROPPED_ROWS]
    )
    more = len(dropped) - DROPPED_ROWS
    rest = f'<p class="quiet">and {more:,} more in vocabulary.csv</p>' if more > 0 else ""
    why = '<th scope="col">why</th>' if reasons else ""
    return f"""<h3>Left out</h3>
<div class="scroll"><table class="vocabulary dropped"><thead><tr><th scope="col">word</th><th scope="col">captions</th>
<th scope="col">visualness</th>{why}</tr></thead><tbody>{rows}</tbody></table></div>{rest}"""


def visualness(candidate: Candidate, largest: float) -> str:
    """A bar and the number."""
    if not math.isfinite(candidate.visualness):
        return '<span class="quiet">not measured</span>'
    kind = "visual" if candidate.kept else "dull"
    return f"{span(kind, max(candidate.visualness, 0) / largest)}<span>{candidate.visualness:.2f}</span>"


def span(kind: str, share: float) -> str:
    """A bar of a share of the cell's width."""
    return f'<i class="{kind}" style="--share:{min(share, 1):.4f}"></i>'
