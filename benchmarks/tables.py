"""Makes RESULTS.md and the README's tables from results/: runs' results.json, and what the other programs here leave.

python benchmarks/tables.py            writes both, and draws what was measured of speed into docs/
python benchmarks/tables.py --check    exits with 1 where they are not what results/ says
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from capsnet.benchmarks.goals import Results
from capsnet.benchmarks.pictures import draw
from capsnet.benchmarks.report import goals_by_device, machine, markdown, tables
from capsnet.robustness.intervals import wilson

ROOT = Path(__file__).parent.parent
SPEED = {  # by the program that measures it
    "training": "Training and prediction, step by step",
    "routing": "Routing",
    "epoch_to_accuracy": "Time to an accuracy",
}
PAPER = {"mnist": "0.25 ± 0.005 (n = 3)"}  # Table 1: 3 iterations, with the drawing loss

ATTACKS = "Accuracy under attack"
DETECTION = "Attacks told by their drawings"
AFFINE = "Affine changes"
CHANGES = {
    "rotation": "Rotation in degrees, anticlockwise",
    "right": "Shift in pixels, to the right",
    "scale": "Scale, a factor",
    "shear": "Shear in degrees, to the right",
}

HEAD = """# Results

Test error, measured once on test images that neither training nor the choice of the recipe has seen. Made by
`python benchmarks/tables.py` from `results/*.json`, which hold the whole of each run: recipe, log of the validation
images, confusions, hardware, versions, commit. Intervals in brackets are of 95 %, by Wilson's score.

