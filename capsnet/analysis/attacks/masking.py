"""Checks for masked gradients: a network may seem robust only because its gradient misleads the attacks.

Stronger or other attacks then have more success (Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense
of Security", 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capsnet.analysis.accuracy import wilson
from capsnet.analysis.attacks.worst_case import DEEPFOOL, LARGE, SQUARE, TRANSFER, Ball, WorstCase

SLACK = 0.05  # share of the images: the interval of few images is wide and would accept much more
CLOSE = f"accuracy {{}} is within the 95 % interval of accuracy {{}}, and at most {100 * SLACK:g} points above it"
RULES = {
    "more steps": CLOSE.format("after half of the steps", "after all steps"),
    "more starts": CLOSE.format("after one random start", "after all random starts"),
    "no gradients": CLOSE.format("after all gradient attacks", "after the Square attack too"),
    "least distance": CLOSE.format("after PGD", "after DeepFool too"),
    "transfer": CLOSE.format("after all of these", "after transfer attacks too"),
    "large epsilon": f"no image is right within {LARGE:g} (Linf)",
}


@dataclass(frozen=True)
class Check:
    """One check of one network in one norm: how many images were right as attacks were added."""

    network: str
    norm: str
    name: str
    """One of RULES."""
    n: int
    epsilon: float
    """The epsilon at which the last attack added made the largest difference."""
    right: dict[str, int]
    """Of n images, by the last attack added."""
    passed: bool
    """At every epsilon."""

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        shares = ", ".join(f"{name}: {100 * right / self.n:.0f} %" for name, right in self.right.items())
        outcome = "passed" if self.passed else "FLAGGED"
        return f"{self.network}, {self.norm}, {self.name}: {outcome} (n = {self.n}, ε = {self.epsilon:g}; {shares})"


def is_close(before: int, after: int, n: int) -> bool:
    """Whether `before` right images of n are only slightly more than `after`, those right after an attack was added.

    Slightly more means within the 95 % interval of what is left, and at most 5 points above it.
    """
    return before / n <= wilson(after, n)[1] and before - after <= SLACK * n


def step_names(ball: Ball) -> list[str]:
    """Names in `Ball.after` of PGD from its first start, by number of steps, ascending."""
    return [name for name in ball.after if name.startswith("PGD-")]


def convergence(curve: WorstCase, ball: Ball) -> dict[str, Any]:
    """Accuracy by number of steps; converged if a smaller number nearly gives the accuracy of the largest."""
    right = {int(name.removeprefix("PGD-")): ball.after[name] for name in step_names(ball)}
    last = right[max(right)]
    after = min(steps for steps in right if is_close(right[steps], last, curve.n))
    accuracies = {str(steps): count / curve.n for steps, count in right.items()}
    return {"accuracy_by_steps": accuracies, "converged_after_steps": after, "converged": after < max(right)}


def check_curve(curve: WorstCase) -> list[Check]:
    """Every check that the attacks of a curve allow."""
    if not curve.balls:
        return []
    names, steps = list(curve.balls[0].after), step_names(curve.balls[0])
    starts = [name for name in names if name.endswith(" starts")]
    groups = {"more steps": steps, "more starts": [steps[-1], *starts]}
    for check, name in (("no gradients", SQUARE), ("least distance", DEEPFOOL), ("transfer", TRANSFER)):
        place = names.index(name) if name in names else 0
        groups[check] = names[place - 1 : place + 1] if place else []
    checks = [_check(curve, name, group) for name, group in groups.items() if len(group) > 1]
    large = [ball for ball in curve.balls if curve.norm == "Linf" and ball.epsilon == LARGE]
    return checks + [
        Check(curve.network, curve.norm, "large epsilon", curve.n, LARGE, {f"{LARGE:g}": ball.right}, not ball.right)
        for ball in large
    ]


def verdict(curve: WorstCase) -> str:
    """What the checks of a curve found, in a few words, to print next to its accuracies."""
    checks, found = check_curve(curve), [convergence(curve, ball) for ball in curve.balls]
    if not checks:
        return "not checked"
    words = f"converged after {max(each['converged_after_steps'] for each in found)} steps of PGD"
    if not all(each["converged"] for each in found):
        words = f"not converged after {max(int(steps) for steps in found[0]['accuracy_by_steps'])} steps of PGD"
    flagged = [f"{check.name} (ε = {check.epsilon:g})" for check in checks if not check.passed]
    if flagged:
        count = f"{len(flagged)} of {len(checks)} checks"
        return f"{words}; FLAGGED by {count}: {', '.join(flagged)}: the accuracy may be too high"
    return f"{words}; passed all {len(checks)} checks"


def _check(curve: WorstCase, name: str, group: list[str]) -> Check:
    """Compare what was right before the last of a group of attacks with what was right after it, at every epsilon.

    Random starts are compared with the first of them.
    """
    before, after = group[0] if name == "more starts" else group[-2], group[-1]
    passed = all(is_close(ball.after[before], ball.after[after], curve.n) for ball in curve.balls)
    worst = max(curve.balls, key=lambda ball: ball.after[before] - ball.after[after])
    right = {stage: worst.after[stage] for stage in group}
    return Check(curve.network, curve.norm, name, curve.n, worst.epsilon, right, passed)
