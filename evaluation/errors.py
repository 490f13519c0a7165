"""The exceptions that users see."""


class EvaluationError(Exception):
    """Something that the user can mend. The message is one line: the file, the key, the remedy."""


class AbsentError(EvaluationError):
    """The files of a benchmark are not there. The message names the folder that was looked for."""
