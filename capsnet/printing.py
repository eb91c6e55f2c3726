"""What the command line shows: tables on the terminal, and in pipes and files."""

import sys

from rich.console import Console
from rich.table import Table

from capsnet.errors import printable
from capsnet.evaluation import Evaluation, FilePrediction


def print_table(table: Table) -> None:
    """Print a table that cuts no cell: a terminal's are broken to lines, other rows are as long as they need."""
    for column in table.columns:
        column.overflow = "fold"
    width = None if sys.stdout.isatty() else 2**20
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


def print_evaluation(result: Evaluation, classes: tuple[str, ...]) -> None:
    """Print a table of classes and a line for all of them."""
    table = Table("class", "n", "right", "accuracy", "taken for")
    for k, (name, row) in enumerate(zip(classes, result.confusion, strict=True)):
        wrong = sorted(((count, c) for c, count in enumerate(row) if count and c != k), reverse=True)
        mistaken = ", ".join(f"{printable(classes[c])} ({count})" for count, c in wrong[:3])
        share = result.per_class[k]
        accuracy = "-" if share is None else f"{share:.2%}"
        table.add_row(printable(name), f"{sum(row):,}", f"{row[k]:,}", accuracy, mistaken)
    print_table(table)
    drawing = ""
    if result.reconstruction is not None:
        drawing = f"; drawing of the {result.masked_by}'s capsule off by {result.reconstruction:.2f} (squared, summed)"
    print(f"test accuracy {result.accuracy:.2%}: {result.errors} errors of n = {result.n:,}{drawing}")


def print_predictions(predictions: list[FilePrediction], inverted: bool) -> None:
    """Print a row an image, above which error a drawing is suspicious or how to find out, and which polarity was read.

    Networks that do not draw have no line on suspicion.
    """
    table = Table("image", "class", "length", "others", "drawing error", "suspicious")
    for p in predictions:
        others = sorted(((length, name) for name, length in p.lengths.items() if name != p.predicted), reverse=True)
        rest = ", ".join(f"{printable(name)} {length:.2f}" for length, name in others[:3])
        error = "-" if p.reconstruction_error is None else f"{p.reconstruction_error:.2f}"
        flag = {None: "-", False: "no", True: "drawn badly"}[p.suspicious]
        table.add_row(printable(p.image), printable(p.predicted), f"{p.lengths[p.predicted]:.2f}", rest, error, flag)
    print_table(table)
    first = predictions[0]
    if first.suspicious is not None:
        print(
            f"drawn badly: an error above {first.threshold:.2f}, as few validation images have; "
            "perhaps not of this data, or attacked"
        )
    elif first.reconstruction_error is not None:
        print("no detector for these weights tells badly drawn images: `capsnet detection RUN` makes one")
    print("read with light and dark swapped" if inverted else "read as they are (--invert swaps light and dark)")
