"""What a user reads of a mistake is one line."""

import pytest

from capsnet.errors import InputError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("red \x1b[31m", r"red \x1b[31m"),
        ("nul\0", r"nul\x00"),
        ("next\u2028line", r"next\u2028line"),
        ("undecodable \udcff", r"undecodable \udcff"),
        ("Käfer 柴犬", "Käfer 柴犬"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_a_message_is_one_printable_line_whatever_is_named(name, shown):
    message = str(InputError(f"{name} is missing"))
    assert message == f"{shown} is missing"
    assert message.encode().decode().isprintable()
