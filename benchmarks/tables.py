"""Makes RESULTS.md, the plots of speed in docs/, and the tables in README.md and docs/SCALING.md, from results/.

python benchmarks/tables.py            writes them
python benchmarks/tables.py --check    exits with status 1 if one of the texts is out of date
"""

import json
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import convolution
import epoch_to_accuracy
import kernels
import routing
import scaling
import training
from capsnet.analysis.accuracy import wilson
from goals import GOALS, KINDS, Results, default_row, epoch, verdicts
from report import goals_by_device, machine, markdown, plot

ROOT = Path(__file__).parent.parent
BENCHMARKS = [module.BENCHMARK for module in (training, routing, epoch_to_accuracy, convolution, kernels)]
PAPER = {"mnist": "0.25 ± 0.005 (n = 3)"}  # Table 1: 3 iterations, with the reconstruction loss

ATTACKS = "Accuracy under the worst of all attacks"
DETECTION = "Detection of attacks by the reconstruction error"
AFFINE = "Affine changes"
CHANGES = {
    "rotation": "Rotation in degrees, anticlockwise",
    "shift_right": "Shift in pixels, to the right",
    "scale": "Scale, a factor",
    "shear": "Shear in degrees, to the right",
}

HEAD = """# Results

The test error is measured once, on test images that were used neither for training nor for choosing the recipe.
`python benchmarks/tables.py` makes this page from `results/*.json`, which have for each run: recipe, validation log,
confusion matrix, hardware, versions and commit. Intervals in brackets are 95 % Wilson score intervals.

## Training
"""


def load() -> list[list[dict[str, Any]]]:
    """Return the runs, grouped so that those of a group differ only in their seeds."""
    runs = defaultdict(list)
    for path in sorted((ROOT / "results").glob("*.json")):
        run = json.loads(path.read_text())
        what = {"data": run["data"]} | {name: value for name, value in run["fields"].items() if name != "seed"}
        where = {name: run["environment"][name] for name in ("device", "cores", "torch", "precision", "commit")}
        runs[json.dumps([what, where])].append(run)
    return list(runs.values())


def table(groups: list[list[dict[str, Any]]]) -> str:
    """Return the table of test errors with a row for each group: mean ± standard deviation (n), time, hardware."""
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
    """Return what `benchmarks/robustness.py` measured: a section for each kind of measurement."""
    made = ""
    for kind, title, rows in (
        ("attacks", ATTACKS, attack_rows),
        ("detection", DETECTION, detection_rows),
        ("affine", AFFINE, affine_rows),
    ):
        for measured in measured_robustness(kind):
            where = measured["environment"]
            machine = f"{where['device']}, {where['cores']} cores, torch {where['torch']}, commit {where['commit'][:7]}"
            how = f"{machine}; {measured['seconds']:.0f} s; `python benchmarks/{where['command']}`"
            made += f"\n## {title}\n{how}\n\n{networks_measured(measured)}\n\n{rows(measured)}"
    return made


def measured_robustness(kind: str) -> list[dict[str, Any]]:
    """Return what is published of "attacks", "detection" or "affine"."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "results" / "robustness").glob(f"*-{kind}.json"))]


def networks_measured(measured: dict[str, Any]) -> str:
    """Return which networks were measured, with their test errors and weights."""
    if "networks" not in measured:
        commit = measured["environment"]["commit"][:7]
        return f"Networks trained before commit {commit}; their weights were not recorded."
    return f"Networks measured: {'; '.join(described(name, of) for name, of in measured['networks'].items())}."


def described(name: str, network: dict[str, Any]) -> str:
    """Return a network's recipe, size, weights and test errors."""
    errors, n = network["test"]["errors"], network["test"]["n"]
    return (
        f"{name} (recipe {network['recipe']}, {network['parameters']:,} parameters, "
        f"weights {network['weights_sha256'][:8]}) has {errors:,} errors on {n:,} test images"
    )


def robustness_in_short() -> str:
    """Return the README's lines on robustness: the networks, and a line for each measurement."""
    kinds = {"attacks": attacks_in_short, "affine": affine_in_short, "detection": detection_in_short}
    found = [(line, measured) for kind, line in kinds.items() for measured in measured_robustness(kind)]
    networks = {described(*item): None for _, measured in found for item in measured.get("networks", {}).items()}
    lines = [f"Networks measured: {'; '.join(networks)}."] if networks else []
    return "".join(f"- {line}\n" for line in (*lines, *(line(measured) for line, measured in found)))


