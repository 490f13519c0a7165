"""What tars hold: a look at the first samples of some of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from curation.archive.captions import USUAL, parse_field, read_captions
from curation.archive.members import Fields, Unread, key_problem, read_members, tar_errors
from curation.base import files
from curation.base.errors import CocuError, InputError, listed
from curation.diagnosis import check_head, find_cause
from curation.samples import Reject, Sample, check_sample

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")  # fields that can be decoded
TEXTS = ("txt", "text", "caption", "cap")  # fields that usually are captions, the best first
SAMPLES, BYTES = 200, 64 << 20  # of each tar that is looked at, at most
MOST_JSON = 1 << 20  # bytes of a sidecar that is looked into
USABLE = 0.5  # share of the samples that a field of captions must be right for
DEPTH = 3  # of names within JSON
FEW, SAME = 20, 0.8  # samples from which on, and share with one text above which, a text is no caption


@dataclass
class Survey:
    """What was found."""

    paths: list[str]
    image: str  # fields, as the configuration has them
    caption: str
    others: list[str]  # fields that hold texts too, the most frequent first
    fields: Counter[str]  # how many of the samples that were looked at have each
    samples: int  # that were looked at
    usable: int  # of them
    bytes: int  # of all tars; 0 where nobody says
    rows: int  # samples in all tars, estimated
    reasons: Counter[str] = field(default_factory=Counter)  # why samples cannot be used

    @property
    def images(self) -> str:
        """The fields of images, those that were seen first; all others too where not every sample was looked at."""
        seen = self.image.split(";")
        rest = [name for name in IMAGES if name not in seen] if self.rows > self.samples else []
        return ";".join(seen + rest)

    def lines(self) -> list[str]:
        """What a person should see of it."""
        tars = "1 tar" if len(self.paths) == 1 else f"{len(self.paths):,} tars"
        size = f"{self.bytes / 1e9:,.1f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:,.1f} MB"
        texts = f" (and texts in {listed(self.others, 4)})" if self.others else ""
        return [
            f"{tars}{f', {size}' if self.bytes else ''}, about {self.rows:,} samples",
            f"images in {self.image}, captions in {self.caption}{texts}",
            f"{self.usable:,} of the {self.samples:,} samples that were looked at can be used",
            *(f"  {count:,} cannot: {reason}" for reason, count in self.reasons.most_common(3)),
        ]


def estimated_rows(paths: Sequence[str]) -> int:
    """About how many samples tars hold, by a look at some of them. Raises InputError where one cannot be read."""
    heads = {path: list(_head(path)) for path in _chosen(paths)}
    return _estimated(heads, dict(zip(paths, _sizes(paths), strict=True)), len(paths)) if any(heads.values()) else 0


def look(paths: Sequence[str]) -> Survey:
    """Look at the first samples of some tars. Raises CocuError where they hold no images with captions, and says why."""
    heads = {path: list(_head(path)) for path in _chosen(paths)}
    samples = [sample for head in heads.values() for sample in head]
    if not samples:
        raise CocuError(f"{paths[0]}: holds no samples, which are files of one name such as 0.jpg and 0.txt")
    fields = Counter(name for _, members in samples for name in members)

    image = _image_fields(fields)
    if not image:
        raise CocuError(
            f"{paths[0]}: no field is an image that can be read ({listed(IMAGES, 99)}); there are {listed(fields)}"
        )
    counts = _caption_fields(samples)
    captions = [name for name, count in counts.items() if count >= USABLE * len(samples)]
    checked = {path: _checked(head, image, (captions or [TEXTS[0]])[0]) for path, head in heads.items()}
    if not captions:
        cause, is_layout = find_cause(paths[0], checked[paths[0]], image, TEXTS[0])
        raise CocuError(f"{paths[0]}: {cause if is_layout else _without_captions(fields)}")
    for path, items in checked.items():
        check_head(path, items, image, captions[0], max_rejects=1)

    sizes = _sizes(paths)
    items = [item for of_tar in checked.values() for item in of_tar]
    return Survey(
        paths=list(paths),
        image=image,
        caption=captions[0],
        others=captions[1:],
        fields=fields,
        samples=len(samples),
        usable=sum(isinstance(item, Sample) for item in items),
        bytes=sum(sizes),
        rows=_estimated(heads, dict(zip(paths, sizes, strict=True)), len(paths)),
        reasons=Counter(item.reason for item in items if isinstance(item, Reject)),
    )


def _checked(head: Sequence[tuple[str, Fields]], image: str, caption: str) -> list[Sample | Reject]:
    """Samples as curation will see them, or why it will not."""
    return [check_sample(key, members, image.split(";"), [caption]) for key, members in head]


def _without_captions(fields: Counter[str]) -> str:
    return (
        f"no field holds captions of most samples; there are {listed(fields)}; pack the images with their captions: "
        "cocu pack"
    )


def _chosen(paths: Sequence[str]) -> list[str]:
    """The first, the middle one and the last."""
    return list(dict.fromkeys([paths[0], paths[len(paths) // 2], paths[-1]]))


def _head(path: str) -> Iterator[tuple[str, Fields]]:
    """The first samples of a tar, with the content of small members and of all images."""
    size = 0
    with files.open_file(path) as stream, tar_errors(path):
        for key, members in islice(read_members(stream, lambda key, extension: True), SAMPLES):
            if key_problem(key) is None:
                yield key, members
            size += sum(len(content) for content in members.values() if isinstance(content, bytes))
            if size > BYTES:
                return


def _image_fields(fields: Counter[str]) -> str:
    there = [name for name in IMAGES if fields[name]]
    return ";".join(sorted(there, key=lambda name: -fields[name]))


def _caption_fields(samples: Sequence[tuple[str, Fields]]) -> dict[str, int]:
    """Fields that may be captions, and how many samples have a usable text in each, the best first.

    A field of a usual name comes before texts in JSON, and those before other texts. What says the same of every image, or
    what a better field says, is left out.
    """
    names = {name for _, members in samples for name, content in members.items() if _is_text(name, content)}
    names |= {name for _, members in samples[:50] for name in _json_fields(members)}
    texts: dict[str, list[str]] = {}
    for name in names:
        read = (read_captions(members, [parse_field(name)]) for _, members in samples)
        texts[name] = [captions[0].text if isinstance(captions, list) else "" for captions in read]

    counts: dict[str, int] = {}
    for name in sorted(names, key=lambda name: (_rank(name), -sum(map(bool, texts[name])), name)):
        kinds = Counter(filter(None, texts[name]))
        is_constant = len(samples) >= FEW and kinds.total() > 0 and kinds.most_common(1)[0][1] > SAME * kinds.total()
        if not is_constant and not any(_same(texts[name], texts[other]) for other in counts):
            counts[name] = kinds.total()
    return counts


def _same(texts: Sequence[str], others: Sequence[str]) -> bool:
    return sum(map(str.__eq__, texts, others)) > SAME * len(texts)


def _rank(name: str) -> int:
    member, _, path = name.partition(":")
    if not path:
        return TEXTS.index(member) if member in TEXTS else 100
    last = path.rpartition(".")[2].lower()
    return 10 + USUAL.index(last) + 10 * path.count(".") if last in USUAL else 60


def _is_text(name: str, content: bytes | Unread) -> bool:
    return name in TEXTS and isinstance(content, bytes)


def _json_fields(members: Fields) -> Iterator[str]:
    """Names of texts within the JSON of a sample: words with spaces between them, and those of usual names."""
    for name, content in members.items():
        if name != "json" or not isinstance(content, bytes) or len(content) > MOST_JSON:
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            continue
        for path in _texts("", value, DEPTH):
            yield f"{name}:{path}"


def _texts(prefix: str, value: Any, depth: int) -> Iterator[str]:
    if not isinstance(value, Mapping) or not depth:
        return
    for name, item in value.items():
        if not isinstance(name, str) or not name.strip() or ";" in name or ":" in name or "." in name:
            continue
        path = prefix + name
        text = item[0] if isinstance(item, list) and item else item
        if isinstance(text, str) and (name.lower() in USUAL or (" " in text.strip() and "://" not in text)):
            yield path
        yield from _texts(f"{path}.", item, depth - 1)


def _sizes(paths: Sequence[str]) -> list[int]:
    """Bytes of every tar, 0 where nobody says."""

    def size(path: str) -> int:
        try:
            return os.path.getsize(path) if not files.is_remote(path) else int(files.version(path).get("size") or 0)
        except (OSError, InputError, TypeError, ValueError):
            return 0

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(size, paths))


def _estimated(heads: Mapping[str, Sequence[tuple[str, Fields]]], sizes: Mapping[str, int], tars: int) -> int:
    """Samples in all tars, by the bytes that those which were looked at take; exact where all were seen whole."""
    seen = sum(map(len, heads.values()))
    if all(len(head) < SAMPLES and _bytes(head) <= BYTES for head in heads.values()):
        return round(seen * tars / len(heads))
    each = sum(map(_bytes, heads.values())) / seen
    return max(seen, round(sum(sizes.values()) / each)) if any(sizes.values()) else seen


def _bytes(head: Sequence[tuple[str, Fields]]) -> int:
    """Bytes that samples take in a tar: a header of 512 for each member, and content in blocks of 512."""
    return sum(
        512 + 512 * -(-len(content) // 512)
        for _, members in head
        for content in members.values()
        if isinstance(content, bytes)
    )
