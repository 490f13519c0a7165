"""A person's changes to a vocabulary: concepts kept, dropped and renamed, in a csv that a run takes as its source."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable, Iterable
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


def shown(entries: Iterable[Entry], show: str, sort: str, query: str) -> list[Entry]:
    """The entries of a view, in its order: the largest first, what could not be measured last, names from a to z."""
    is_shown: dict[str, Callable[[Entry], bool]] = {
        "all": lambda entry: True,
        "kept": lambda entry: entry.kept,
        "left out": lambda entry: not entry.kept,
        "edited": lambda entry: entry.is_edited,
    }
    chosen = [entry for entry in entries if query.casefold() in entry.concept.casefold() and is_shown[show](entry)]
    if sort == "concept":
        return sorted(chosen, key=lambda entry: entry.concept.casefold())

    def rank(entry: Entry) -> tuple[float, str]:
        number = entry.number(sort)
        return (-number if number == number else float("inf")), entry.concept

    return sorted(chosen, key=rank)


class VocabularyTable:
    """The vocabulary of a run as a person edits it. ``edits``: the file that every change is written to at once."""

    def __init__(self, table: str, edits: str) -> None:
        self._table = table
        self.path = edits
        self._changing = threading.Lock()
        self._entries: dict[str, Entry] | None = None

    @property
    def entries(self) -> dict[str, Entry]:
        """The rows by the name that the run gave them. Raises CocuError where its table is missing or damaged."""
        if self._entries is None:
            self._entries = read_entries(self._table, self.path)
        return self._entries

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
            self._entries = updated
            return changed
