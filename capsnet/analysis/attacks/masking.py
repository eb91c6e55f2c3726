"""Signs that attacks fail because a network's gradient leads them astray, and not because the network holds.

A gradient that is hidden, not removed, makes a network look robust; it betrays itself in that more of an attack, or
another attack, does better (Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capsnet.robustness.attacks import DEEPFOOL, LARGE, SQUARE, TRANSFER, Ball, WorstCase
from capsnet.robustness.intervals import wilson

SLACK = 0.05  # share of the images: few of them have so wide an interval that it would excuse much more
LEVEL = f"within the 95 % interval of, and at most {100 * SLACK:g} points above, what is left after {{}}"
RULES = {
    "more steps": "after half of the steps accuracy is " + LEVEL.format("all of them"),
    "more starts": "after one random start accuracy is " + LEVEL.format("all of them"),
    "no gradients": "after all attacks by gradient accuracy is " + LEVEL.format("the Square attack too"),
    "least distance": "after PGD accuracy is " + LEVEL.format("DeepFool too"),
    "transfer": "after all these accuracy is " + LEVEL.format("images made for other networks too"),
    "large epsilon": f"within {LARGE:g} (Linf) nothing is left",
}


@dataclass(frozen=True)
class Check:
    """One check of one worst case: what was left as attacks were added, and whether that was no more to be had."""

    network: str
    norm: str
    name: str
    """One of RULES."""
    n: int
    epsilon: float
    """Of all that were tried, where most was still to be had."""
    right: dict[str, int]
    """How many of the n images were right, by the last attack added."""
    passed: bool
    """At every epsilon."""

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        shares = ", ".join(f"{name}: {100 * right / self.n:.0f} %" for name, right in self.right.items())
        verdict = "passed" if self.passed else "FLAGGED"
        return f"{self.network}, {self.norm}, {self.name}: {verdict} (n = {self.n}, ε = {self.epsilon:g}; {shares})"


def is_level(before: int, after: int, n: int) -> bool:
    """Whether hardly more of n images were right before an attack than the `after` that are left once it was added.

    Hardly more is within the 95 % interval of what is left, and at most 5 points above.
    """
    return before / n <= wilson(after, n)[1] and before - after <= SLACK * n


def step_names(ball: Ball) -> list[str]:
    """Names in `Ball.after` of the attacks that differ in their number of steps, ascending."""
    return [name for name in ball.after if "-" in name]


def levels(curve: WorstCase, ball: Ball) -> dict[str, Any]:
    """Accuracy by number of steps, and from which number on it is level: from the last alone is not."""
    names = step_names(ball)
    right = {int(name.split("-")[1]): ball.after[name] for name in names}
    last = right[max(right)]
    since = min(steps for steps in right if is_level(right[steps], last, curve.n))
    accuracies = {str(steps): count / curve.n for steps, count in right.items()}
    return {"accuracy_by_steps": accuracies, "level_from_steps": since, "level": since < max(right)}


def check_curve(curve: WorstCase) -> list[Check]:
    """Every check that the attacks of a curve allow."""
    if not curve.balls:
        return []
    names = list(curve.balls[0].after)
    steps = step_names(curve.balls[0])
    starts = [name for name in names if name.endswith(" starts")]
    groups = {"more steps": steps, "more starts": [steps[-1], *starts]}
    groups |= {"no gradients": _up_to(names, SQUARE), "least distance": _up_to(names, DEEPFOOL)}
    groups |= {"transfer": _up_to(names, TRANSFER)}
    checks = [_check(curve, name, group) for name, group in groups.items() if len(group) > 1]
    large = [ball for ball in curve.balls if curve.norm == "Linf" and ball.epsilon == LARGE]
    right = {f"{LARGE:g}": ball.right for ball in large}
    checks += [
        Check(curve.network, curve.norm, "large epsilon", curve.n, LARGE, right, not ball.right) for ball in large
    ]
    return checks


def verdict(curve: WorstCase) -> str:
    """What the checks of a curve say of it, in a few words that stand next to its figures."""
    checks, steps = check_curve(curve), [levels(curve, ball) for ball in curve.balls]
    if not checks:
        return "not checked"
    level = f"level from {max(of['level_from_steps'] for of in steps)} steps of PGD on"
    if not all(of["level"] for of in steps):
        level = f"not level at {max(int(k) for k in steps[0]['accuracy_by_steps'])} steps of PGD"
    flagged = [f"{check.name} (ε = {check.epsilon:g})" for check in checks if not check.passed]
    if flagged:
        return f"{level}; FLAGGED by {len(flagged)} of {len(checks)} checks: {', '.join(flagged)}: it may be too high"
    return f"{level}; passed all {len(checks)} checks"


def _up_to(names: list[str], name: str) -> list[str]:
    """A name with the one before it, or nothing where it is not there."""
    place = names.index(name) if name in names else 0
    return names[place - 1 : place + 1] if place else []


def _check(curve: WorstCase, name: str, group: list[str]) -> Check:
    """Compare what was left before the last of a group of attacks with what was left after it, at every epsilon.

    Random starts are compared with the first of them.
    """
    before, after = group[0] if name == "more starts" else group[-2], group[-1]
    passed = all(is_level(ball.after[before], ball.after[after], curve.n) for ball in curve.balls)
    worst = max(curve.balls, key=lambda ball: ball.after[before] - ball.after[after])
    right = {stage: worst.after[stage] for stage in group}
    return Check(curve.network, curve.norm, name, curve.n, worst.epsilon, right, passed)
