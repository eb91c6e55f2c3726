"""Random damage to the bytes of a file, as by disks, transfers and attackers."""

import random
import re
import struct
from collections.abc import Callable, Sequence

Change = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

NUMBERS = (0, 1, -1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
WORDS = (  # of JSON
    *("0", "-1", "1e999", "-1e999", "NaN", "Infinity", "1e-400", "0.5", "9007199254740993", "1" * 400, "9" * 5000),
    *("null", "true", "false", '""', '"0"', '"\\ud800"', '"\\u0000"', '"../../x"', '"' + "x" * 5000 + '"'),
    *("[]", "{}", "[[]]", '{"a": 1}', "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "[0]" * 3),
)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|[\[\]{},:]')


def flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Flip up to eight bits."""
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[_place(rng, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Overwrite up to 64 bytes by noise, zeros or ones."""
    place, n = _place(rng, len(data)), rng.choice((1, 2, 4, 16, 64))
    new = rng.choice((rng.randbytes(n), bytes(n), b"\xff" * n))
    return data[:place] + new + data[place + n :]


def truncate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Cut off the end."""
    return data[: _place(rng, len(data))]


def insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Insert up to 64 bytes, or add them at the end."""
    place = rng.choice((_place(rng, len(data)), len(data)))
    return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 16, 64))) + data[place:]


def remove(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Remove a slice."""
    first, last = _slice(rng, len(data))
    return data[:first] + data[last:]


def duplicate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Write a slice, or all, twice."""
    first, last = _slice(rng, len(data))
    return data[:last] + data[first:] if rng.random() < 0.9 else data + data


def splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Continue with the end of another file of this kind."""
    other = rng.choice(others)
    return data[: _place(rng, len(data))] + other[_place(rng, len(other)) :]


def number(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Overwrite part of the header, or of the rest, by an extreme number."""
    form = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q", "<d", "<f"))
    if form[-1] in "df":
        new = struct.pack(form, rng.choice((float("nan"), float("inf"), -1.0, 1e30, 0.0)))
    else:
        new = struct.pack(form, rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form)))
    place = rng.randrange(min(len(data), 64)) if data and rng.random() < 0.6 else _place(rng, len(data))
    return data[:place] + new + data[place + len(new) :]


def word(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Replace a token of JSON by another one, remove it, or write it twice."""
    tokens = list(TOKEN.finditer(data))
    if not tokens:
        return flip(rng, data, others)
    token = rng.choice(tokens)
    others_in_it = [rng.choice(tokens)[0] for _ in range(8)]
    new = rng.choice((*(word.encode() for word in WORDS), *others_in_it, b"", token[0] * 2))
    return data[: token.start()] + new + data[token.end() :]


BINARY: tuple[Change, ...] = (flip, flip, overwrite, truncate, insert, remove, duplicate, splice, number, number)
TEXT: tuple[Change, ...] = (*BINARY, *[word] * len(BINARY))


def damaged(rng: random.Random, originals: Sequence[bytes], changes: Sequence[Change] = BINARY) -> bytes:
    """One of the originals after one to three changes, and different from all of them."""
    data = rng.choice(originals)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(changes)(rng, data, originals)
    return data if data not in originals else damaged(rng, originals, changes)


def _place(rng: random.Random, n: int) -> int:
    """A random position among n bytes; the header and the end are more likely."""
    if n == 0:
        return 0
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(min(n, 128))
    return n - 1 - rng.randrange(min(n, 128)) if kind < 0.5 else rng.randrange(n)


def _slice(rng: random.Random, n: int) -> tuple[int, int]:
    first, last = sorted((_place(rng, n), _place(rng, n)))
    return first, last
