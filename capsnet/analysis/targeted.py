"""Targeted attacks on every pair of classes: gradient ascent on the score of a class that the attacker chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from capsnet.analysis import style
from capsnet.analysis.attacks.pgd import BATCH, FullGradient, ascend, unit
from capsnet.analysis.style import keep_numbers, page
from capsnet.analysis.subject import Context, Network, subject
from capsnet.data import ImageSet, batches
from capsnet.errors import InputError
from capsnet.models import CapsNet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 10
CELL = 0.42  # inches: a cell of a matrix, and an image


@subject(
    {
        "targeted.png": "Targeted attacks on each pair of classes: gradient ascent on the target's score until it is "
        "the highest.",
        "targeted-images.png": "The first image of each class, the adversarial images, and what was added to them.",
    },
)
@click.option(
    "--per-class", default=1, show_default=True, help="Images of each class, each attacked towards every other class."
)
def targeted(context: Context, per_class: int = 1) -> Iterator[Path]:
    """Attack every pair of classes: gradient ascent on the target class's length."""
    path = context.folder / "targeted.png"
    yield from plot_targeted(context.network, context.data.test, context.data.classes, path, per_class=per_class)


@dataclass(frozen=True)
class TargetedResult:
    """The outcome of p attacks: every source image towards every class but its own, by source, then by target."""

    classes: int  # how many of the network's classes, the first ones, are sources and targets
    originals: Tensor  # [p, c, h, w] in [0, 1]: the source image of each attack
    adversarial: Tensor  # [p, c, h, w] in [0, 1]: the image after the attack
    sources: Tensor  # int64 [p]: the true class, which the network predicts for the original
    targets: Tensor  # int64 [p]: the class that the attack aims at
    success: Tensor  # bool [p]: the network predicts it
    steps: Tensor  # int64 [p]: steps until success, or all of them

    @property
    def l2(self) -> Tensor:
        """Root of the summed squared changes of an image, [p]."""
        return torch.linalg.vector_norm((self.adversarial - self.originals).flatten(1), dim=-1)  # over c, h, w

    @property
    def linf(self) -> Tensor:
        """Largest change of a pixel, [p]."""
        return (self.adversarial - self.originals).flatten(1).abs().amax(dim=-1)  # over c, h, w

    def by_pair(self, measured: Tensor, counted: Tensor) -> list[list[float | None]]:
        """Means of a measurement [p] by source (row) and target (column), of the attacks that are counted, bool [p].

        None if there are none.
        """
        table: list[list[float | None]] = [[None] * self.classes for _ in range(self.classes)]
        for source, target in product(range(self.classes), repeat=2):
            here = measured[(self.sources == source) & (self.targets == target) & counted]
            table[source][target] = float(here.double().mean()) if len(here) else None
        return table


