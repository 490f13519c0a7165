"""What is written: tars, each whole or not at all, then the tables beside them; a run that is interrupted resumes."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from curation.base import files
from curation.base.errors import CocuError
from curation.base.lookahead import look_ahead
from curation.tools.pack.entry import Content, Entry, Unusable, field_of
from curation.tools.pack.keys import KeyMaker
from curation.tools.pack.writer import ShardWriter

UNFINISHED = ".packing"  # a folder in the output: the tar that is being written, and a note for each that is done
NOTE = ".packed.json"
READERS = 4  # threads


@dataclass(frozen=True)
class Pattern:
    """Where the tars go: ``packed/{}.tar`` or ``packed/photos-{:05d}.tar``."""

    folder: Path
    name: str

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """A pattern from the command line. Raises CocuError where it does not name numbered tars."""
        folder, name = os.path.split(text)
        if not re.fullmatch(r"[\w.-]*\{(:0?\d*d)?\}[\w.-]*\.tar", name, re.ASCII):
            raise CocuError(f"-o: {text!r} must end like {{}}.tar or photos-{{:05d}}.tar, with one {{}} for the number")
        return cls(Path(folder or "."), name.replace("{}", "{:05d}"))

    def tar(self, number: int) -> Path:
        """The tar of this number."""
        return self.folder / self.name.format(number)

    @property
    def configuration(self) -> Path:
        """The configuration for curation: ``packed.yaml`` beside the folder ``packed``; it gives the run its name."""
        if self.folder.name in ("", ".."):  # the folder that we are in
            return self.folder / "packed.yaml"
        return self.folder.with_name(f"{self.folder.name}.yaml")

    def shards(self, count: int) -> list[str]:
        """The names of the tars."""
        return [self.name.format(number) for number in range(count)]


class Packed(NamedTuple):
    """What one image became: a sample, or a reject with its reason."""

    name: str
    key: str
    content: Content | None
    kind: str  # the field of the image
    reason: str


@dataclass
class Tally:
    """What is packed so far."""

    shards: int = 0
    consumed: int = 0  # entries
    samples: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # two names for each reason

    def add_reject(self, name: str, reason: str) -> None:
        """Count a reject."""
        kind = reason.split(" (")[0]
        self.reasons[kind] += 1
        if len(self.examples.setdefault(kind, [])) < 2:
            self.examples[kind].append(name)


def identify(entries: Iterable[Entry], options: Any) -> tuple[int, str]:
    """How many entries there are, and what identifies them: names, sizes and dates, and how they are packed."""
    digest = hashlib.blake2b(files.digest(options).encode(), digest_size=16)
    count = 0
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.mark}\0".encode("utf-8", "surrogateescape"))
        count += 1
    return count, digest.hexdigest()


def prepare(named: tuple[Entry, str]) -> Packed:
    """Read an entry and look at the header of its image."""
    entry, key = named
    try:
        content = entry.load()
        return Packed(entry.name, key, content, field_of(content.image), "")
    except Unusable as error:
        return Packed(entry.name, key, None, "", str(error))


class Packer:
    """Writes tars by a pattern, and resumes where an earlier one with the same fingerprint stopped."""

    def __init__(self, pattern: Pattern, fingerprint: str, count: int, size: int) -> None:
        """``count``, ``size``: samples and bytes after which a new tar begins."""
        self.pattern, self.fingerprint = pattern, fingerprint
        self._count, self._size = count, size
        self._folder = pattern.folder / UNFINISHED
        self._samples: list[list[str]] = []  # of the tar that is being written: key and name
        self._rejects: list[list[str]] = []
        self.tally = Tally()

    def pack(self, entries: Iterable[Entry], advance: Callable[[], None]) -> Tally:
        """Pack all entries; ``advance`` is called for each. Raises CocuError where tars of others are in the way."""
        self._resume()
        keys = KeyMaker()
        named = ((entry, keys.key(entry.name)) for entry in entries)
        for _ in islice(named, self.tally.consumed):  # keys depend on the names before
            advance()

        writer = ShardWriter(self._folder, self.tally.shards, self._count, self._size, self._finish_tar)
        try:
            with ThreadPoolExecutor(READERS) as pool:
                for packed in look_ahead(pool, prepare, named, 2 * READERS):
                    if packed.content is None:
                        self._reject(packed)
                    else:
                        self._write(writer, packed)
                    self.tally.consumed += 1
                    advance()
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        self._note(self.tally.shards)  # the rejects behind the last tar
        return self.tally

    def _write(self, writer: ShardWriter, packed: Packed) -> None:
        assert packed.content is not None
        sidecar = {**packed.content.sidecar, "file_name": escaped(packed.name)}
        fields = {packed.kind: packed.content.image, "txt": packed.content.caption, "json": sidecar}
        writer.write(packed.key, fields)  # finishes the tar before, if that is full
        self._samples.append([packed.key, escaped(packed.name)])
        self.tally.samples += 1
        self.tally.kinds[packed.kind] += 1

    def _reject(self, packed: Packed) -> None:
        self._rejects.append([escaped(packed.name), packed.reason])
        self.tally.add_reject(escaped(packed.name), packed.reason)

    def _finish_tar(self, written: Path) -> None:
        with open(written, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(written, self.pattern.tar(self.tally.shards))
        self._note(self.tally.shards)
        self.tally.shards += 1

    def _note(self, number: int) -> None:
        note = {"consumed": self.tally.consumed, "samples": self._samples, "rejects": self._rejects}
        note |= {"kinds": dict(self.tally.kinds), "fingerprint": self.fingerprint}
        files.write_json(str(self._folder / f"{number:05d}.json"), note)
        self._samples, self._rejects = [], []

    def _resume(self) -> None:
        """Read the notes of an interrupted run, or begin with none. Raises CocuError for tars that are not ours."""
        notes = list(self._notes())
        if not notes and not self._folder.exists():
            written = files.read_note(str(self.pattern.folder / NOTE)).get("shards", [])
            for number in range(len(files.files_in(str(self.pattern.folder)))):
                tar = self.pattern.tar(number)
                if tar.exists() and tar.name not in written:
                    raise CocuError(f"{tar}: is there, but was not packed here; give another -o")
        if not notes:
            files.remove(str(self._folder))
        self._folder.mkdir(parents=True, exist_ok=True)
        for note in notes:
            self.tally.shards += 1
            self.tally.consumed = note["consumed"]
            self.tally.samples += len(note["samples"])
            self.tally.kinds = Counter(note["kinds"])
            for name, reason in note["rejects"]:
                self.tally.add_reject(name, reason)

    def _notes(self) -> Iterator[dict[str, Any]]:
        """The notes of the tars that are done."""
        number = 0
        while self.pattern.tar(number).exists():
            note = files.read_note(str(self._folder / f"{number:05d}.json"))
            if note.get("fingerprint") != self.fingerprint or not note.get("samples"):
                return
            yield note
            number += 1

    def tables(self) -> None:
        """Write keys.csv and rejects.csv from the notes."""
        for name, header in (("keys.csv", ["key", "shard", "file_name"]), ("rejects.csv", ["file_name", "reason"])):
            with files.atomic_write(str(self.pattern.folder / name)) as stream:
                text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(header)
                for number in range(self.tally.shards + 1):
                    note = files.read_json(str(self._folder / f"{number:05d}.json"))
                    shard = self.pattern.name.format(number).removesuffix(".tar")
                    rows = [[key, shard, file] for key, file in note["samples"]]
                    writer.writerows(rows if name == "keys.csv" else note["rejects"])
                text.flush()
                text.detach()

    def clean(self) -> None:
        """Say that all is written, and take away notes, and tars of an earlier packing that had more."""
        note = str(self.pattern.folder / NOTE)
        shards = self.pattern.shards(self.tally.shards)
        for old in files.read_note(note).get("shards", []):
            if old not in shards and os.path.basename(old) == old:
                files.remove(str(self.pattern.folder / old))
        counts = {"samples": self.tally.samples, "rejects": sum(self.tally.reasons.values())}
        files.write_json(note, {"fingerprint": self.fingerprint, "shards": shards, "counts": counts})
        files.remove(str(self._folder))


def escaped(name: str) -> str:
    """A file name as text that can be written: bytes that are not UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
