"""The one exception that users see."""


class CurationError(Exception):
    """Something that the user can mend. The message is one line: the file, the key, the remedy."""
