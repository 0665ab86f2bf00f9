"""The one exception for a user's mistake."""


class InputError(ValueError):
    """A mistake the user can mend.

    The message is one sentence or two that name the field or file, what was wrong and what is accepted.
    The command line prints it without a traceback and exits with status 2.
    """


class NotThisSet(InputError):
    """An evaluation set's files are not laid out as what it was taken for."""


def said(error: OSError | MemoryError) -> str:
    """What the machine says of its own fault, for the end of a sentence."""
    return getattr(error, "strerror", None) or str(error) or "there is not enough memory"