def attacks_in_short(measured: dict[str, Any], norm: str = "Linf", near: float = 0.1) -> str:
    """Return the worst case at the epsilon next to `near`, with the verdict of the checks."""
    curves = [curve for curve in measured["curves"] if curve["norm"] == norm]
    epsilon = min(curves[0]["epsilons"][1:], key=lambda epsilon: abs(epsilon - near))
    right = {curve["network"]: curve["right"][curve["epsilons"].index(epsilon)] for curve in curves}
    n, each = curves[0]["n"], []
    for curve in curves:
        name = curve["network"]
        each.append(f"{name} has an accuracy of {percent(right[name], n)} % ({curve['verdict']})")
    compared = difference({name: (count, n) for name, count in right.items()})
    if len(curves) == 2:
        tried = list(zip(curves[0]["epsilons"], *(curve["intervals"] for curve in curves), strict=True))[1:]
        apart = [f"{at:g}" for at, one, other in tried if one[1] < other[0] or other[1] < one[0]]
        every = ", ".join(f"{at:g}" for at, *_ in tried)
        compared += f" Of the ε tried ({every}), the intervals do not overlap at {', '.join(apart) or 'none'}."
    return (
        f"Under the worst of all attacks, image by image, within ε = {epsilon:g} ({norm}, n = {n:,}): "
        f"{'; '.join(each)}. {compared or 'No other network was measured for comparison.' * (len(right) == 1)}"
    )


def difference(right: dict[str, tuple[int, int]]) -> str:
    """Return which of two networks, each with (right, n), is better, if their intervals do not overlap; else empty."""
    if len(right) != 2:
        return ""
    (worse, low), (better, high) = sorted(right.items(), key=lambda item: item[1][0] / item[1][1])
    if wilson(*low)[1] < wilson(*high)[0]:
        return f"The intervals do not overlap: {better} is better than {worse}."
    return "The intervals overlap: the difference may be chance."


def affine_in_short(measured: dict[str, Any]) -> str:
    """Return the accuracy under small random changes."""
    random, n = measured["random"], measured["n"]
    correct = {name: (of["correct"], of["n"]) for name, of in random["networks"].items()}
    each = ", ".join(f"{name} {percent(*counts)} %" for name, counts in correct.items())
    return (
        f"Accuracy on n = {n:,} test images that are rotated by up to ±{random['rotation']:g}° and shifted by up to "
        f"±{random['shift']} pixels at random: {each}. {difference(correct)}"
    )


def detection_in_short(measured: dict[str, Any]) -> str:
    """Return the share of images that is flagged: of PGD, of the adaptive attack, and of clean images."""
    clean, steps = measured["clean"], measured["steps"]
    each = {
        name: ", ".join(
            f"{percent(group['flagged'], group['n'])} % at ε = {group['epsilon']:g} (n = {group['n']:,})"
            for group in measured["suspects"]
            if group["name"] == name and group["n"]
        )
        for name in ("PGD", "adaptive")
    }
    return (
        f"Flagged by the reconstruction error: of the images with which PGD of {steps} steps fools {measured['run']}, "
        f"{each['PGD']}; of those of the adaptive attack, which knows the threshold (also {steps} steps), "
        f"{each['adaptive']}; of clean test images, {percent(clean['flagged'], clean['n'])} % (n = {clean['n']:,})."
    )


def speed() -> dict[str, dict[str, Results]]:
    """Return what was measured of speed, by benchmark and kind of machine, and of the demo."""
    folders = {one.name: sorted((ROOT / "results" / one.name).glob("*.json")) for one in BENCHMARKS}
    measured = {name: {path.stem: json.loads(path.read_text()) for path in paths} for name, paths in folders.items()}
    return measured | {"demo": demo()}