def attack_targets(
    network: Network, images: ImageSet, *, per_class: int = 1, steps: int = 100, step_size: float = 0.2
) -> TargetedResult:
    """Attack the first images of each class that the network classifies right, towards every other class.

    A step of length step_size (L2) follows the gradient of the target's score, a capsule's length or a baseline's
    logit, where pixels can still move within [0, 1]. An attack ends when the target's score is the highest, or after
    `steps` steps. The gradient's length is not used, because it differs by orders of magnitude between networks. If
    there are more than ten classes, the first ten are attacked.
    Raises InputError for counts below 1, a step size that is not above 0, and a set without an image classified right.
    """
    if per_class < 1 or steps < 1 or not step_size > 0:
        raise InputError(
            f"an attack takes at least 1 image per class, at least 1 step and a step size above 0, "
            f"not {per_class}, {steps} and {step_size:g}"
        )
    classes, model = min(MOST_CLASSES, network.classes), FullGradient(network)

    def objective(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        scores = model(images)  # [p, j]
        return scores.gather(-1, targets[:, None]).squeeze(-1), scores.argmax(dim=-1) == targets  # over classes j

    def step(images: Tensor, gradient: Tensor, _: Tensor) -> Tensor:
        blocked = ((images <= 0) & (gradient < 0)) | ((images >= 1) & (gradient > 0))  # most of a black background is
        return (images + step_size * unit(gradient.masked_fill(blocked, 0))).clamp(0, 1)

    sources = _first_right(model, images.to(model.device), classes, per_class)
    pairs = [(k, target) for k in range(len(sources)) for target in range(classes) if target != sources.labels[k]]
    places, targets = torch.tensor(pairs, device=model.device).unbind(dim=-1)  # [p] each
    attacked = sources.select(places)
    originals = attacked.images.float() / 255
    adversarial, success, taken = ascend(objective, originals, targets, step, steps)
    measured = (originals, adversarial, attacked.labels, targets, success, taken)
    return TargetedResult(classes, *(tensor.cpu() for tensor in measured))


def _first_right(model: FullGradient, images: ImageSet, classes: int, per_class: int) -> ImageSet:
    """Return the first images of each class that are classified right, by class; it stops when there are enough."""
    found: list[list[int]] = [[] for _ in range(classes)]
    start = 0
    for pixels, labels in batches(images, BATCH):
        with torch.no_grad():
            right = model(pixels).argmax(dim=-1) == labels  # over classes j
        for k, kept in enumerate(found):
            kept += (start + (right & (labels == k)).nonzero().flatten()).tolist()
        start += len(labels)
        if all(len(kept) >= per_class for kept in found):
            break
    if not any(found):
        raise InputError(f"none of the {len(images)} images is classified right, so there is nothing to attack")
    return images.select(torch.tensor([place for kept in found for place in kept[:per_class]]))


def plot_targeted(
    network: Network,
    images: ImageSet,
    classes: tuple[str, ...],
    path: Path,
    *,
    per_class: int = 1,
    steps: int = 100,
    step_size: float = 0.2,
) -> tuple[Path, Path]:
    """Attack the first images of each class towards every other class, and plot the outcome.

    The matrices of success and distance are at `path`, and the numbers next to it as JSON. A second figure, whose name
    ends in -images, has the first image of each class, the adversarial images and the differences.
    Raises InputError as `attack_targets` does.
    """
    attacked = attack_targets(network, images, per_class=per_class, steps=steps, step_size=step_size)
    names = style.class_names(classes, style.SHORT)[: attacked.classes]
    only = f" among the first {attacked.classes} of {len(classes)} classes" if attacked.classes < len(classes) else ""
    how = (
        f"Gradient ascent on the target's {'length' if isinstance(network, CapsNet) else 'logit'}, at most {steps} "
        f"steps of {step_size:g} (L2), pixels kept in [0, 1]"
    )
    _plot_matrices(attacked, names, path, only, how)
    keep_numbers(path, _numbers(attacked, classes) | {"most_steps": steps, "step_size": step_size})
    return path, _plot_images(attacked, names, path.with_stem(f"{path.stem}-images"), only, how)


def _plot_matrices(attacked: TargetedResult, names: list[str], path: Path, only: str, how: str) -> None:
    rates = attacked.by_pair(100.0 * attacked.success, torch.ones_like(attacked.success))
    distances = attacked.by_pair(attacked.l2, attacked.success)
    side, between = max(3.2, CELL * len(names)), 1.9  # inches
    width = 2 * side + between
    with page(path, width, side) as figure:
        count = f"{int(attacked.success.sum())} of n = {len(attacked.success)} attacks{only} succeeded"
        style.write_title(figure, f"Targeted attacks: {count}", side + 0.5)
        left, right = (figure.add_axes((x / width, 0, side / width, 1)) for x in (0, side + between))
        _plot_matrix(left, "success, %", rates, names, 100.0, "{:.0f}")
        _plot_matrix(right, "mean L2 distance of successes", distances, names, None, "{:.1f}")
        below = 1.1 if style.rotation(names, CELL) else 0.65  # inches: the names of the targets
        style.write_note(figure, f"{how}. —: no attack, or no success", -below)


def _plot_matrix(
    axes: Axes, title: str, table: list[list[float | None]], names: list[str], most: float | None, form: str
) -> None:
    """Plot means by source (row) and target (column), each with its number."""
    cells = torch.tensor([[torch.nan if mean is None else mean for mean in row] for row in table])
    highest = most or float(cells.nan_to_num(0).max()) or 1.0
    axes.imshow(cells.numpy(), cmap="Blues", vmin=0, vmax=2 * highest)  # dark blues would hide the numbers
    for row, means in enumerate(table):
        for column, mean in enumerate(means):
            words = "" if row == column else "—" if mean is None else form.format(mean)
            axes.text(column, row, words, ha="center", va="center_baseline", fontsize=style.SMALL)
    axes.set_title(title, fontsize=style.LABEL, loc="left")
    axes.set_xticks(range(len(names)), names, fontsize=style.SMALL, rotation=style.rotation(names, CELL))
    axes.set_yticks(range(len(names)), names, fontsize=style.SMALL)
    axes.set_xlabel("target class", fontsize=style.LABEL)
    axes.set_ylabel("true class of the image", fontsize=style.LABEL)
    axes.tick_params(length=0)


def _plot_images(attacked: TargetedResult, names: list[str], path: Path, only: str, how: str) -> Path:
    """Plot the first image of each class: for each target original, adversarial image and difference, side by side."""
    n = len(names)
    tiles, failed, most = _tiles(attacked, n)
    height = n * CELL * style.cell_height(*tiles.shape[-2:])  # inches
    with page(path, 3 * n * CELL, height) as figure:
        axes = style.plot_grid(figure, tiles, (0, 0), CELL, names)
        for row, column in failed:
            style.frame(axes, row, 3 * column + 1, style.VERMILLION)
        axes.set_xticks([3 * column + 1 for column in range(n)], [f"to {name}" for name in names], fontsize=style.SMALL)
        for column in range(1, n):
            axes.axvline(3 * column - 0.5, color=style.BLACK, linewidth=0.8)
        axes.set_ylabel("true class", fontsize=style.LABEL)
        style.write_title(figure, f"Adversarial images of targeted attacks{only}", height + 0.45)
        note = (
            f"In each block: original, adversarial image and difference (red: brighter, blue: darker, white: none; "
            f"full colour at ±{most:.2f}). An orange frame: the attack failed. Blank: not attacked. {how}."
        )
        style.write_note(figure, note, -0.1)
    return path


def _tiles(attacked: TargetedResult, n: int) -> tuple[Tensor, list[tuple[int, int]], float]:
    """Images as plot_grid takes them, failed attacks (source, target), and the change that is shown in full colour."""
    difference = (attacked.adversarial - attacked.originals).mean(dim=-3)  # over channels c, [p, h, w]
    most = float(difference.abs().max()) or 1.0
    tiles = torch.ones(n, 3 * n, 3, *difference.shape[-2:])
    shown, failed = set(), []
    for k, pair in enumerate(zip(attacked.sources.tolist(), attacked.targets.tolist(), strict=True)):
        if pair in shown:
            continue
        shown.add(pair)
        row, column = pair
        pixels = torch.stack([attacked.originals[k], attacked.adversarial[k]])
        block = [*style.in_colour(pixels), _diverging(difference[k] / most)]
        tiles[row, 3 * column : 3 * column + 3] = torch.stack(block)
        if not attacked.success[k]:
            failed.append(pair)
    return tiles, failed, most


def _diverging(difference: Tensor) -> Tensor:
    """Differences [h, w] from -1 to 1 as colours [3, h, w] from blue over white to red."""
    from matplotlib import colormaps

    colours = torch.as_tensor(colormaps["RdBu_r"](((difference + 1) / 2).numpy()))  # [h, w, rgba]
    return colours[..., :3].movedim(-1, 0).float()


def _numbers(attacked: TargetedResult, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the JSON file holds: outcomes by pair, source classes in rows and targets in columns."""
    every, success = torch.ones_like(attacked.success), attacked.success
    tables = {
        "success": attacked.by_pair(success, every),
        "steps": attacked.by_pair(attacked.steps, success),
        "l2": attacked.by_pair(attacked.l2, success),
        "linf": attacked.by_pair(attacked.linf, success),
    }
    rate = {"n": len(every), "successes": int(success.sum()), "success_rate": float(success.double().mean())}
    return rate | {"classes": classes[: attacked.classes], "rows": "true class", "columns": "target class"} | tables
