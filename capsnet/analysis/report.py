"""The report of a run: its results, recipe, environment and figures, in one HTML file without other files."""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from html import escape
from pathlib import Path
from string import Template

from capsnet.analysis import SUBJECTS, find_subject
from capsnet.analysis.curves import best_validation
from capsnet.analysis.style import DPI
from capsnet.analysis.subject import Context, Network
from capsnet.data import Data
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.files import atomic_write
from capsnet.recipes import RECIPES
from capsnet.runs import Run

ALL = tuple(name for name in SUBJECTS if name != "attacks")  # attacks takes minutes: it is made only when it is named
QUICK = ("reconstructions", "errors", "masks", "lengths", "confusion", "curves")  # made at the end of a training
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --paper: #ffffff; --line: #d0d0d0; --mark: #fff1cc; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a8a8a8; --paper: #16181c; --line: #3c4046; --mark: #4a3c10; }
}
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.headline { font-size: 1.25rem; } .soft, figcaption { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 1.5rem 0.2rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; overflow-wrap: normal; }
tr.differs td { background: var(--mark); font-weight: 600; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="headline">$headline</p>
<p>$network</p>
<p>$selection</p>
<h2>Test images by class</h2>
$per_class
<h2>Figures</h2>
$figures
<h2>Recipe</h2>
<p class="soft">Fields in bold, marked ≠, differ from the paper's recipe.</p>
$recipe
<h2>Environment</h2>
$environment
</body>
</html>
""")


def make_report(context: Context, names: Sequence[str] | None = QUICK) -> Path:
    """Make the figures of these names, or of ALL if None; then write report.html with all figures of the run.

    Of QUICK and of ALL, the figures that the network cannot have are left out.
    Raises InputError, before anything is made, for a name that is not in SUBJECTS, and for any other choice of names
    with a figure that the network cannot have.
    """
    names = ALL if names is None else tuple(names)
    for name in names:
        if name not in SUBJECTS:
            raise InputError(f"no figure {name!r}: choose from {', '.join(SUBJECTS)}")
    subjects = [find_subject(name) for name in names]
    if names in (QUICK, ALL):
        subjects = [subject for subject in subjects if not subject.missing(context)]
    for subject in subjects:
        subject.check(context)
    for subject in subjects:
        subject(context)
    return write_report(context)


def captions(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the figures in a folder, in the order of SUBJECTS, with their captions."""
    for subject in map(find_subject, SUBJECTS):
        for files, caption in subject.captions.items():
            for path in sorted(folder.glob(files)):
                yield path, caption


def write_report(context: Context) -> Path:
    """Write a run's report.html with the figures in its folder, atomically; return its path."""
    run, network, data, evaluation = context.run, context.network, context.data, context.predictions.evaluation()
    content = {
        "title": escape(f"Recipe {run.recipe_name} on {run.data}"),
        "headline": escape(_headline(evaluation, data)),
        "network": escape(_network(run, network, evaluation)),
        "selection": escape(_selection(run)),
        "per_class": _per_class(evaluation, data.classes),
        "figures": "\n".join(_figure(path, caption) for path, caption in captions(context.folder)),
        "recipe": _recipe(run),
        "environment": _environment(run),
    }
    path = run.folder / "report.html"
    with atomic_write(path) as part:
        part.write_text(PAGE.substitute(content), encoding="utf-8")
    return path


def _headline(evaluation: Evaluation, data: Data) -> str:
    right = f"{100 * evaluation.accuracy:.2f} % of n = {evaluation.n:,} test images of {data.name} are classified right"
    return f"{right}: {evaluation.errors:,} errors."


def _network(run: Run, network: Network, evaluation: Evaluation) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    words = f"A {type(network).__name__} with {parameters:,} parameters, trained for {_duration(run.seconds)}."
    if evaluation.reconstruction is None:
        return words
    capsule = {"prediction": "predicted class", "label": "true class"}[evaluation.masked_by]
    return (
        f"{words} The squared error of its reconstructions, from the capsule of the {capsule}, is "
        f"{evaluation.reconstruction:.2f}, summed over pixels and averaged over images."
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _selection(run: Run) -> str:
    best = best_validation(run)
    if best is None:
        return "No validation images were held out: the network has the last weights."
    return (
        f"Selected as the best epoch on n = {best['n']:,} validation images: epoch {best['epoch']} with "
        f"{best['errors']:,} errors. The test images were not used for that."
    )


def _figure(path: Path, caption: str) -> str:
    content = path.read_bytes()
    source = "data:image/png;base64," + b64encode(content).decode()
    width = int.from_bytes(content[16:20], "big") * 96 // DPI  # of the PNG's header; 96 CSS pixels are an inch
    image = f'<img src="{source}" width="{width}" alt="{escape(caption)}">'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _per_class(evaluation: Evaluation, classes: tuple[str, ...]) -> str:
    rows = []
    for k, (name, row, share) in enumerate(zip(classes, evaluation.confusion, evaluation.per_class, strict=True)):
        rows.append([name, f"{sum(row):,}", f"{row[k]:,}", "—" if share is None else f"{100 * share:.2f} %"])
    return _table(["class", "n", "right", "accuracy"], rows, numbers=3)


def _recipe(run: Run) -> str:
    paper = RECIPES["paper"]()
    values = [(field.name, getattr(run.recipe, field.name), getattr(paper, field.name)) for field in fields(run.recipe)]
    marked = {k for k, (_, value, printed) in enumerate(values) if value != printed}
    rows = [
        [name, _value(value) + (" ≠" if k in marked else ""), _value(printed)]
        for k, (name, value, printed) in enumerate(values)
    ]
    return _table(["field", "this run", "the paper's recipe"], rows, marked=marked)


def _environment(run: Run) -> str:
    if not run.training_parts:
        return "<p>Not recorded.</p>"
    return "\n".join(
        _table(["what", "value"], [[name.replace("_", " "), _value(value)] for name, value in asdict(part).items()])
        for part in run.training_parts
    )


def _value(value: object) -> str:
    return "—" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _table(head: list[str], rows: list[list[str]], *, numbers: int = 0, marked: Iterable[int] = ()) -> str:
    """An HTML table of plain texts; the last columns, as many as `numbers`, hold numbers."""
    kinds = [' class="number"' if k >= len(head) - numbers else "" for k in range(len(head))]

    def line(tag: str, cells: list[str], differs: bool = False) -> str:
        row = "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f'<tr class="differs">{row}</tr>' if differs else f"<tr>{row}</tr>"

    body = "\n".join(line("td", row, k in marked) for k, row in enumerate(rows))
    return f"<table>\n<thead>{line('th', head)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
