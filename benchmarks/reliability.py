"""Writes docs/RELIABILITY.md from results/reliability/*.json, the results of `python -m tests.soak`.

python benchmarks/reliability.py            writes it
python benchmarks/reliability.py --check    exits with status 1 if it is out of date
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "RELIABILITY.md"
HEAD = """# Reliability

The soak test (`python -m tests.soak all`) tries to break the package: it kills trainings, simulates power losses,
damages files and runs random command lines. This page has its results. `python benchmarks/reliability.py` writes it
from `results/reliability/*.json`.

The training in these tests has two epochs of 200 digits and a network of 290,000 weights. After it was stopped and
resumed, its results must equal, bit for bit, those of a training that was never stopped: the best weights, the weights
and the optimizer state in the last checkpoint, the validation records except their times, the detector, the results on
the test images, and the picture in the report.

All tests ran on a CPU, on one file system, with processes of one machine. Power losses are simulated from the system
calls that a training makes; no machine was switched off.
"""


def load(name: str) -> dict[str, Any] | None:
    """The results of one part of the soak test; None if it has not run."""
    path = ROOT / "results" / "reliability" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def how(part: dict[str, Any]) -> str:
    """How, where and how long a part ran."""
    about = part["environment"]
    where = f"{about['device']}, {about['cores']} cores, Python {about['python']}, torch {about['torch']}"
    commit = (about["commit"] or "—")[:7]
    return f"`{about['command']}`, seed {about['seed']}: {about['seconds']:,} s on {where}, commit {commit}.\n\n"


def paragraph(text: str) -> str:
    """A text in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def counts(of: dict[str, int]) -> str:
    """Counts with their names, in one line."""
    return ", ".join(f"{n:,} x {name}" for name, n in sorted(of.items())) or "—"


def found(findings: dict[str, int]) -> str:
    """A list of the findings."""
    if not findings:
        return "Findings: none.\n"
    return "Findings:\n" + "".join(f"- {n:,} x {what}\n" for what, n in sorted(findings.items()))


def kills(part: dict[str, Any]) -> str:
    """The section on stopped processes."""
    rows = [
        ("random_kills", "SIGKILL at a random time", "killed", "progress"),
        ("kills_at_changes", "SIGKILL before and after each change of the folder", "killed", "changes"),
        (
            "kills_at_changes_of_an_overwriting",
            "the same with --overwrite of another run",
            "killed",
            "changes",
        ),
    ]
    made = "\n## Stopped processes\n" + how(part)
    made += paragraph(
        "After each kill, the training is resumed by `--resume`, or started again if there is no run yet, and its "
        "results are compared. The changes are renames, fsyncs, removals and new folders. After a signal, the exit "
        "status must be 143 or 129, or 0 if the process had already ended, or -15 or -1 if it had not yet started; "
        "during training, it must print the command that resumes. Of two processes that start in one folder at the "
        "same time, one must be refused (status 2)."
    )
    made += "\n"
    made += "| test | number | progress, changes or exit statuses | findings |\n|---|---|---|---|\n"
    for name, what, times, where in rows:
        row = part[name]
        made += f"| {what} | {row[times]:,} | {counts(row[where])} | {sum(row['findings'].values())} |\n"
    row = part["signals"]
    times = sum(row["statuses"].values())
    made += f"| SIGTERM and SIGHUP at a random time | {times:,} | {counts(row['statuses'])} | "
    made += f"{sum(row['findings'].values())} |\n"
    for name, what in (("two_starts", "two starts in one folder"), ("two_resumptions", "two resumptions of one run")):
        row = part[name]
        times = sum(row["statuses"].values())
        made += f"| {what} at the same time | {times:,} | {counts(row['statuses'])} | "
        made += f"{sum(row['findings'].values())} |\n"
    together: dict[str, int] = {}
    for row in part.values():
        together |= row["findings"] if isinstance(row, dict) and "findings" in row else {}
    return made + "\n" + found(together)


def power(part: dict[str, Any]) -> str:
    """The section on power losses."""
    made = "\n## Power losses\n" + how(part)
    made += paragraph(
        "A power loss removes what was not flushed to disk: the content of a file since its last fsync, and either "
        "all names in a folder since its last fsync, or none of them. Both states are recorded before and after each "
        "change of the folder, and the training is resumed from each, as after a kill. After the end of the command, "
        "every file must be there."
    )
    counted = f"{part['moments']:,} times were recorded, with {part['distinct_states']:,} distinct states"
    made += "\n" + paragraph(
        f"{counted}. Training was resumed from {part['resumed_from']:,}: {counts(part['progress'])}."
    )
    return made + "\n" + found(part["findings"])


def inputs(part: dict[str, Any]) -> str:
    """The section on damaged files."""
    made = "\n## Damaged files\n" + how(part)
    made += paragraph(
        "The damage: flipped bits, overwritten bytes, truncated files, slices removed or written twice, two files "
        "joined, extreme numbers and tokens. A file must be read, or refused in one line; a file with a checksum must "
        "not be read as another value. Anything else is a finding, and so are more than 5 s of CPU time, a hang, and a "
        "process that dies. A damaged line of log.jsonl is left out, which counts as another value here. The checksums "
        "in an .npz file cover arrays but not their names: an optional array with a damaged name is ignored."
    )
    made += "\n" + paragraph(
        f"{part['inputs']:,} files; the slowest took {part['worst']['cpu_seconds']:.2f} s of CPU time, and the largest "
        f"memory was {part['worst']['peak_mib']:,.0f} MiB."
    )
    made += "\n"
    made += (
        "| file | number | refused | read unchanged | read as other value | CPU time, s | memory, MiB | findings |\n"
    )
    made += "|---" * 8 + "|\n"
    for name, row in part["kinds"].items():
        cells = [f"{row[column]:,}" for column in ("inputs", "refused", "read_as_it_was", "read_as_another_value")]
        cells += [f"{row['cpu_seconds']:.2f}", f"{row['peak_mib']:,.0f}", str(sum(row["findings"].values()))]
        made += f"| {name} | " + " | ".join(cells) + " |\n"
    together = {f"{name}: {what}": n for name, row in part["kinds"].items() for what, n in row["findings"].items()}
    return made + "\n" + found(together)


def commands(part: dict[str, Any]) -> str:
    """The section on command lines."""
    made = "\n## Command lines\n" + how(part)
    made += paragraph(
        "Random flags with odd values must be accepted, or refused in one line with exit status 2. Accepted lines that "
        "do not name data to train on are run too."
    )
    slowest = f"the slowest took {part['cpu_seconds']:.2f} s of CPU time."
    made += "\n" + paragraph(f"{part['lines']:,} lines: {counts(part['outcomes'])}; {slowest}")
    return made + "\n" + found(part["findings"])


def main() -> int:
    """Write the page, or check that it is up to date."""
    parts = [(section, load(section.__name__)) for section in (kills, power, inputs, commands)]
    made = HEAD + "".join(section(part) for section, part in parts if part)
    stale = not PAGE.is_file() or PAGE.read_text() != made
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.name} is {'out of date: run python benchmarks/reliability.py' if stale else 'up to date'}")
        return int(stale)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
