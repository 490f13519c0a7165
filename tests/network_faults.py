"""A table of what becomes of shards at servers that fail: python tests/network_faults.py

Each kind of fault meets one of three shards, with ``on_error: skip``. A shard is used, or rejected with a reason; a run
that ends otherwise has stopped, and what remains in TMPDIR, or shows of a signature, has leaked.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow.parquet as pq
from faulty_servers import STATUSES, FaultyServer, closed_port, faulty_server, s3_environment, s3_server
from rich.console import Console
from tiny_world import COLOURS, GROUNDS, ROWS, SHARDS, make_tiny_clip, scene, write_tar, write_world

from curation.base import remote
from curation.base.terminal import plain_table
from pipelines.curate import main

SECRET = "3f9e0c"
FAULTY = "00001"


class Row(NamedTuple):
    """What became of the shards of one kind of fault."""

    kind: str
    tried: int
    used: int
    rejected: int
    stopped: int
    leaked: int


def make_world(folder: Path) -> Path:
    """Three tars and a configuration."""
    rng = np.random.default_rng(7)
    for shard in range(SHARDS):
        members = [member for row in range(ROWS) for member in scene(rng, f"{shard:02d}{row:04d}")]
        write_tar(folder / f"{shard:05d}.tar", members)
    (folder / "concepts.txt").write_text("\n".join([*COLOURS, *GROUNDS]) + "\n")
    return write_world(folder / "world.yaml", make_tiny_clip(folder / "clip"))


def try_kind(kind: str, data: Path, shards: str, folder: Path) -> Row:
    """Curate shards of which one fails, and count."""
    output = folder / kind.replace(" ", "-")
    temporary = folder / f"{output.name}-tmp"
    temporary.mkdir()
    printed = io.StringIO()
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            command = ["--data", str(data), "--shards", shards, "--output", str(output), "--runner", "inprocess"]
            code = main([*command, "--on_error", "skip"])
    finally:
        tempfile.tempdir = before

    names = [f"{shard:05d}" for shard in range(SHARDS)]
    if code:
        print(printed.getvalue(), file=sys.stderr)
        return Row(kind, SHARDS, 0, 0, 1, len(list(temporary.rglob("*"))))
    rows = {name: len(pq.read_table(output / "archives" / f"{name}.parquet")) for name in names}
    reasons = [pq.read_table(output / "rejects" / f"{name}.parquet")["reason"].to_pylist() for name in names]
    told = [reason for of_shard in reasons for reason in of_shard if reason]
    leaked = len(list(temporary.rglob("*"))) + sum(SECRET in text for text in [*told, printed.getvalue()])
    return Row(kind, SHARDS, sum(count > 0 for count in rows.values()), len(told), 0, leaked)


def http_rows(data: Path, folder: Path) -> Iterator[Row]:
    """Every fault of http, for ever and for the first two requests."""
    with faulty_server(data.parent) as server:
        shards = f"{server.url}/{{00000..00002}}.tar?signature={SECRET}"
        for fault in (*STATUSES, "reset", "cut"):
            server.fault = always(fault)
            yield try_kind(f"http {fault}", data, shards, folder)
        for fault in (429, 500, 503, "reset", "cut"):
            server.counts.clear()
            server.fault = twice(fault)
            yield try_kind(f"http {fault} twice", data, shards, folder)
        server.fault = lambda path, number: None
        for kind, ranges, sized, dated in (
            ("no ranges", False, True, True),
            ("no length", False, False, True),
            ("no dates", True, True, False),
        ):
            server.ranges, server.sized, server.dated = ranges, sized, dated
            yield try_kind(f"http {kind}", data, shards, folder)
        yield from elsewhere(server, data, folder)


def elsewhere(server: FaultyServer, data: Path, folder: Path) -> Iterator[Row]:
    """One of the shards is at a server that is not there."""
    good = f"{server.url}/00000.tar::{server.url}/00002.tar"
    for kind, host in (("refused", f"127.0.0.1:{closed_port()}"), ("unknown host", "no-such-host.invalid")):
        yield try_kind(f"http {kind}", data, f"{good}::http://{host}/{FAULTY}.tar?signature={SECRET}", folder)


def always(fault: int | str) -> Callable[[str, int], int | str | None]:
    """A fault of the faulty shard at every request."""
    return lambda path, number: fault if FAULTY in path else None


def twice(fault: int | str) -> Callable[[str, int], int | str | None]:
    """The same at the first two requests."""
    return lambda path, number: fault if FAULTY in path and number <= 2 else None


def s3_rows(data: Path, folder: Path) -> Iterator[Row]:
    """Objects, buckets, credentials and packages that are missing."""
    with s3_server() as endpoint:
        os.environ.update(s3_environment(endpoint))
        s3 = fsspec.filesystem("s3", use_listings_cache=False)
        s3.mkdir("data")
        for path in data.parent.glob("*.tar"):
            s3.pipe_file(f"data/{path.name}", path.read_bytes())
        yield try_kind("S3 whole", data, "s3://data/*.tar", folder)
        good = "s3://data/00000.tar::s3://data/00002.tar"
        s3.rm_file(f"data/{FAULTY}.tar")
        yield try_kind("S3 no object", data, f"{good}::s3://data/{FAULTY}.tar", folder)
        yield try_kind("S3 no bucket", data, f"{good}::s3://nobody/{FAULTY}.tar", folder)
        yield try_kind("no package", data, f"{good}::gs://data/{FAULTY}.tar", folder)
        local = f"{data.parent}/00000.tar::{data.parent}/00002.tar"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del os.environ[name]
        type(s3).clear_instance_cache()
        yield try_kind("S3 no credentials", data, f"{local}::s3://data/{FAULTY}.tar", folder)
        os.environ.update(s3_environment(f"http://127.0.0.1:{closed_port()}"))
        type(s3).clear_instance_cache()
        yield try_kind("S3 refused", data, f"{local}::s3://data/{FAULTY}.tar", folder)


def rows() -> Iterator[Row]:
    """A row for each kind of fault."""
    remote.FIRST_WAIT = 0.01
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_world(folder / "data")
        yield from http_rows(data, folder)
        yield from s3_rows(data, folder)


def print_rows(table: list[Row]) -> int:
    """Print the table; 1 if anything stopped, leaked or vanished without a reason."""
    shown = plain_table(Row._fields, left=["kind"])
    for row in table:
        shown.add_row(*map(str, row))
    Console().print(shown)
    return int(any(row.stopped or row.leaked or row.used + row.rejected < row.tried for row in table))


if __name__ == "__main__":
    sys.exit(print_rows(list(rows())))