## Training
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
    head = "| data | network | recipe | parameters | test error, % | the paper's | training, min | "
    rows = [f"{head}hardware | commit | command |", "|---" * 10 + "|"]
    for group in groups:
        errors = [100 * run["test"]["errors"] / run["test"]["n"] for run in group]
        spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
        times = [run["training_seconds"] for run in group if run["training_seconds"] is not None]
        minutes = f"{mean(times) / 60:.1f}" if times else "—"
        first = group[0]
        where = first["environment"]
        cells = [
            first["data"],
            first["fields"]["network"],
            first["recipe"],
            f"{first['parameters']:,}",
            f"**{mean(errors):.2f}**{spread} (n = {len(errors)})",
            PAPER.get(first["data"], "—") if first["fields"]["network"] == "capsnet" else "—",
            minutes,
            f"{where['device']}, {where['cores']} cores, torch {where['torch']}, {where['precision']}",
            (where["commit"] or "—")[:7],
            f"`{where['command']}`",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def robustness() -> str:
    """What `benchmarks/robustness.py` measured: a section for each kind of measurement."""
    made = ""
    for kind, told, rows in (
        ("attacks", ATTACKS, attack_rows),
        ("detection", DETECTION, detection_rows),
        ("affine", AFFINE, affine_rows),
    ):
        for path in sorted((ROOT / "results" / "robustness").glob(f"*-{kind}.json")):
            measured = json.loads(path.read_text())
            where = measured["environment"]
            machine = f"{where['device']}, {where['cores']} cores, torch {where['torch']}, commit {where['commit'][:7]}"
            how = f"{machine}; {measured['seconds']:.0f} s; `python benchmarks/{where['command']}`"
            made += f"\n## {told}\n{how}\n\n{rows(measured)}"
    return made


def speed() -> dict[str, dict[str, Results]]:
    """What was measured of speed, by program and device."""
    folders = {name: sorted((ROOT / "results" / name).glob("*.json")) for name in SPEED}
    return {name: {path.stem: json.loads(path.read_text()) for path in paths} for name, paths in folders.items()}


def speed_in_short(measured: dict[str, dict[str, Results]]) -> str:
    """What the README shows: what was asked for beside what each device reached, and the steps of training."""
    made = markdown(goals_by_device(measured))
    for results in measured["training"].values():
        made += f"\n{machine(results)}\n\n{markdown(tables('training', results)[0])}"
    return made


def speed_in_full(measured: dict[str, dict[str, Results]]) -> str:
    """All tables of speed, a section for each program and device."""
    made = f"\n## Speed\n{markdown(goals_by_device(measured))}"
    for name, title in SPEED.items():
        for device, results in measured[name].items():
            made += f"\n## {title}: {device}\n{machine(results)}\n"
            made += "".join(f"\n{markdown(table)}" for table in tables(name, results))
    return made


def between(text: str, name: str, made: str) -> str:
    """The text with what stands between <!-- name --> and <!-- /name --> replaced."""
    before, rest = text.split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    return f"{before}<!-- {name} -->\n{made}<!-- /{name} -->{after}"


def percent(right: int, n: int) -> str:
    """A share with its 95 % interval."""
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def attack_rows(measured: dict[str, Any]) -> str:
    """Accuracy by network, attack and strength, and the checks for masked gradients."""
    lines = [
        "What a smaller change fools counts as fooled by a larger one. Where DeepFool finds nothing an image counts as "
        "right: its curve is an upper bound. The checks for masked gradients follow one run of PGD, whose step is "
        "2.5 ε / 20: half-way it has barely reached the boundary. The search without gradients is small, so that it "
        "finds less says little.",
        "",
    ]
    for attack in dict.fromkeys(curve["attack"] for curve in measured["curves"]):
        curves = [curve for curve in measured["curves"] if curve["attack"] == attack]
        strengths = [f"{epsilon:g}" for epsilon in curves[0]["epsilons"]]
        lines += [f"{attack}, {curves[0]['norm']}: accuracy in % of n = {curves[0]['n']:,} test images, by ε", ""]
        lines += ["| network | " + " | ".join(strengths) + " |", "|---" * (len(strengths) + 1) + "|"]
        for curve in curves:
            cells = [percent(right, curve["n"]) for right in curve["right"]]
            lines.append(f"| {curve['network']} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["Checks for masked gradients:", ""]
    lines += [f"- {check['sentence']}" for check in measured["masking"]["checks"]]
    return "\n".join(lines) + "\n"


def detection_rows(measured: dict[str, Any]) -> str:
    """What is flagged of each kind of image."""
    words = (
        f"Threshold {measured['threshold']:.2f}, set on {measured['validation_n']:,} validation images. "
        "The aware attack stops just below it, so its AUC is no measure of detection: its flagged share is.\n\n"
    )
    rows = ["| images | tried | fooled | flagged, % | undetected, % of tried | AUC |", "|---|---|---|---|---|---|"]
    for kind in (measured["clean"], *measured["suspects"]):
        attacked = kind["epsilon"] is not None
        name = f"{kind['name']}, ε = {kind['epsilon']:g}" if attacked else kind["name"]
        flagged = percent(kind["flagged"], kind["n"]) if kind["n"] else "—"
        undetected = percent(kind["undetected"], kind["tried"]) if attacked else "—"
        area = "—" if kind is measured["clean"] or kind["auc"] is None else f"{kind['auc']:.3f}"
        cells = [name, str(kind["tried"]), str(kind["n"]) if attacked else "—", flagged, undetected, area]
        rows.append("| " + " | ".join(cells) + " |")
    return words + "\n".join(rows) + "\n"


def affine_rows(measured: dict[str, Any]) -> str:
    """Accuracy by network, change and amount."""
    lines = []
    for change in ("rotation", "right", "scale", "shear"):
        by_network = measured[change]
        amounts = [f"{point['amount']:g}" for point in next(iter(by_network.values()))]
        lines += [f"{CHANGES[change]}: accuracy in % of n = {measured['n']:,} test images", ""]
        lines += ["| network | " + " | ".join(amounts) + " |", "|---" * (len(amounts) + 1) + "|"]
        for network, points in by_network.items():
            cells = [percent(point["right"], point["n"]) for point in points]
            lines.append(f"| {network} | " + " | ".join(cells) + " |")
        lines.append("")
    random = measured["random"]
    lines += [
        f"Rotated by up to ±{random['rotation']:g}° and shifted by up to ±{random['shift']} pixels, at random:",
        "",
    ]
    lines += [f"- {name}: {percent(told['right'], told['n'])}" for name, told in random["networks"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both files, or say which are out of date."""
    made, measured = table(load()), speed()
    readme = between((ROOT / "README.md").read_text(), "results", made)
    readme = between(readme, "speed", speed_in_short(measured))
    files = {"README.md": readme, "RESULTS.md": HEAD + made + robustness() + speed_in_full(measured)}
    stale = [name for name, text in files.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    if "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}: run python benchmarks/tables.py" if stale else "tables are up to date")
        return int(bool(stale))
    for name in stale:
        (ROOT / name).write_text(files[name])
    for name, devices in measured.items():
        for device, results in devices.items():
            draw(name, results, ROOT / "docs" / f"{name}-{device}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
