"""Keys for file names: safe in tars, paths, URLs and tables, unique, and readable."""

from __future__ import annotations

import hashlib
import re

from curation.tools.pack.entry import EXTENSIONS, extension_of

LONGEST = 64


class KeyMaker:
    """Gives every name a key of its own; the same names in the same order get the same keys.

    >>> keys = KeyMaker()
    >>> [keys.key(name) for name in ["a/sea.jpg", "a/sea.png", "IMG.1 (2).jpg"]]
    ['a-sea', 'a-sea-7f6eebe1', 'IMG-1-2-d212656b']
    """

    def __init__(self) -> None:
        self._used: set[int] = set()  # hashes of keys: of ten million, two are equal once in 400,000 times

    def key(self, name: str) -> str:
        """The key of a name: the name itself where it is safe, else what is safe of it and a hash."""
        stem = name[: -len(extension_of(name)) - 1] if extension_of(name) in EXTENSIONS else name
        plain = stem.replace("/", "-")
        safe = re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:LONGEST].strip("-_") or "image"
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()

        key = safe if safe == plain else f"{safe}-{digest}"
        number = 1
        while not self._is_new(key):
            key = f"{safe}-{digest}" + (f"-{number}" if number > 1 else "")
            number += 1
        return key

    def _is_new(self, key: str) -> bool:
        mark = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        if mark in self._used:
            return False
        self._used.add(mark)
        return True
