"""The exceptions that users see. The message is one line: the file, the key, the remedy."""


class CurationError(Exception):
    """Something that the user can mend."""


class InputError(CurationError):
    """An input shard that cannot be read; with ``on_error: skip`` it costs only itself."""


class OutputError(CurationError):
    """A file of the output folder that cannot be written."""


class UnknownKey(CurationError, KeyError):
    """A sample that no archive is of."""

    __str__ = CurationError.__str__  # a KeyError puts its message into quotes
