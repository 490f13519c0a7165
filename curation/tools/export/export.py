"""What is exported: archives, a folder, a format. Shards are written one by one, in processes if there are several."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from curation.archive import ConceptArchive
from curation.base.errors import CocuError
from curation.tools.export import archives, fiftyone, lance, openclip, text

TEXT = "{caption}, with {concepts}"


class Format(NamedTuple):
    """One way of writing archives."""

    write_shard: Callable[[Any, str], Any]  # of an Export, by its name; returns what the end needs to know of it
    finish: Callable[
        [Any, Iterator[Any]], int
    ]  # takes what the shards returned, in order; returns the number of samples
    sentence: str
    prepare: Callable[[Any], None] = lambda export: None  # before the first shard


FORMATS = {
    "webdataset": Format(
        text.write_sidecars,
        text.count,
        "<shard>.concepts.tar for every tar of images: <key>.concepts.json, a list of concepts in descending score, in the "
        "order of the tar; joins with the images by shard and key",
    ),
    "jsonl": Format(
        text.write_lines,
        text.count,
        '<shard>.jsonl: one line {"key", "caption", "concepts"} per sample; captions too, where there are several',
    ),
    "csv": Format(
        openclip.write_shard,
        openclip.finish,
        "train.csv, tab-separated, with the columns filepath and title, as open_clip's trainer reads it (--dataset-type "
        "csv), then key and file, as they were in the tar; a line for each of several captions; images are copied out of "
        "the tars, byte by byte, to images/<shard>/<row>.<field>",
    ),
    "fiftyone": Format(
        fiftyone.write_shard,
        fiftyone.finish,
        "data/ and labels.json, which FiftyOne imports as FiftyOneImageClassificationDataset, and captions.json",
    ),
    "lance": Format(
        lance.write_shard,
        lance.finish,
        "archives.lance: one table of keys, captions, concepts, embeddings and pictures for Lance and LanceDB (pip install "
        "pylance)",
    ),
    "archives": Format(
        archives.write_shard,
        archives.finish,
        "a folder like a run's, with the archives that the filters keep and README.md, a data card for Hugging Face; "
        "training and ConceptArchive.open read it",
        archives.prepare,
    ),
}


@dataclass(frozen=True)
class Export:
    """Archives, and the folder and format that they are written in. Files appear whole or not at all."""

    archive: ConceptArchive
    folder: str
    format: str
    text: str = TEXT  # of csv: {caption} and {concepts}, names separated by commas
    identities: bool = False  # of archives: also what pictures can be known by in another download

    def __post_init__(self) -> None:
        """Check the format and the text."""
        if self.format not in FORMATS:
            raise CocuError(f"format: {self.format!r} is not one of {', '.join(FORMATS)}")
        if "{concepts}" not in self.text:
            raise CocuError(f"text: {self.text!r} has no {{concepts}}")

    def write(self, workers: int = 1) -> int:
        """Write every shard, in ``workers`` processes, and return the number of samples.

        Raises CocuError for what cannot be read or written.
        """
        FORMATS[self.format].prepare(self)
        total, console, quiet = len(self.archive.shards), Console(stderr=True), not sys.stderr.isatty()
        shards = track(self._shards(workers), f"{self.format}, shards", total, console=console, disable=quiet)
        return FORMATS[self.format].finish(self, iter(shards))

    def _shards(self, workers: int) -> Iterator[Any]:
        names = self.archive.shards
        if workers == 1:
            yield from map(self.write_shard, names)
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield from pool.map(self.write_shard, names)

    def write_shard(self, name: str) -> Any:
        """Write one shard."""
        return FORMATS[self.format].write_shard(self, name)
