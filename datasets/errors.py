"""The one exception for a user's mistake."""


class InputError(ValueError):
    """A mistake the user can mend.

    The message is one sentence or two that name the field or file, what was wrong and what is accepted.
    The command line prints it without a traceback and exits with status 2.
    """


class NotThisSet(InputError):
    """The files of an evaluation set do not have the layout that was expected."""


def said(error: OSError | MemoryError) -> str:
    """The operating system's error as text, to end a sentence with."""
    return getattr(error, "strerror", None) or str(error) or "there is not enough memory"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__


def its_type(value: object) -> str:
    """What a value is, to say what was given: "a str", "an int"."""
    return with_article(type(value).__name__)


def with_article(name: str) -> str:
    """The name of a class with the article before it: "an Order", "a UBT"."""
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
