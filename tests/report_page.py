"""A report as a browser would read it, and the files that it tells of."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements with attributes and text; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[str, list[list[str]]] = {}
        self.words = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.words += " "
        if tag == "table":
            self.table = self.cells.setdefault(f"{dict(attrs).get('id') or dict(attrs).get('class')}", [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.words += " "

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words += data
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and attributes.items() <= a.items()]


def rows(folder: Path, kind: str) -> list[dict]:
    return [row for path in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def number(cell: str) -> int:
    return int(cell.replace(",", ""))
