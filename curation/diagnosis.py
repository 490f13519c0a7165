"""What is wrong with a shard as a whole: the one cause behind many rejects, and its remedy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from curation.archive.captions import members_of, names_in
from curation.archive.members import read_members, tar_errors
from curation.base import files
from curation.base.errors import InputError
from curation.samples import NOT_ADJACENT, Reject, Sample, dotted_images, hidden_images

HEAD = 256  # samples of a shard that are looked at before the encoder is loaded
HEAD_BYTES = 1 << 27
LEAST = 20  # samples without which a share says nothing
PLAIN = 0.1  # share of keys that tells a way of writing tars from an accident
NAMES = 200_000  # samples of a local tar whose names are read to find the cause
PACK = "cocu pack"


def kind_of(reason: str) -> str:
    """What reasons of one kind have in common.

    >>> kind_of("image cannot be decoded (cannot identify image file)")
    'image cannot be decoded'
    >>> kind_of("no caption field (txt), only jpg, json")
    'no caption field'
    """
    return re.split(r" \(|, only ", reason)[0]


@dataclass
class _Names:
    """What the names of a tar's members say of its samples."""

    image_fields: Sequence[str]
    caption_fields: Sequence[str]
    keys: dict[str, list[set[str]]] = field(default_factory=dict)  # the fields of each key, one set for each place

    def add(self, key: str, fields: Iterable[str]) -> None:
        """A key with the fields that lie side by side."""
        self.keys.setdefault(key, []).append(set(fields))

    def split(self) -> list[str]:
        """The keys whose files are not adjacent: one place has what another lacks."""
        return [key for key, places in self.keys.items() if len(places) > 1 and self._is_split(places)]

    def _is_split(self, places: list[set[str]]) -> bool:
        has_both = any(
            self._has(fields, self.image_fields) and self._has(fields, self.caption_fields) for fields in places
        )
        together = set().union(*places)
        return (
            not has_both and self._has(together, self.image_fields) and self._has(together, self.caption_fields)
        ) and sum(map(len, places)) == len(together)

    @staticmethod
    def _has(fields: set[str], wanted: Sequence[str]) -> bool:
        return any(name in fields for name in wanted)

    def hidden(self) -> dict[str, list[str]]:
        """The keys with several images, with those that nobody would see."""
        by_key = {
            key: hidden_images(sorted(set().union(*places)), self.image_fields, self.caption_fields)
            for key, places in self.keys.items()
        }
        return {key: names for key, names in by_key.items() if names}

    def without(self, wanted: Sequence[str]) -> int:
        """How many keys have none of these fields."""
        return sum(not self._has(set().union(*places), wanted) for places in self.keys.values())

    def fields(self) -> str:
        """The fields that are there, the most frequent first, with how many keys have each."""
        counts = Counter(name for places in self.keys.values() for name in set().union(*places))
        shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
        return shown + (", ..." if len(counts) > 8 else "")


def _scan(path: str, names: _Names) -> bool:
    """Read the names of a local tar's members, as far as it can be read; False where there is nothing to see."""
    if files.is_remote(path) or path.startswith("pipe:"):
        return False
    with suppress(InputError), files.open_file(path) as stream, tar_errors(path):
        for key, fields in islice(read_members(stream, lambda key, extension: False), NAMES):
            names.add(key, fields)
    return bool(names.keys)


def _layout(names: _Names) -> str:
    """The cause in how the tar was written: samples not adjacent, or several images under one key; empty for neither."""
    split = names.split()
    if len(split) >= 2 and len(split) >= PLAIN * len(names.keys):
        key = split[0]
        apart = " and ".join(f"{key}.{min(fields)}" for fields in names.keys[key][:2] if fields)
        return (
            f"its samples are not adjacent: {apart} lie apart, and so do the files of {len(split)} keys; write it with "
            f"tar --sort=name, or pack it ({PACK})"
        )

    hidden = names.hidden()
    count = sum(map(len, hidden.values()))
    if count >= 2 and count >= PLAIN * len(names.keys):
        key = max(hidden, key=lambda key: len(hidden[key]))
        shown = ", ".join(dotted_images(sorted(set().union(*names.keys[key])), names.image_fields)[:3])
        return (
            f"several images share one key, which ends at the first dot of a file name: {key} has {shown}; "
            f"{count} images would be lost; rename the files, or pack them ({PACK})"
        )
    return ""


