"""The exceptions that users see. The message is one line: the file, the key, the remedy."""


class CocuError(Exception):
    """Something that the user can fix: the root of all errors that are shown as one line."""


class InputError(CocuError):
    """An input file that cannot be read; with ``on_error: skip`` curation leaves that shard out and records why."""


class OutputError(CocuError):
    """A file that cannot be written."""


class UnknownKey(CocuError, KeyError):
    """A key for which there is no archive."""

    __str__ = CocuError.__str__  # a KeyError puts its message into quotes


class AmbiguousKey(UnknownKey):
    """A key of several shards: which archive is meant is not known."""


def one_line(error: BaseException, longest: int = 300) -> str:
    """The message of an exception of a library, on one line, for a message of ours to quote."""
    return " ".join(str(error).split())[:longest]
