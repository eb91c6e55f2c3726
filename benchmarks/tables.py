"""Makes RESULTS.md and the README's table from results/*.json, each a results.json copied from a run folder.

python benchmarks/tables.py            writes both
python benchmarks/tables.py --check    exits with 1 where they are not what results/ says
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parent.parent
START, END = "<!-- results -->", "<!-- /results -->"
PAPER = {"mnist": "0.25 ± 0.005 (n = 3)"}  # Table 1: 3 iterations, with the drawing loss

HEAD = """# Results

Test error, measured once on test images that neither training nor the choice of the recipe has seen. Made by
`python benchmarks/tables.py` from `results/*.json`, which hold the whole of each run: recipe, log of the validation
images, confusions, hardware, versions, commit.

"""


def load() -> list[list[dict[str, Any]]]:
    """The runs, those together that differ in their seeds alone."""
    runs = defaultdict(list)
    for path in sorted((ROOT / "results").glob("*.json")):
        run = json.loads(path.read_text())
        what = {"data": run["data"]} | {name: value for name, value in run["fields"].items() if name != "seed"}
        where = {name: run["environment"][name] for name in ("device", "cores", "torch", "precision", "commit")}
        runs[json.dumps([what, where])].append(run)
    return list(runs.values())


def table(groups: list[list[dict[str, Any]]]) -> str:
    """A row for each group: mean ± spread (n), time, hardware, commit and command."""
    rows = [
        "| data | recipe | parameters | test error, % | the paper's | training, min | hardware | commit | command |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        errors = [100 * run["test"]["errors"] / run["test"]["n"] for run in group]
        spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
        minutes = mean(run["training_seconds"] for run in group) / 60
        first = group[0]
        where = first["environment"]
        cells = [
            first["data"],
            first["recipe"],
            f"{first['parameters']:,}",
            f"**{mean(errors):.2f}**{spread} (n = {len(errors)})",
            PAPER.get(first["data"], "—") if first["fields"]["network"] == "capsnet" else "—",
            f"{minutes:.1f}",
            f"{where['device']}, {where['cores']} cores, torch {where['torch']}, {where['precision']}",
            (where["commit"] or "—")[:7],
            f"`{where['command']}`",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write both files, or say which are out of date."""
    made = table(load())
    readme = (ROOT / "README.md").read_text()
    before, rest = readme.split(START)
    after = rest.split(END)[1]
    files = {"README.md": f"{before}{START}\n{made}{END}{after}", "RESULTS.md": HEAD + made}
    stale = [name for name, text in files.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    if "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}: run python benchmarks/tables.py" if stale else "tables are up to date")
        return int(bool(stale))
    for name in stale:
        (ROOT / name).write_text(files[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