def _fields(names: _Names) -> str:
    """The cause in the configuration: fields that no sample, or hardly one, has; empty where that is not so."""
    for kind, wanted in (("image", names.image_fields), ("caption", names.caption_fields)):
        count = names.without(wanted)
        if count > len(names.keys) / 2:
            pack = (
                f"; captions inside json become txt with {PACK}, or are read in place as json:NAME"
                if kind == "caption" and "json" in names.fields()
                else ""
            )
            return (
                f"{count} of {len(names.keys)} samples have no {kind} field ({';'.join(wanted)}); the fields there are "
                f"{names.fields()}; set {kind} to one of them{pack}"
            )
    return ""


def find_cause(path: str, items: Sequence[Sample | Reject], image: str, caption: str) -> tuple[str, bool]:
    """Why so many of a shard's samples cannot be used, with the remedy, and whether the cause is how the tar was written.

    items: its first samples; where their names leave it open, those of the whole tar are read, if it is a local one.
    """
    names = _names_of(items, image, caption)
    if _fields(names) and not _layout(names):
        whole = _Names(names.image_fields, names.caption_fields)
        names = whole if _scan(path, whole) else names
    layout = _layout(names)
    if layout:
        return layout, True

    rejects = [item for item in items if isinstance(item, Reject)]
    return _fields(names) or _most_often(rejects), False


def _names_of(items: Iterable[Sample | Reject], image: str, caption: str) -> _Names:
    names = _Names(image.lower().split(";"), members_of(names_in(caption)))
    for item in items:
        if item.fields:
            names.add(item.key, item.fields)
    return names


def _most_often(rejects: Sequence[Reject]) -> str:
    kinds = Counter(kind_of(reject.reason) for reject in rejects)
    kind = max(kinds, key=lambda kind: kinds[kind], default="")
    example = next((reject for reject in rejects if kind_of(reject.reason) == kind), None)
    if example is None:
        return ""
    remedy = (
        f"; captions inside json become txt with {PACK}, or are read in place as json:NAME" if "JSON" in kind else ""
    )
    return f"most often, as for {example.key}: {example.reason}{remedy}"


def check_head(path: str, items: Sequence[Sample | Reject], image: str, caption: str, max_rejects: float) -> None:
    """Look at the first samples of a shard. ``caption``: the fields of captions, separated by semicolons.

    Raises InputError with cause and remedy: for captions that are JSON, for a tar whose samples are not adjacent or that
    hides images, and where more than ``max_rejects`` of them, a share, cannot be used.
    """
    _refuse_json(path, items)
    layout = _layout(_names_of(items, image, caption))
    if layout:
        raise InputError(f"{path}: {layout}")

    rejects = sum(isinstance(item, Reject) for item in items)
    if len(items) >= LEAST and rejects > max_rejects * len(items):
        cause, is_layout = find_cause(path, items, image, caption)
        share = "" if is_layout else f"{too_many(rejects, len(items), max_rejects, 'of the first ')}: "
        raise InputError(f"{path}: {share}{cause}")


def _refuse_json(path: str, items: Sequence[Sample | Reject]) -> None:
    """Raises InputError where the captions of most samples are JSON, in which the caption is a field."""
    whole = [item for item in items if item.remedy]
    if 2 * len(whole) > len(items):
        field = Counter(item.remedy for item in whole).most_common(1)[0][0]
        member = field.partition(":")[0]
        raise InputError(
            f"{path}: {member} of {whole[0].key} is JSON, not a sentence; write {field} in place of {member} for the text "
            "in it"
        )


def check_shard(path: str, rejects: Sequence[Reject], rows: int, max_rejects: float, unseen: int = 0) -> None:
    """Look at a shard when its samples are known: ``rows`` are usable; of ``unseen`` more nothing is known yet.

    Raises InputError as :func:`check_head` does.
    """
    total = rows + len(rejects)
    if not unseen:
        apart = [reject.key for reject in rejects if reject.reason == NOT_ADJACENT]
        if len(apart) >= 2 and len(apart) >= PLAIN * (total - len(apart)):
            raise InputError(
                f"{path}: its samples are not adjacent: the files of {len(apart)} keys, such as {apart[0]}, lie apart; "
                f"write it with tar --sort=name, or pack it ({PACK})"
            )
    if total >= LEAST and len(rejects) > max_rejects * (total + unseen):
        raise InputError(f"{path}: {too_many(len(rejects), total, max_rejects)}: {_most_often(rejects)}")


def too_many(rejects: int, samples: int, max_rejects: float, of: str = "of ") -> str:
    """The sentence about a share that is too large."""
    return f"{rejects:,} {of}{samples:,} samples cannot be used, and max_rejects is {max_rejects:g}"
