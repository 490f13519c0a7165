"""Tars that unpack to far more than they are, read by curation and by training. Run as a script.

    python tests/hostile_tars.py --mebibytes 600

Prints a JSON object: for every kind, what came of its samples, and MiB of memory above the process's own.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mutated_images import peak

from curation.archive import read_tar
from curation.base.errors import CocuError
from curation.samples import Sample, read_samples

BLOCK = 512
END = bytes(2 * BLOCK)
MIB = bytes(1 << 20)
MAX_MEMBER = 1 << 20
COMPRESSED = {
    "gz": (gzip.open, {"compresslevel": 1}),
    "bz2": (bz2.open, {"compresslevel": 1}),
    "xz": (lzma.open, {"preset": 0}),
}


def member(name: str, content: bytes = b"", **attributes) -> bytes:
    """A member as its header and content stand in a tar, without an end of the archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


def pair(key: str) -> bytes:
    """The two members of a sample that can be used."""
    return member(f"{key}.jpg", b"image") + member(f"{key}.txt", b"a dog")


# --- bombs ----------------------------------------------------------------------------------------------------------------


def long_name(mebibytes: int) -> list[bytes]:
    """A name of so many MiB."""
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = mebibytes << 20
    return [header.tobuf(tarfile.GNU_FORMAT), *[MIB.replace(b"\0", b"x")] * mebibytes, pair("b"), END]


def long_pax(kind: bytes, mebibytes: int) -> list[bytes]:
    """A pax header of so many MiB, for a member or for all that follow."""
    header = tarfile.TarInfo("pax")
    header.type = kind
    header.size = mebibytes << 20
    return [header.tobuf(tarfile.USTAR_FORMAT), *[MIB] * mebibytes, pair("b"), END]


def global_headers(count: int) -> list[bytes]:
    """Many pax headers that hold for all members, each of a length that is allowed."""
    parts = []
    for number in range(count):
        record = f" k{number}={'v' * 8000}\n"
        content = f"{len(record) + 4}{record}".encode()
        header = tarfile.TarInfo("pax")
        header.type = tarfile.XGLTYPE
        header.size = len(content)
        parts += [header.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % BLOCK), pair(f"b{number}")]
    return [*parts, END]


def sparse_map(blocks: int) -> list[bytes]:
    """A sparse member whose map of pieces does not end."""
    header = bytearray(member("b.jpg", b"image", type=tarfile.GNUTYPE_SPARSE)[:BLOCK])
    header[482] = 1  # more of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return [bytes(header), *[(b"%011o\0%011o\0" % (1, 1)) * 21 + b"\1" + bytes(7)] * blocks]


def bombs(mebibytes: int) -> dict[str, list[bytes]]:
    """What follows two good samples, by kind."""
    content = [MIB] * mebibytes
    size = mebibytes << 20
    return {
        "name": long_name(mebibytes),
        "pax header": long_pax(tarfile.XHDTYPE, mebibytes),
        "pax header for all": long_pax(tarfile.XGLTYPE, mebibytes),
        "many pax headers for all": global_headers(mebibytes),
        "map of a sparse member": sparse_map(mebibytes * 100),
        "unwanted member": [member("a.npy", size=size), *content, pair("c"), END],
        "wanted member": [member("b.jpg", size=size), *content, member("b.txt", b"a"), END],
        "behind the end": [END, *content],
    }


def outcome(path: Path) -> dict[str, int]:
    """What comes of the samples of a tar; training must read those, and only those, that curation uses."""
    counts = {"tried": 0, "used": 0, "rejected": 0, "stopped": 0, "leaked": 0}
    used = []
    trained = []
    try:
        with open(path, "rb") as stream:
            for item in read_samples(stream, str(path), "jpg", "txt", MAX_MEMBER):
                counts["tried"] += 1
                counts["used" if isinstance(item, Sample) else "rejected"] += 1
                used += [item.key] * isinstance(item, Sample)
    except CocuError as error:
        assert str(path) in str(error)
        counts["stopped"] += 1
    try:
        for fields in read_tar(str(path), ["jpg", "txt"], MAX_MEMBER):
            trained += [fields["__key__"]] * bool(fields.get("jpg") and fields.get("txt"))
    except CocuError:
        counts["leaked"] += counts["stopped"] == 0
    counts["leaked"] += trained != used
    return counts


def explode(kinds: Iterable[tuple[str, str]], mebibytes: int) -> dict[str, dict[str, int]]:
    """The outcome of (kind, compression), each as a tar on disk."""
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, suffix in kinds:
            path = Path(folder) / f"bomb.tar.{suffix}"
            opener, options = COMPRESSED[suffix]
            with opener(path, "wb", **options) as stream:
                stream.write(pair("first") + pair("a"))
                stream.writelines(bombs(mebibytes)[kind])
            outcomes["tar bomb: " + kind + (f" ({suffix})" if suffix != "gz" else "")] = outcome(path)
    return outcomes


def main() -> None:
    """Make each bomb, read it, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=600, help="what a bomb unpacks to")
    args = parser.parse_args()

    own = peak()
    kinds = [(kind, "gz") for kind in bombs(1)] + [("name", "xz"), ("wanted member", "bz2")]
    outcomes = explode(kinds, args.mebibytes)
    print(json.dumps({"kinds": outcomes, "mib": round(peak() - own, 1)}))


if __name__ == "__main__":
    main()
