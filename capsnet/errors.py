"""The exception for a user's mistake."""


class InputError(ValueError):
    """An argument, a file or data cannot be used; the message has the value and the remedy.

    The command line prints the message as one line and exits with status 2. Line breaks and control characters in it
    are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return the text in one line, with line breaks and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
