"""Damaged files of every kind that the package reads: each is read or refused in one line, in little time and memory.

The files are read in child processes, a few thousand in each, with limits of memory and time.
"""

import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from capsnet.errors import InputError
from capsnet.runs import Run, load_run
from tests.soak.kinds import data_kinds, image_kinds, run_kinds, small_data, small_run, weight_kinds
from tests.soak.odd import ClassFolders, OddCheckpoints
from tests.soak.processes import digest, fork, import_all

INPUTS = 120_000
SECONDS = 5  # of CPU time for one input
HANGS = 30  # seconds of wall time for one input, after which a process is killed
MEMORY = 4 << 30  # bytes that a process may allocate
SHARDS = 2  # processes at a time


def inputs(room: Path, rng: random.Random, count: int | None) -> dict[str, Any]:
    """Try all kinds of files: `count` inputs in total, and at least one of each kind."""
    memory = Path("/dev/shm")
    seed = rng.randrange(2**32)
    import_all()
    with tempfile.TemporaryDirectory(prefix="soak-", dir=memory if memory.is_dir() else room) as fast:
        ended = fork(partial(prepare, Path(fast))).wait()
        if ended.status:
            raise RuntimeError(ended.said)
        shares = json.loads((Path(fast) / "kinds.json").read_text())
        total = sum(shares.values())
        counted = {}
        for place, (name, share) in enumerate(shares.items()):
            n = max(1, (count or INPUTS) * share // total)
            counted[name] = tried(Path(fast), place, n, seed)
    return {"inputs": sum(kind["inputs"] for kind in counted.values()), "worst": worst(counted), "kinds": counted}


def worst(counted: dict[str, Any]) -> dict[str, Any]:
    """The longest time and the largest memory of all kinds."""
    return {name: max(kind[name] for kind in counted.values()) for name in ("cpu_seconds", "peak_mib")}


def all_kinds(room: Path, run: Run) -> list[Any]:
    """Every kind of file, a `FileKind` or a class of odd.py, below a folder that contains `run` too."""
    torch.manual_seed(0)
    images = image_kinds(room)
    return [
        *run_kinds(run),
        OddCheckpoints(run, small_data()),
        *data_kinds(room),
        *images,
        ClassFolders("class folders with odd entries", room / "classes", images[0].originals),
        *weight_kinds(room),
    ]


def prepare(room: Path) -> None:
    """Make a run to damage, and write the share of each kind to a file."""
    shares = {kind.name: kind.share for kind in all_kinds(room, small_run(room))}
    (room / "kinds.json").write_text(json.dumps(shares))


def tried(room: Path, place: int, n: int, seed: int) -> dict[str, Any]:
    """Read n damaged files of one kind, in parallel processes; a process that dies is replaced."""
    progress = mmap.mmap(-1, 8 * SHARDS)
    for shard in range(SHARDS):
        progress[8 * shard : 8 * shard + 8] = struct.pack("q", shard)
    counted, died = Counter[str](), Counter[str]()
    most = {"cpu_seconds": 0.0, "peak_mib": 0.0, "total_seconds": 0.0}
    waiting = [*range(min(SHARDS, n))]
    while waiting:
        children = {shard: fork(partial(work, room, place, n, seed, shard, progress)) for shard in waiting}
        waiting = []
        for shard, child in children.items():
            ended = child.wait(limit=7200)  # its timer kills it where an input hangs
            (at,) = struct.unpack("q", progress[8 * shard : 8 * shard + 8])
            if ended.status > 0:
                raise RuntimeError(ended.said)
            if ended.status < 0:
                died[f"a process ended by {signal.Signals(-ended.status).name}, the last at input {at}"] += 1
                progress[8 * shard : 8 * shard + 8] = struct.pack("q", at + SHARDS)
                waiting.append(shard)
            for path in sorted(room.glob("counted-*.json")):
                found = json.loads(path.read_text())
                path.unlink()
                counted.update(found["counts"])
                for name in ("cpu_seconds", "peak_mib"):
                    most[name] = max(most[name], found[name])
                most["total_seconds"] += found["total_seconds"]
    kept = ("refused", "read as it was", "read as another value")
    findings = died + Counter({what: k for what, k in counted.items() if what not in kept})
    return {
        "inputs": n,
        **{name.replace(" ", "_"): counted[name] for name in kept},
        **{name: round(value, 3) for name, value in most.items()},
        "findings": dict(findings),
    }


def work(room: Path, place: int, n: int, seed: int, shard: int, progress: mmap.mmap) -> None:
    """Read every SHARDS-th of n damaged files of a kind, starting at the recorded progress."""
    own = Path(tempfile.mkdtemp(dir=room))
    shutil.copytree(room / "small", own / "small")
    kind = all_kinds(own, load_run(own / "small"))[place]
    known = {digest(kind.read(kind.path)) for _ in originals(kind)} if kind.originals else set()
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    counts, slowest, most, in_all = Counter[str](), 0.0, 0, 0.0
    (at,) = struct.unpack("q", progress[8 * shard : 8 * shard + 8])
    for index in range(at, n, SHARDS):
        progress[8 * shard : 8 * shard + 8] = struct.pack("q", index)
        kind.write(random.Random(f"{seed} {kind.name} {index}"))
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak of memory
        before = status_bytes("VmRSS")
        signal.setitimer(signal.ITIMER_REAL, HANGS)
        begun = time.process_time()
        outcome = outcome_of(kind, known)
        took = time.process_time() - begun
        signal.setitimer(signal.ITIMER_REAL, 0)
        most = max(most, status_bytes("VmHWM") - before)
        slowest, in_all = max(slowest, took), in_all + took
        if took > SECONDS:
            outcome = f"more than {SECONDS} s"
        counts[outcome] += 1
    found = {"counts": counts, "cpu_seconds": slowest, "peak_mib": most / 2**20, "total_seconds": in_all}
    (room / f"counted-{os.getpid()}.json").write_text(json.dumps(found))


def originals(kind: Any) -> Any:
    """Write each valid file of a kind in turn."""
    for content in (*kind.originals, *getattr(kind, "also", ())):
        kind.path.write_bytes(kind.seal(content))
        yield content


def outcome_of(kind: Any, known: set[str]) -> str:
    """The outcome of reading a damaged file, in words."""
    try:
        value = kind.read(kind.path)
    except InputError as error:
        return "refused" if len(str(error).splitlines()) == 1 else "an InputError of several lines"
    except Exception as error:
        at = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if "capsnet/" in f.filename), None)
        where = f"{at.filename.rpartition('capsnet/')[2]}:{at.name}" if at else "elsewhere"
        return f"{type(error).__name__} in {where}"
    if digest(value) in known:
        return "read as it was"
    return "a checksum did not detect the damage" if kind.sealed else "read as another value"


def status_bytes(name: str) -> int:
    """A size in /proc/self/status, by name."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 0
