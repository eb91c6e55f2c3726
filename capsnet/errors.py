"""The one exception for what a user can put right."""


class InputError(ValueError):
    """What was given cannot be used; the message names it and says the way out.

    The command line prints the message as one line and exits with status 2. It is one line whatever names are in it:
    line breaks and control characters are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """The text in one line: line breaks and control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
