"""Makes docs/RELIABILITY.md of results/reliability/*.json, which `python -m tests.soak` leaves.

python benchmarks/reliability.py            writes it
python benchmarks/reliability.py --check    exits with 1 where it is not what the results say
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "RELIABILITY.md"
HEAD = """# Reliability

What was done to break the package, how often, and what came of it. Made by `python benchmarks/reliability.py` from
`results/reliability/*.json`; `python -m tests.soak all` does it again. The training that is stopped has two epochs of
200 digits and a network of 290,000 weights. "As if never stopped" means bit for bit: the weights that are kept, the
weights and the optimiser's state in the last checkpoint, the validation records but for their times, the detector, the
results on the test images and the picture in the report.

All of it was done on a CPU, on one file system, with processes of one machine. Losses of power are worked out from the
calls that a training makes; no machine was switched off.
"""


def load(name: str) -> dict[str, Any] | None:
    """What one part of the soak counted; None where it has not been run."""
    path = ROOT / "results" / "reliability" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def how(part: dict[str, Any]) -> str:
    """Where and how a part was run."""
    about = part["environment"]
    where = f"{about['device']}, {about['cores']} cores, Python {about['python']}, torch {about['torch']}"
    commit = (about["commit"] or "—")[:7]
    return f"`{about['command']}`, seed {about['seed']}: {about['seconds']:,} s on {where}, commit {commit}.\n\n"


def paragraph(text: str) -> str:
    """Words in lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def counts(of: dict[str, int]) -> str:
    """Names with their counts, in one line."""
    return ", ".join(f"{n:,} x {name}" for name, n in sorted(of.items())) or "—"


def found(findings: dict[str, int]) -> str:
    """Findings as a list, or that there are none."""
    if not findings:
        return "Findings: none.\n"
    return "Findings:\n" + "".join(f"- {n:,} x {what}\n" for what, n in sorted(findings.items()))


def kills(part: dict[str, Any]) -> str:
    """The section on processes that are stopped."""
    rows = [
        ("random_kills", "SIGKILL at a random moment", "killed", "stood_at"),
        ("kills_at_changes", "SIGKILL before and after each change of the folder", "killed", "changes"),
        ("kills_at_changes_of_an_overwriting", "the same while another run is replaced", "killed", "changes"),
    ]
    made = "\n## Processes that are stopped\n" + how(part)
    made += paragraph(
        "After each, the training goes on by `--resume`, or by the command that started it, and must end as if never "
        "stopped. The changes are renames, fsyncs, removals and new folders. A signal must end the process with the "
        "status that a shell gives (143, 129; 0 where it had ended, -15 or -1 where it had not begun) and, in the "
        "training, with the line that says how to go on. Of two processes one must be refused (2)."
    )
    made += "\n"
    made += "| what | how often | where it stood, or which changes | findings |\n|---|---|---|---|\n"
    for name, what, times, where in rows:
        row = part[name]
        made += f"| {what} | {row[times]:,} | {counts(row[where])} | {sum(row['findings'].values())} |\n"
    row = part["signals"]
    times = sum(row["statuses"].values())
    made += f"| SIGTERM and SIGHUP at a random moment; the exit statuses | {times:,} | {counts(row['statuses'])} | "
    made += f"{sum(row['findings'].values())} |\n"
    for name, what in (("two_starts", "two starts in one folder"), ("two_resumptions", "two resumptions of one run")):
        row = part[name]
        times = sum(row["statuses"].values())
        made += f"| {what} at once; the exit statuses | {times:,} | {counts(row['statuses'])} | "
        made += f"{sum(row['findings'].values())} |\n"
    together: dict[str, int] = {}
    for row in part.values():
        together |= row["findings"] if isinstance(row, dict) and "findings" in row else {}
    return made + "\n" + found(together)


def power(part: dict[str, Any]) -> str:
    """The section on losses of power."""
    made = "\n## Losses of power\n" + how(part)
    made += paragraph(
        "A loss of power takes what was not flushed to the disk: contents since a file's last fsync, and either no "
        "names or all names since a folder's. Both were taken down before and after each change of the folder, and the "
        "training went on from each state, as after a kill. After the end of the command every file must be there."
    )
    counted = f"{part['moments']:,} moments, {part['unlike_states']:,} unlike states"
    made += "\n" + paragraph(f"{counted}, {part['gone_on_from']:,} gone on from: {counts(part['stood_at'])}.")
    return made + "\n" + found(part["findings"])


def inputs(part: dict[str, Any]) -> str:
    """The section on damaged files."""
    made = "\n## Damaged files\n" + how(part)
    made += paragraph(
        "Bits flipped, bytes overwritten, files cut, slices left out or written twice, files spliced, extreme "
        "numbers and words. A file must be refused in one line, or read; one that a checksum guards must not be "
        "read as another value. Anything else is a finding, and so are 5 s of processor time, a hang and a process"
        " that dies. A damaged line of log.jsonl is left out, which counts as another value here. The checksums in"
        " an .npz file guard arrays but not their names: an optional array under a damaged name is passed over."
    )
    made += "\n" + paragraph(
        f"{part['inputs']:,} files; the slowest took {part['worst']['processor_seconds']:.2f} s of processor time, and "
        f"the most memory that one took was {part['worst']['peak_mib']:,.0f} MiB."
    )
    made += "\n"
    made += "| files | tried | refused | read as it was | as another value | slowest, s | memory, MiB | findings |\n"
    made += "|---" * 8 + "|\n"
    for name, row in part["kinds"].items():
        cells = [f"{row[column]:,}" for column in ("inputs", "refused", "read_as_it_was", "read_as_another_value")]
        cells += [f"{row['processor_seconds']:.2f}", f"{row['peak_mib']:,.0f}", str(sum(row["findings"].values()))]
        made += f"| {name} | " + " | ".join(cells) + " |\n"
    together = {f"{name}: {what}": n for name, row in part["kinds"].items() for what, n in row["findings"].items()}
    return made + "\n" + found(together)


def commands(part: dict[str, Any]) -> str:
    """The section on command lines."""
    made = "\n## Command lines\n" + how(part)
    made += paragraph(
        "Random flags with odd values must be understood, or refused in one line with exit status 2. Lines that are "
        "understood and name no data to train on are run too."
    )
    slowest = f"the slowest took {part['processor_seconds']:.2f} s of processor time."
    made += "\n" + paragraph(f"{part['lines']:,} lines: {counts(part['outcomes'])}; {slowest}")
    return made + "\n" + found(part["findings"])


def main() -> int:
    """Write the page, or say that it is out of date."""
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
