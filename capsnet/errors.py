"""The one exception for what a user can put right."""


class InputError(ValueError):
    """What was given cannot be used; the message names it and says the way out.

    The command line prints the message as one line and exits with status 2.
    """
