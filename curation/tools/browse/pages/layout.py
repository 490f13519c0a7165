"""What all pages have: the head, the search, cards of images, and the pages of a long list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, urlencode

from curation.base.markup import quoted, text

PAGE = 48  # images on a page
SEARCHES = {  # by what to search: as it stands in addresses, and for people
    "words": "what it looks like",
    "concept": "concept",
    "caption": "words of the caption",
    "key": "key",
}
KEYS = {
    "/": "search",
    "j k": "next, previous",
    "Enter": "open",
    "n p": "next page, previous page",
    "y x r u": "keep, drop, rename, undo (vocabulary)",
    "h": "home",
    "?": "these keys",
}


@dataclass(frozen=True)
class Site:
    """Where pages are, and what is on all of them. ``root``: what every address begins with, the token."""

    root: str
    name: str  # of the data
    by: str = "words"  # the search that is chosen at first
    note: str = ""  # what is being got ready

    def url(self, path: str, query: Mapping[str, object] | None = None) -> str:
        """An address within the site, ready for an attribute."""
        asked = {name: value for name, value in (query or {}).items() if value not in (None, "", 0)}
        return text(f"{self.root}/{quote(path)}" + (f"?{urlencode(asked)}" if asked else ""), 4000)

    def page(self, title: str, body: str, query: str = "", by: str = "") -> str:
        """A whole page."""
        options = "".join(
            f'<option value="{name}"{" selected" if name == (by or self.by) else ""}>{label}</option>'
            for name, label in SEARCHES.items()
        )
        links = {"": "Home", "vocabulary": "Vocabulary", "duplicates": "Duplicates", "rejects": "Rejects"}
        nav = "".join(f'<a href="{self.url(path)}">{label}</a>' for path, label in links.items())
        keys = "".join(f"<dt><kbd>{key}</kbd></dt><dd>{meaning}</dd>" for key, meaning in KEYS.items())
        note = f'<p class="note" role="status">{text(self.note)}</p>' if self.note else ""
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)} · {text(self.name)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{self.url("style.css")}">
<script src="{self.url("keys.js")}" defer></script>
</head>
<body>
<header>
<p class="name"><a href="{self.url("")}">{text(self.name)}</a></p>
<form class="search" action="{self.url("search")}" role="search">
<label class="hidden" for="q">Search for</label>
<input id="q" name="q" type="search" value="{text(query)}" placeholder="red fox" autocomplete="off" maxlength="200">
<label class="hidden" for="by">by</label>
<select id="by" name="by">{options}</select>
<button>Search</button>
</form>
<nav>{nav}<button type="button" id="help" aria-label="Keys">?</button></nav>
</header>
<main>
<h1>{text(title)}</h1>
{note}{body}
</main>
<dialog id="keys" aria-label="Keys"><dl>{keys}</dl><form method="dialog"><button>Close</button></form></dialog>
</body>
</html>
"""


# --- cards of images ----------------------------------------------------------------------------------------------------


class Card(NamedTuple):
    """An image in a list."""

    row: int
    caption: str
    line: str = ""  # HTML beneath it
    is_shown: bool | None = None  # whether the picture shows what is asked for, where that is known


def tick(is_shown: bool | None) -> str:
    """The truth's mark."""
    if is_shown is None:
        return ""
    name, mark, meaning = ("seen", "✓", "in the picture") if is_shown else ("unseen", "✗", "not in the picture")
    return f'<span class="tag {name}" title="{meaning}">{mark}<span class="hidden"> {meaning}</span></span>'


def picture(address: str, caption: str, side: int) -> str:
    """A thumbnail; its caption stands in its place where it has none."""
    alt = text(caption, 120) or "no caption"
    return f'<img src="{address}" alt="{alt}" width="{side}" height="{side}" loading="lazy" decoding="async">'


def grid(site: Site, cards: Iterable[Card]) -> str:
    """Images in a grid."""
    items = "".join(
        f'<li><a href="{site.url(f"image/{card.row}")}">'
        f"{picture(site.url(f'picture/{card.row}'), card.caption, 160)}</a>"
        f"<p>{quoted(card.caption)}</p>"
        f'<p class="quiet">{card.line}{tick(card.is_shown)}</p></li>'
        for card in cards
    )
    return f'<ul class="grid">{items}</ul>' if items else '<p class="quiet">Nothing here.</p>'


# --- long lists ---------------------------------------------------------------------------------------------------------


def slice_of(page: int, size: int = PAGE) -> slice:
    """The part of a list that a page shows; pages are counted from 1."""
    return slice((page - 1) * size, page * size)


def pager(site: Site, path: str, query: Mapping[str, object], page: int, total: int, size: int = PAGE) -> str:
    """Links to the pages before and after."""
    last = max(1, -(-total // size))
    if last == 1:
        return ""
    links = {
        "prev": ("‹ Previous", page - 1 if page > 1 else None),
        "next": ("Next ›", page + 1 if page < last else None),
    }
    parts = [
        f'<a rel="{name}" href="{site.url(path, {**query, "page": number if number > 1 else None})}">{label}</a>'
        if number
        else f'<span class="quiet">{label}</span>'
        for name, (label, number) in links.items()
    ]
    return f'<nav class="pager" aria-label="Pages">{parts[0]}<span>page {page:,} of {last:,}</span>{parts[1]}</nav>'


def tabs(site: Site, path: str, query: Mapping[str, object], name: str, views: Iterable[str]) -> str:
    """Links to the views of one thing: addresses that differ in the part ``name`` of a query."""
    items = "".join(
        f'<a href="{site.url(path, {**query, name: view})}"'
        f"{' aria-current=page' if view == query[name] else ''}>{text(view)}</a>"
        for view in views
    )
    return f'<nav class="tabs" aria-label="{name}">{items}</nav>'
