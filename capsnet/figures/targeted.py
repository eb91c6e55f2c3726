"""Attacks on every pair of classes: how far each had to go, and what it made of the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capsnet.analysis.style import (
    BLACK,
    GREY,
    LABEL,
    SMALL,
    TITLE,
    VERMILLION,
    cell_height,
    class_names,
    frame,
    in_colour,
    keep_numbers,
    page,
    plot_grid,
    wrapped,
)
from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.models import CapsNet
from capsnet.robustness.targeted import Targeted, attack_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST = 13  # letters of a class's name that fit beside a row
CELL = 0.42  # inches: a cell of a matrix, and an image
POINTS = 72  # an inch


def draw_targeted(
    network: CapsNet | ConvBaseline,
    images: ImageSet,
    classes: tuple[str, ...],
    path: Path,
    *,
    per_class: int = 1,
    steps: int = 100,
    step_size: float = 0.2,
) -> Path:
    """Attack the first images of each class towards every other class; draw the outcome, and the images beside it.

    The matrices of success and distance are at `path`; the first image of each class, what was made of it and the
    difference are in a second picture, whose name ends in -images. Beyond ten classes the first ten are attacked.
    Raises InputError for what `attack_targets` refuses.
    """
    attacked = attack_targets(network, images, per_class=per_class, steps=steps, step_size=step_size)
    names = class_names(classes, LONGEST)[: attacked.classes]
    only = f" among the first {attacked.classes} of {len(classes)} classes" if attacked.classes < len(classes) else ""
    how = (
        f"Gradient ascent on the target's {'length' if isinstance(network, CapsNet) else 'logit'}, at most {steps} "
        f"steps of {step_size:g} (L2), pixels kept in [0, 1]"
    )
    _draw_matrices(attacked, names, path, only, how)
    _draw_images(attacked, names, path.with_stem(f"{path.stem}-images"), only, how)
    keep_numbers(path, _numbers(attacked, classes) | {"most_steps": steps, "step_size": step_size})
    return path


def _draw_matrices(attacked: Targeted, names: list[str], path: Path, only: str, how: str) -> None:
    n = len(names)
    every = torch.ones_like(attacked.success)
    side, between = max(3.2, CELL * n), 1.9  # inches
    with page(path, 2 * side + between, side) as figure:
        width, height = figure.get_size_inches()
        count = f"{int(attacked.success.sum())} of n = {len(every)} attacks{only} succeeded"
        title = wrapped(f"Targeted attacks: {count}", width, 1.15 * TITLE)  # bold is wider
        figure.text(0, 1 + 0.5 / height, title, fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
        for k, (words, measured, counted, most, form) in enumerate(
            (
                ("success, %", 100.0 * attacked.success, every, 100.0, "{:.0f}"),
                ("mean L2 distance of successes", attacked.l2, attacked.success, None, "{:.1f}"),
            )
        ):
            axes = figure.add_axes((k * (side + between) / width, 0, side / width, 1))
            _draw_matrix(axes, attacked.by_pair(measured, counted), names, most, form)
            axes.set_title(words, fontsize=LABEL, color=BLACK, loc="left")
        caption = f"{how}. Without an attack, or a success: —"
        below = 1.1 if _upright(names) else 0.65  # inches: the names of the targets
        figure.text(0, -below / height, wrapped(caption, width, SMALL), fontsize=SMALL, va="top", color=GREY)


def _draw_matrix(axes: Axes, table: list[list[float | None]], names: list[str], most: float | None, form: str) -> None:
    """Draw means by source (row) and target (column), each with its number."""
    cells = torch.tensor([[torch.nan if mean is None else mean for mean in row] for row in table])
    highest = most or float(cells.nan_to_num(0).max()) or 1.0
    axes.imshow(cells.numpy(), cmap="Blues", vmin=0, vmax=2 * highest)  # dark blues would hide the numbers
    for row, means in enumerate(table):
        for column, mean in enumerate(means):
            words = "" if row == column else "—" if mean is None else form.format(mean)
            axes.text(column, row, words, ha="center", va="center_baseline", fontsize=SMALL, color=BLACK)
    axes.set_xticks(range(len(names)), names, fontsize=SMALL, rotation=90 if _upright(names) else 0)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_xlabel("target class", fontsize=LABEL)
    axes.set_ylabel("true class of the image", fontsize=LABEL)
    axes.tick_params(length=0)


def _upright(names: list[str]) -> bool:
    """Whether names below a matrix are too wide for its columns."""
    return max(map(len, names)) > 4


def _draw_images(attacked: Targeted, names: list[str], path: Path, only: str, how: str) -> None:
    """Draw the first image of each class: for each target original, adversarial image and difference, side by side."""
    n = len(names)
    tiles, failed, most = _tiles(attacked, n)
    _, h, w = tiles.shape[-3:]
    tall = CELL * cell_height(h, w)
    with page(path, 3 * n * CELL, n * tall) as figure:
        width, height = figure.get_size_inches()
        axes = plot_grid(figure, tiles, (0, 0), CELL, names)
        for row, column in failed:
            frame(axes, row, 3 * column + 1, VERMILLION)
        axes.set_xticks([3 * column + 1 for column in range(n)], [f"to {name}" for name in names], fontsize=SMALL)
        axes.xaxis.tick_top()
        for column in range(1, n):
            axes.axvline(3 * column - 0.5, color=BLACK, linewidth=0.8)
        axes.set_ylabel("true class", fontsize=LABEL)
        title = wrapped(f"What targeted attacks{only} make of an image", width, 1.15 * TITLE)
        figure.text(0, 1 + 0.45 / height, title, fontsize=TITLE, weight="bold", va="bottom", color=BLACK)
        caption = (
            f"In each block: original, adversarial image and difference (red: brighter, blue: darker, white: none; "
            f"full colour at ±{most:.2f}). An orange frame: the network was not brought to the target. "
            f"Blank: not attacked. {how}."
        )
        figure.text(0, -0.1 / height, wrapped(caption, width, SMALL), fontsize=SMALL, va="top", color=GREY)


def _tiles(attacked: Targeted, n: int) -> tuple[Tensor, list[tuple[int, int]], float]:
    """Images as plot_grid takes them, where attacks failed (source, target), and the change that has full colour."""
    difference = (attacked.adversarial - attacked.originals).mean(dim=-3)  # over channels c, [p, h, w]
    most = float(difference.abs().max()) or 1.0
    tiles = torch.ones(n, 3 * n, 3, *difference.shape[-2:])
    shown, failed = set(), []
    for k, pair in enumerate(zip(attacked.sources.tolist(), attacked.targets.tolist(), strict=True)):
        if pair in shown:
            continue
        shown.add(pair)
        row, column = pair
        told = in_colour(attacked.originals[k]), in_colour(attacked.adversarial[k]), _diverging(difference[k] / most)
        tiles[row, 3 * column : 3 * column + 3] = torch.stack(told)
        if not attacked.success[k]:
            failed.append(pair)
    return tiles, failed, most


def _diverging(difference: Tensor) -> Tensor:
    """Differences [h, w] from -1 to 1 as colours [3, h, w] from blue over white to red."""
    from matplotlib import colormaps

    colours = torch.as_tensor(colormaps["RdBu_r"](((difference + 1) / 2).numpy()))  # [h, w, rgba]
    return colours[..., :3].movedim(-1, 0).float()


def _numbers(attacked: Targeted, classes: tuple[str, ...]) -> dict[str, Any]:
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
