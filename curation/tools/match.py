"""``cocu match OUT TARS --to FOLDER``: the archives of a run for another, partial download of the same data."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from curation.archive import ConceptArchive, Source, list_sources
from curation.archive.identity import IDENTITIES, of_keys, read_identities
from curation.archive.identity import SCHEMA as IDENTITY
from curation.archive.keys import read_keys
from curation.archive.matching import REASONS, match
from curation.archive.parquet import read_archive
from curation.base import files
from curation.base.errors import CocuError
from curation.base.options import CommandParser
from curation.base.parquet import read_columns
from curation.base.terminal import add_remote_option, plain_table, printable, run_command
from curation.tools.chosen import ChosenShard, begin, read_embeddings, write_manifest, write_shard

DESCRIPTION = """\
Find the pictures of other tars among those of a run, by the address that img2dataset recorded or by content, and write
their archives under the keys of these tars: a folder that training and ConceptArchive.open read. Nothing is matched by keys
or by names of tars, which another download gives out anew. A picture that may be several, or has changed, gets no archive.
"""


@dataclass(frozen=True)
class Coverage:
    """How two downloads meet."""

    samples: int  # of the tars
    found: dict[str, int]  # by identity
    missing: dict[str, int]  # by reason
    archives: int  # of the run
    covered: int  # archives that a sample was found for

    @property
    def rows(self) -> int:
        """Samples that have an archive."""
        return sum(self.found.values())


def run_identities(archive: ConceptArchive) -> pa.Table:
    """What the pictures of all archives can be known by, in order: from ``identities/`` where it is, else from the tars."""
    parts = [IDENTITY.empty_table()]
    for number, name in enumerate(archive.shards):
        path = archive.path("identities", name)
        keys = read_keys(archive.path("archives", name)).to_pylist()
        if files.exists(path):
            known = read_columns(path, dict.fromkeys(("key", "caption"), pa.string()))
            for identity in IDENTITIES:
                known = known.append_column(identity, _nullable(path, identity))
        else:
            path = archive.sources[number].path
            known = read_identities(archive.sources[number])
        parts.append(of_keys(known, keys, path))
    return pa.concat_tables(parts)


def _nullable(path: str, name: str) -> pa.ChunkedArray:
    """A column of texts that may be missing."""
    import pyarrow.parquet as pq

    with files.open_file(path) as stream:
        return pq.read_table(stream, columns=[name])[name].cast(pa.string())


def join_download(
    archive: ConceptArchive, sources: list[Source], folder: str, by: tuple[str, ...], any_caption: bool = False
) -> Coverage:
    """Write the archives of the samples of other tars into a folder.

    Raises CocuError where none is found, and for two tars of one name.
    """
    names = [source.name for source in sources]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise CocuError(
            f"shards: two tars are named {repeated}; give them other names, or match them one after the other"
        )

    known = run_identities(archive)
    new = [read_identities(source) for source in sources]
    result = match(pa.concat_tables([IDENTITY.empty_table(), *new]), known, by, any_caption)
    ends = np.cumsum([0, *(table.num_rows for table in new)])
    starts = np.cumsum([0, *archive.rows])
    coverage = Coverage(
        len(result.rows),
        {name: int((result.by == number).sum()) for number, name in enumerate(IDENTITIES) if name in by},
        {reason: int((result.rows == code).sum()) for code, reason in REASONS.items()},
        int(starts[-1]),
        len(np.unique(result.rows[result.rows >= 0])),
    )
    if not coverage.rows:
        raise CocuError(f"{archive.folder}: none of {coverage.samples:,} samples is among its archives{_hint(new, by)}")

    begin(folder, archive)
    counts, pairs = [], []
    for number, source in enumerate(sources):
        rows = result.rows[ends[number] : ends[number + 1]]
        if not (rows >= 0).any():
            continue
        counts.append(write_shard(archive, folder, _shard(archive, source, new[number], rows, starts)))
        pairs.append((source.name, source.path))
    report = {"samples": coverage.samples, "found": coverage.found, "missing": coverage.missing}
    report |= {"archives": coverage.archives, "covered": coverage.covered}
    write_manifest(archive, folder, pairs, counts, {"matched": report})
    return coverage


def _hint(new: list[pa.Table], by: tuple[str, ...]) -> str:
    addresses = sum(len(table) - table["url"].null_count for table in new)
    return "" if addresses or "url" not in by else "; its tars have no json sidecars with a url"


def _shard(archive: ConceptArchive, source: Source, new: pa.Table, rows: np.ndarray, starts: np.ndarray) -> ChosenShard:
    """What is written for a tar: archives and embeddings of ``rows`` of the run, in the order of the tar, under its keys.

    starts (S + 1,): the first row of each shard of the run.
    """
    kept = np.flatnonzero(rows >= 0)
    owners = np.searchsorted(starts, rows[kept], side="right") - 1
    archives, embeddings, order = [archive.schema.empty_table()], [], [np.zeros(0, np.int64)]
    for owner in np.unique(owners):
        name, of_owner = archive.shards[owner], np.flatnonzero(owners == owner)
        inside = pa.array(rows[kept[of_owner]] - starts[owner])
        archives.append(read_archive(archive.path("archives", name)).take(inside))
        beside = read_embeddings(archive, name)
        if beside is not None:
            embeddings.append(beside.replace_schema_metadata(None).take(inside))
        order.append(of_owner)
    back = pa.array(np.argsort(np.concatenate(order)))

    keys = new["key"].take(pa.array(kept))
    rejects = [(new["key"][int(number)].as_py(), REASONS[int(rows[number])]) for number in np.flatnonzero(rows < 0)]
    beside = _with_keys(pa.concat_tables(embeddings).take(back), keys) if len(embeddings) == len(order) - 1 else None
    return ChosenShard(
        source.name, source.path, _with_keys(pa.concat_tables(archives).take(back), keys), beside, rejects
    )


def _with_keys(table: pa.Table, keys: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index("key"), table.schema.field("key"), pc.cast(keys, pa.string()))


def print_coverage(coverage: Coverage, console: Console) -> None:
    """How many samples of the tars have an archive now, and how many archives have a sample."""
    table = plain_table(("", "samples", "share"), left=("",))
    for name, count in coverage.found.items():
        table.add_row(f"found by {name}", f"{count:,}", f"{count / max(coverage.samples, 1):.1%}")
    for reason, count in coverage.missing.items():
        if count:
            table.add_row(reason, f"{count:,}", f"{count / max(coverage.samples, 1):.1%}")
    console.print(table)
    share = coverage.covered / max(coverage.archives, 1)
    console.print(
        f"{coverage.rows:,} of {coverage.samples:,} samples have an archive; {coverage.covered:,} of {coverage.archives:,} "
        f"archives ({share:.1%}) have a sample",
        highlight=False,
        soft_wrap=True,
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="cocu match", description=DESCRIPTION)
    parser.add_argument(
        "folder", metavar="OUT", help="output folder of a finished run, or a folder of archives from it"
    )
    parser.add_argument("tars", nargs="+", metavar="TARS", help="the other download: files, or patterns of shards")
    parser.add_argument(
        *("-o", "--output", "--to"),
        dest="to",
        required=True,
        metavar="FOLDER",
        help="folder to write the archives into",
    )
    parser.add_argument(
        "--by",
        choices=("any", *IDENTITIES),
        default="any",
        help="what to know pictures by (default: one after another)",
    )
    parser.add_argument("--any-caption", action="store_true", help="a picture may have another caption now")
    parser.add_argument("--image", help="fields of images in these tars (default: those of the run)")
    parser.add_argument("--caption", help="fields of captions in these tars (default: those of the run)")
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        archive = ConceptArchive.open(args.folder, args.allow_remote)
        config = archive.manifest["config"]
        image, caption = args.image or config.get("image", "jpg"), args.caption or config.get("caption", "txt")
        several = () if args.caption else tuple(config.get("captions") or ())
        sources = list_sources(args.tars, image, caption, several)
        by = IDENTITIES if args.by == "any" else (args.by,)
        coverage = join_download(archive, sources, args.to, by, args.any_caption)
        print_coverage(coverage, Console())
        print(f"Archives: {printable(args.to)}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
