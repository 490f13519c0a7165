"""The vocabulary with visualness and noun share, to keep, drop and rename its concepts."""

from __future__ import annotations

from collections.abc import Sequence

from curation.base.markup import text
from curation.tools.browse.edits import SHOWS, SORTS, Entry
from curation.tools.browse.pages.layout import Site, pager, slice_of, tabs

ROWS = 100  # of a page
NUMBERS = {"count": "captions", "noun_share": "noun share", "visualness": "visualness"}


def vocabulary(
    site: Site, entries: Sequence[Entry], page: int, show: str, sort: str, query: str, path: str, edited: int
) -> str:
    """The table. entries: those of the view, in its order; path: where edits are written."""
    asked: dict[str, object] = {"show": show, "sort": sort, "q": query}
    filters = f"""<form class="filter" action="{site.url("vocabulary")}">
<label for="filter">Filter</label> <input id="filter" name="q" value="{text(query)}" maxlength="100">
<input type="hidden" name="show" value="{show}"><input type="hidden" name="sort" value="{sort}">
<button>Filter</button></form>"""
    rows = "".join(row(site, entry, {**asked, "page": page}) for entry in entries[slice_of(page, ROWS)])
    heads = "".join(f'<th scope="col" class="number">{label}</th>' for label in NUMBERS.values())
    body = f"""{tabs(site, "vocabulary", asked, "show", SHOWS)}
{tabs(site, "vocabulary", asked, "sort", SORTS)}
{filters}
<p class="quiet">{len(entries):,} concepts. {edited:,} edited: {where(path, edited)}</p>
<div class="scroll"><table class="vocabulary">
<thead><tr><th scope="col">concept</th>{heads}<th scope="col">state</th><th scope="col">change</th></tr></thead>
<tbody>{rows}</tbody></table></div>
{pager(site, "vocabulary", asked, page, len(entries), ROWS)}"""
    return site.page("Vocabulary", body)


def where(path: str, edited: int) -> str:
    """Which file has the edits, and how a run takes it."""
    if not edited:
        return f"keep, drop and rename write <code>{text(path, 400)}</code>."
    return f"in <code>{text(path, 400)}</code>; a run takes them as <code>vocabulary.source</code>."


def row(site: Site, entry: Entry, asked: dict[str, object]) -> str:
    """One concept with its forms."""
    cells = "".join(
        f'<td class="number" data-label="{label}">{text(entry.columns.get(name) or "–", 20)}</td>'
        for name, label in NUMBERS.items()
    )
    reason = text(entry.columns.get("reason", ""), 80)
    state = "kept" if entry.kept else f"left out{': ' + reason if reason and not entry.was_kept else ''}"
    was = f' <span class="quiet">was {text(entry.name, 60)}</span>' if entry.concept != entry.name else ""
    edited = ' <span class="tag new">edited</span>' if entry.is_edited else ""
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{text(str(value), 400)}">'
        for name, value in {"name": entry.name, **asked}.items()
    )
    name = text(entry.concept, 60)
    change = (
        f'<button name="action" value="{"drop" if entry.kept else "keep"}">{"drop" if entry.kept else "keep"}</button>'
    )
    undo = '<button name="action" value="undo">undo</button>' if entry.is_edited else ""
    begin = f'<form method="post" action="{site.url("vocabulary")}">{hidden}'
    kind = "kept" if entry.kept else "dropped"
    return f"""<tr class="{kind}" tabindex="0" data-name="{text(entry.name, 400)}"><th scope="row">
<a href="{site.url("concept", {"name": entry.name})}">{name}</a>{was}{edited}</th>{cells}<td>{state}</td>
<td>{begin}{change}{undo}</form>
{begin}<input name="to" aria-label="new name of {name}" placeholder="new name" maxlength="80">
<button name="action" value="rename">rename</button></form></td></tr>"""
