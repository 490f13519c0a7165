"""The exceptions that users see. The message is one line: the file, the key, the remedy."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable

from curation.base.addresses import redacted


class CocuError(Exception):
    """Something that the user can fix: the root of all errors that are shown as one line.

    Addresses in the message lose their secrets here, so that none is printed, logged or written with it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(str(message)))


class InputError(CocuError):
    """An input file that cannot be read; with ``on_error: skip`` curation leaves that shard out and records why."""


class OutputError(CocuError):
    """A file that cannot be written."""


class UnknownKey(CocuError, KeyError):
    """A key for which there is no archive."""

    __str__ = CocuError.__str__  # a KeyError puts its message into quotes


class AmbiguousKey(UnknownKey):
    """A key of several shards: which archive is meant is not known."""


def listed(names: Iterable[object], longest: int = 12) -> str:
    """Names for a message of ours to quote: the first of them, and how many more there are.

    >>> listed("abcde", longest=3)
    'a, b, c and 2 more'
    """
    items = list(map(str, names))
    cut = [item if len(item) <= 80 else item[:79] + "…" for item in items[:longest]]
    return ", ".join(cut) + (f" and {len(items) - longest:,} more" if len(items) > longest else "")


def quoted(value: object) -> str:
    """A value for a message of ours to quote: as Python writes it, and short whatever it is.

    A YAML file of aliases can stand for more text than memory holds, so that nothing may write all of it first.

    >>> quoted("visoin"), quoted(list(range(50_000)))
    ("'visoin'", '[0, 1, 2, 3, ...]')
    """
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 4
_SHORT.maxstring = _SHORT.maxother = 100


def loading_error(error: object) -> str:
    """Why a file of weights cannot be loaded, on one line, without the advice to load it in spite of that.

    torch answers a file that could run code by saying how to let it.

    >>> loading_error(ValueError("Weights only load failed. ... set `weights_only` to False"))
    'it holds more than weights, which could run code and is not loaded'
    """
    if "weights only load failed" in str(error).lower() or "weights_only" in str(error):
        return "it holds more than weights, which could run code and is not loaded"
    return one_line(error, 200)


def one_line(error: object, longest: int = 300) -> str:
    """The message of an exception of a library, or another text, on one line, for a message of ours to quote.

    What is too long is cut between two words. An error of ours is never cut: its remedy is at its end.

    >>> one_line("no such\\n  file or directory", 15)
    'no such file …'
    """
    text = " ".join(str(error).split())
    if len(text) <= longest or isinstance(error, CocuError):
        return text
    kept, _, _ = text[: longest - 1].rpartition(" ")
    return f"{kept} …" if len(kept) > longest // 2 else f"{text[: longest - 1]}…"
