"""Routing's C code is compiled once and cached intact; if the compiler or the cache fails, one line is logged."""

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from capsnet.ops import compiler, native
from capsnet.ops.compiler import CompilerError
from capsnet.ops.dispatch import choose_backend
from tests.ops.helpers import no_compiler

ROUTE = """
import torch
from capsnet.ops.dispatch import routing_backend
from capsnet.ops.routing import route

with routing_backend("native"):
    print(route(torch.ones(1, 2, 3), torch.ones(2, 2, 3, 2)).tolist())
"""
MANY = torch.empty(64, 1152, 8), torch.empty(1152, 10, 8, 16)


def start_routing():
    """Start a process that routes by compiled code; a damaged library would kill it."""
    return subprocess.Popen([sys.executable, "-c", ROUTE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def parents_of(process):
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return output


def flip_a_bit(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


DAMAGES = {
    "cut in half": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-1],
    "cut to one page": lambda content: content[:4096],
    "empty": lambda content: b"",
    "a bit that is flipped": flip_a_bit,
    "no library": lambda content: b"no library",
}


@no_compiler
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_in_the_cache_is_compiled_again(damage, nothing_compiled):
    assert native.compiled(torch.float32, 3, 2) is not None
    [kept] = nothing_compiled.iterdir()
    intact = kept.read_bytes()
    kept.unlink()  # and written again, since this process has loaded the old file
    kept.write_bytes(damage(intact))
    output = parents_of(start_routing())
    [again] = nothing_compiled.iterdir()
    assert again.stem.endswith(compiler._sha256(again))
    assert output == parents_of(start_routing())


@no_compiler
def test_a_cached_library_is_not_compiled_again(nothing_compiled, monkeypatch):
    assert native.compiled(torch.float32, 3, 2) is not None
    native.compiled.cache_clear()
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("it compiles"))
    assert native.compiled(torch.float32, 3, 2) is not None


@no_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_two_processes_that_compile_at_once_both_succeed():
    processes = [start_routing() for _ in range(2)]
    first, second = (parents_of(process) for process in processes)
    assert first == second


@no_compiler
@pytest.mark.parametrize("place", ["a file", "a folder without write access"])
def test_routing_is_compiled_also_without_a_usable_cache(place, nothing_compiled, monkeypatch):
    if place == "a file":
        nothing_compiled.parent.parent.write_text("")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    assert native.compiled(torch.float32, 3, 2) is not None


@no_compiler
def test_a_full_cache_has_no_part_of_a_library(nothing_compiled, monkeypatch):
    def full(file):  # as on a full disk, which reports it when it is flushed
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert native.compiled(torch.float32, 3, 2) is not None
    assert list(nothing_compiled.iterdir()) == []


def script(folder, text):
    """A program in the place of a compiler."""
    path = folder / "compiler.sh"
    path.write_text(f"#!/bin/sh\nfor last; do :; done\n{text}\n")
    path.chmod(0o755)
    return str(path)


COMPILERS = {
    "unbalanced quotes": (lambda folder: 'cc "', "CC='cc \"' is not a command: No closing quotation"),
    "no such program": (lambda folder: f"{folder}/none", "none cannot be run: .* No such file or directory"),
    "a folder": (str, "cannot be run: .* Permission denied"),
    "a program that fails": (
        lambda folder: script(folder, "echo 'no such\n  option' >&2; exit 3"),
        "compiler.sh ended with status 3: no such option",
    ),
    "a program that only prints": (
        lambda folder: script(folder, "echo I am no compiler"),
        "compiler.sh ended without an error and without a library",
    ),
    "a program that writes something else": (
        lambda folder: script(folder, 'echo something else > "$last"'),
        "file too short|invalid ELF header",
    ),
    "a compiler of something else": (
        lambda folder: script(folder, 'cc -shared -o "$last" -x c /dev/null'),
        "has no function lanes, per_word, scratch_size, uniform_sum, weighted_sum, gradients",
    ),
}


def assert_routing_is_streamed(caplog, reason):
    assert choose_backend(*MANY) == "streaming"
    assert choose_backend(*(t.double() for t in MANY)) == "streaming"  # and nothing is logged again
    [record] = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.message.startswith("routing is not compiled and runs in plain PyTorch: ")
    assert "\n" not in record.message
    assert pytest.RaisesExc(CompilerError, match=reason).matches(CompilerError(record.message)), record.message


@no_compiler
@pytest.mark.parametrize(("cc", "reason"), COMPILERS.values(), ids=COMPILERS)
def test_a_broken_compiler_is_logged_in_one_line(cc, reason, nothing_compiled, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CC", cc(tmp_path))
    assert_routing_is_streamed(caplog, reason)


def test_without_any_compiler_one_line_says_how_to_have_one(nothing_compiled, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_routing_is_streamed(caplog, "there is no C compiler: install one, or set CC")


def test_a_name_that_no_program_can_have_is_a_compiler_that_does_not_work(tmp_path):
    with pytest.raises(CompilerError, match="cannot be run: embedded null byte"):
        compiler._compile(["cc\0"], tmp_path / "library.so")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at /proc")
def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(nothing_compiled, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compiler, "SECONDS", 0.5)
    monkeypatch.setenv("CC", script(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/pid; wait"))
    assert_routing_is_streamed(caplog, r"compiler.sh was not done after 0\.5 s")
    pid, begun = int((tmp_path / "pid").read_text()), time.monotonic()
    while is_running(pid) and time.monotonic() < begun + 10:
        time.sleep(0.01)
    assert not is_running(pid)
