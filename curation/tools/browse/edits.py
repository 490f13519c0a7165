"""A person's changes to a vocabulary: concepts kept, dropped and renamed, in a csv that a run takes as its source."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace

from curation.base import files
from curation.base.errors import CocuError
from curation.concepts import LONGEST, concept_key, count_words
from curation.wordlists import is_kept, read_rows, unquoted

WAS = "was"  # the column that has the name before a concept was renamed
SORTS = ("count", "visualness", "noun_share", "concept")
SHOWS = ("all", "kept", "left out", "edited")


@dataclass(frozen=True)
class Entry:
    """A row of the vocabulary's table."""

    name: str  # that the run gave it
    concept: str  # that it has now
    kept: bool
    was_kept: bool  # by the run
    columns: dict[str, str]  # as they stand in the table of the run

    @property
    def is_edited(self) -> bool:
        """Whether a person changed it."""
        return self.kept != self.was_kept or self.concept != self.name

    def number(self, column: str) -> float:
        """A column as a number; NaN where it has none."""
        try:
            return float(self.columns.get(column) or "nan")
        except ValueError:
            return float("nan")


def read_entries(table: str, edits: str) -> dict[str, Entry]:
    """The rows of a run's ``vocabulary.csv`` by name, with the edits of another file, where that is there."""
    entries: dict[str, Entry] = {}
    for row in read_rows(table):
        name = unquoted(row["concept"])
        entries[name] = Entry(name, name, is_kept(row), is_kept(row), row)
    if files.exists(edits):
        for row in read_rows(edits):
            concept = unquoted(row["concept"])
            name = row.get(WAS, "").strip() or concept
            if name in entries:
                entries[name] = replace(entries[name], concept=concept, kept=is_kept(row))
    return entries


def write_entries(entries: Iterable[Entry], path: str) -> None:
    """Write the table with edits: the columns of the run's, and ``was``, the name before a concept was renamed."""
    entries = list(entries)
    columns = dict.fromkeys([*(entries[0].columns if entries else ("concept",)), "kept", WAS])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for entry in entries:
        changed = {"concept": entry.concept, "kept": str(entry.kept).lower()}
        changed[WAS] = entry.name if entry.concept != entry.name else ""
        writer.writerow([(entry.columns | changed).get(column, "") for column in columns])
    with files.atomic_write(path) as stream:
        stream.write(text.getvalue().encode())


def renamed(entry: Entry, to: str) -> Entry:
    """The entry under another name, and kept. Raises CocuError for what cannot be a concept."""
    concept = " ".join(to.split())
    words = count_words(concept_key(concept))
    if not 1 <= words <= LONGEST:
        raise CocuError(f"rename {entry.name}: a concept has 1 to {LONGEST} words, not {words}")
    if concept.startswith("#") or unquoted(concept) != concept:
        raise CocuError(f"rename {entry.name}: a concept neither begins with # nor stands in quotes")
    return replace(entry, concept=concept, kept=True)


def ordered(entries: Iterable[Entry], sort: str) -> list[Entry]:
    """Entries in the order of a column: the largest first, what could not be measured last, names from a to z."""
    if sort == "concept":
        return sorted(entries, key=lambda entry: entry.concept.casefold())

    def rank(entry: Entry) -> tuple[float, str]:
        number = entry.number(sort)
        return (-number if number == number else float("inf")), entry.concept

    return sorted(entries, key=rank)


def shown(entries: Iterable[Entry], show: str, query: str) -> list[Entry]:
    """Those of the entries that a view shows."""
    if show == "kept":
        entries = (entry for entry in entries if entry.kept)
    elif show == "left out":
        entries = (entry for entry in entries if not entry.kept)
    elif show == "edited":
        entries = (entry for entry in entries if entry.is_edited)
    if query:
        entries = (entry for entry in entries if query.casefold() in entry.concept.casefold())
    return list(entries)


class VocabularyTable:
    """The vocabulary of a run as a person edits it. ``edits``: the file that every change is written to at once."""

    def __init__(self, table: str, edits: str) -> None:
        self._table = table
        self.path = edits
        self._changing = threading.Lock()
        self._entries: dict[str, Entry] | None = None
        self._orders: dict[str, list[Entry]] = {}  # of a large vocabulary, sorting takes longer than a page may

    @property
    def entries(self) -> dict[str, Entry]:
        """The rows by the name that the run gave them. Raises CocuError where its table is missing or damaged."""
        if self._entries is None:
            self._entries = read_entries(self._table, self.path)
        return self._entries

    def view(self, show: str, sort: str, query: str) -> list[Entry]:
        """The entries of a view, in its order; show is one of SHOWS, sort one of SORTS."""
        orders = self._orders
        if sort not in orders:
            orders[sort] = ordered(self.entries.values(), sort)
        return shown(orders[sort], show, query)

    @property
    def edited(self) -> int:
        """How many entries a person changed."""
        return len(shown(self.entries.values(), "edited", ""))

    def edit(self, name: str, action: str, to: str = "") -> Entry:
        """Keep, drop or rename a concept, or undo what was done to it. Raises CocuError; then nothing has changed."""
        with self._changing:
            entry = self.entries.get(name)
            if entry is None:
                raise CocuError(f"{self._table}: has no concept {name}")
            if action == "keep":
                changed = replace(entry, kept=True)
            elif action == "drop":
                changed = replace(entry, kept=False)
            elif action == "rename":
                changed = renamed(entry, to)
            elif action == "undo":
                changed = replace(entry, concept=entry.name, kept=entry.was_kept)
            else:
                raise CocuError(f"vocabulary: {action} is none of keep, drop, rename, undo")
            updated = self.entries | {name: changed}
            write_entries(updated.values(), self.path)
            self._entries, self._orders = updated, {}
            return changed