def demo() -> dict[str, Results]:
    """Return the run of `make demo` by kind of machine; of several runs, the one with the median time."""
    found = defaultdict(list)
    for path in sorted((ROOT / "results").glob("digits-*.json")):
        run = json.loads(path.read_text())
        if run["recipe"] == "digits" and "cpu" in run["environment"]["torch"]:
            found["cpu-bf16" if "bf16" in run["environment"]["precision"] else "cpu-float32"].append(run)
    return {kind: sorted(runs, key=lambda run: run["training_seconds"])[len(runs) // 2] for kind, runs in found.items()}


def speed_in_short(measured: dict[str, dict[str, Results]]) -> str:
    """Return the README's lines on speed: the main results of the first kind of machine, and their plot."""
    kind = next((kind for kind in KINDS if kind in measured["training"]), None)
    if kind is None:
        return ""
    results, where = measured["training"][kind], measured["training"][kind]["environment"]
    row = default_row(results)
    assert row is not None
    text = (
        f"On {where['cores']} cores of an {where['device']} ({KINDS[kind]}, torch {where['torch']}) training in "
        f"{row['dtype']} reaches {row['images_per_second']:,.0f} images/s at batch size {results['batch_size']}, "
        f"{row['speedup']:.1f} times naive PyTorch's in float32{epoch_in_short(measured, kind)}"
        f"{start_in_short(results)}. {goals_in_short(measured, kind)}"
    )
    picture = f"![Training speed, from naive PyTorch to capsnet train](docs/training-{kind}.png)"
    return f"{textwrap.fill(text, 120, break_on_hyphens=False)}\n\n{picture}\n"


def epoch_in_short(measured: dict[str, dict[str, Results]], kind: str) -> str:
    """Return how long an epoch takes, if it was measured."""
    found = epoch(measured["epoch_to_accuracy"].get(kind, {}))
    return "" if found is None else f"; an epoch of MNIST takes {found[0]:.0f} s"


def start_in_short(results: Results) -> str:
    """Return when the first step ends, if it was measured."""
    if not (first := results.get("first_step")):
        return ""
    return f"; the first step ends {first['filled']:.1f} s after the command ({first['empty']:.1f} s the first time)"


def goals_in_short(measured: dict[str, dict[str, Results]], kind: str) -> str:
    """Return how many of the goals are met on a kind of machine."""
    every = [one for name in GOALS for one in verdicts(name, measured[name].get(kind, {})) if one.met is not None]
    met = sum(bool(one.met) for one in every)
    return f"Of the {len(every)} goals measured there, {met} are met and {len(every) - met} are missed."


def speed_in_full(measured: dict[str, dict[str, Results]]) -> str:
    """Return all tables of speed, a section for each benchmark and kind of machine."""
    made = f"\n## Speed\n{markdown(goals_by_device(measured))}"
    for benchmark in BENCHMARKS:
        for kind, results in measured[benchmark.name].items():
            made += f"\n## {benchmark.title}: {KINDS.get(kind, kind)}\n{machine(results)}\n"
            made += "".join(f"\n{markdown(table)}" for table in benchmark.tables(results))
    return made


def scaling_page() -> str:
    """Return docs/SCALING.md with the table of what was measured."""
    page, results = ROOT / "docs" / "SCALING.md", json.loads(scaling.RESULT.read_text())
    return between(page.read_text(), "scaling", markdown(scaling.table(results)))


def between(text: str, name: str, made: str) -> str:
    """Return the text with the part between <!-- name --> and <!-- /name --> replaced."""
    before, rest = text.split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->")[1]
    return f"{before}<!-- {name} -->\n{made}<!-- /{name} -->{after}"


def percent(right: int, n: int) -> str:
    """Return a share in % with its 95 % interval."""
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def attack_rows(measured: dict[str, Any]) -> str:
    """Return the worst case by network, norm and ε, its convergence, and the checks of the attacks."""
    settings = measured["settings"]
    steps = ", ".join(map(str, settings["steps"]))
    lines = [
        "Worst case over all attacks, image by image: an image counts as right only if every attack on it has failed. "
        f"PGD on two losses (margin, cross-entropy) with {steps} steps, each of 2.5 ε / steps; {settings['starts']} "
        f"random starts, all but the first with {settings['start_steps']} steps; transfer attacks (PGD on the other "
        f"networks); for Linf the Square attack ({settings['queries']:,} queries, no gradient); for L2 DeepFool. "
        "An image that is fooled within a smaller ε counts as fooled within a larger one.",
        "",
    ]
    for norm in ("Linf", "L2"):
        curves = [curve for curve in measured["curves"] if curve["norm"] == norm]
        epsilons = [f"{epsilon:g}" for epsilon in curves[0]["epsilons"]]
        lines += [f"Worst case, {norm}: accuracy in % of n = {curves[0]['n']:,} test images, by ε", ""]
        lines += [f"| network | {' | '.join(epsilons)} | checks of the attacks |", "|---" * (len(epsilons) + 2) + "|"]
        for curve in curves:
            cells = [percent(right, curve["n"]) for right in curve["right"]]
            lines.append(f"| {curve['network']} | {' | '.join(cells)} | {curve['verdict']} |")
        lines.append("")
    lines += convergence_rows(measured)
    lines += ["", "Checks of the attacks, each at the ε with the largest difference:", ""]
    lines += [f"- {check['sentence']}" for curve in measured["curves"] for check in curve["checks"]]
    rules = "; ".join(f"{name}: {rule}" for name, rule in measured["rules"].items())
    return "\n".join([*lines, "", f"A check passes if, at every ε, {rules}."]) + "\n"


def convergence_rows(measured: dict[str, Any]) -> list[str]:
    """Return accuracy by the steps of PGD, at every ε."""
    steps = [str(steps) for steps in sorted(measured["settings"]["steps"])]
    lines = ["Accuracy in % after PGD with at most this number of steps, from one random start", ""]
    lines += [f"| network | norm | ε | {' | '.join(steps)} | converged |", "|---" * (len(steps) + 4) + "|"]
    for curve in measured["curves"]:
        for ball in curve["balls"]:
            cells = [f"{100 * ball['accuracy_by_steps'][number]:.1f}" for number in steps]
            converged = f"after {ball['converged_after_steps']} steps" if ball["converged"] else "**no**"
            lines.append(
                f"| {curve['network']} | {curve['norm']} | {ball['epsilon']:g} | {' | '.join(cells)} | {converged} |"
            )
    return lines


def detection_rows(measured: dict[str, Any]) -> str:
    """Return how many images of each group are flagged."""
    steps = measured["steps"]
    words = (
        f"Threshold {measured['threshold']:.2f}, set on {measured['validation_n']:,} validation images. PGD, on the "
        f"cross-entropy, and the adaptive attack take {steps} steps from one random start; PGD continues after it has "
        "fooled the network. The adaptive attack stops just below the threshold, so its flagged share measures the "
        "detection; its AUC does not.\n\n"
    )
    rows = ["| images | tried | fooled | flagged, % | undetected, % of tried | AUC |", "|---|---|---|---|---|---|"]
    for group in (measured["clean"], *measured["suspects"]):
        attacked = group["epsilon"] is not None
        called = group["name"] if group["name"] not in ("PGD", "adaptive") else f"{group['name']}-{steps}"
        name = f"{called}, ε = {group['epsilon']:g}" if attacked else called
        flagged = percent(group["flagged"], group["n"]) if group["n"] else "—"
        undetected = percent(group["undetected"], group["tried"]) if attacked else "—"
        area = "—" if group is measured["clean"] or group["auc"] is None else f"{group['auc']:.3f}"
        cells = [name, str(group["tried"]), str(group["n"]) if attacked else "—", flagged, undetected, area]
        rows.append("| " + " | ".join(cells) + " |")
    return words + "\n".join(rows) + "\n"


def affine_rows(measured: dict[str, Any]) -> str:
    """Return accuracy by network, change and amount."""
    lines = []
    for change in ("rotation", "shift_right", "scale", "shear"):
        by_network = measured[change]
        amounts = [f"{point['amount']:g}" for point in next(iter(by_network.values()))]
        lines += [f"{CHANGES[change]}: accuracy in % of n = {measured['n']:,} test images", ""]
        lines += ["| network | " + " | ".join(amounts) + " |", "|---" * (len(amounts) + 1) + "|"]
        for network, points in by_network.items():
            cells = [percent(point["correct"], point["n"]) for point in points]
            lines.append(f"| {network} | " + " | ".join(cells) + " |")
        lines.append("")
    random = measured["random"]
    lines += [
        f"Rotated by up to ±{random['rotation']:g}° and shifted by up to ±{random['shift']} pixels, at random:",
        "",
    ]
    lines += [f"- {name}: {percent(of['correct'], of['n'])}" for name, of in random["networks"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the texts and the plots, or report which texts are out of date."""
    made, measured = table(load()), speed()
    readme = between((ROOT / "README.md").read_text(), "results", made)
    readme = between(readme, "speed", speed_in_short(measured))
    readme = between(readme, "robustness", robustness_in_short())
    results = HEAD + made + robustness() + speed_in_full(measured)
    texts = {"README.md": readme, "RESULTS.md": results, "docs/SCALING.md": scaling_page()}
    stale = [name for name, text in texts.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    if "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}: run python benchmarks/tables.py" if stale else "tables are up to date")
        return int(bool(stale))
    for name in stale:
        (ROOT / name).write_text(texts[name])
    for benchmark in BENCHMARKS:
        if benchmark.plot is not None:
            for kind, found in measured[benchmark.name].items():
                plot(benchmark, found, ROOT / "docs" / f"{benchmark.name}-{kind}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
