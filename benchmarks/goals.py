"""The goals of the benchmarks, and whether results meet them."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

Results = dict[str, Any]
NOT_RUN = "—"
KINDS = {"cpu-bf16": "CPU with bf16", "cpu-float32": "CPU without bf16", "cuda": "GPU"}


@dataclass(frozen=True)
class Goal:
    """What is measured, the target, how to read the value from results, how to print it, and when the target is met."""

    what: str
    target: str
    read: Callable[[Results], Any]
    text: Callable[[Any], str]
    enough: Callable[[Any], bool]


@dataclass(frozen=True)
class Verdict:
    """A goal, the value that was measured, and whether it is met: None if nothing was measured."""

    what: str
    target: str
    measured: str
    met: bool | None

    @property
    def mark(self) -> str:
        """The value with "met" or "missed"."""
        return {None: NOT_RUN, True: f"{self.measured}, met", False: f"**{self.measured}, missed**"}[self.met]


def verdicts(name: str, results: Results) -> list[Verdict]:
    """Compare results with each goal of one benchmark in GOALS; empty results give verdicts of None."""
    values = [(goal, goal.read(results)) for goal in GOALS[name]]
    return [
        Verdict(goal.what, goal.target, NOT_RUN, None)
        if value is None
        else Verdict(goal.what, goal.target, goal.text(value), goal.enough(value))
        for goal, value in values
    ]


def route_speedup(results: Results) -> float | None:
    """Speed-up of `route` over naive PyTorch at the paper's shape, in the dtype where it is smallest."""
    paper = {"b": 128, "i": 1152, "j": 10, "d": 8, "e": 16}
    rows = [row for row in results.get("shapes", ()) if row["shape"] == paper]
    return min((row["implementations"]["auto"]["speedup"] for row in rows), default=None)


def slowest_shapes(results: Results) -> float | None:
    """Median of `route`'s time divided by naive PyTorch's at the slowest shapes of the list, when timed again."""
    again = results.get("listed", {}).get("again", ())
    return median(row["relative_time"] for row in again) if again else None


def peak_of_many_votes(results: Results) -> int | None:
    """Bytes that `route` takes where the votes alone would take 4.1 GB."""
    shape = {"b": 32, "i": 20_000, "j": 100, "d": 8, "e": 16}
    return next((row["bytes"]["auto"] for row in results.get("memory", ()) if row["shape"] == shape), None)


def growth_range(results: Results) -> tuple[float, float] | None:
    """Smallest and largest ratio of `route`'s time to proportional growth."""
    ratios = [ratio for axis in results.get("growth", {}).values() for ratio in axis["ratio"] if ratio is not None]
    return (min(ratios), max(ratios)) if ratios else None


def default_row(results: Results) -> Results | None:
    """The row of `capsnet train` with its defaults."""
    rows = [row for row in results.get("rows", ()) if row.get("default", True)]
    return rows[-1] if rows else None


def gpu_rate(results: Results) -> float | None:
    """Images/s of training on a GPU."""
    row = default_row(results)
    return row["images_per_second"] if row is not None and results["kind"] == "cuda" else None


def default_row_and_kind(results: Results) -> tuple[Results, str] | None:
    """The row of `capsnet train`, and the kind of machine."""
    row = default_row(results)
    return None if row is None else (row, results["kind"])


def enough_flops(found: tuple[Results, str]) -> bool:
    """Whether training's FLOP/s meet the target for their dtype and kind of machine."""
    row, kind = found
    target = 0.8 if row["dtype"] == "float32" else 0.65 if kind == "cuda" else 1.25
    return row["gemm_share"] >= target


def routing_share(dtype: str) -> Callable[[Results], float | None]:
    """Return a function that reads routing's part of a training step in a dtype, gradients through all iterations."""

    def read(results: Results) -> float | None:
        rows = (row for row in results.get("routing", ()) if (row["dtype"], row["gradient"]) == (dtype, "all"))
        return next((row["share"] for row in rows), None)

    return read


def first_step(caches: str) -> Callable[[Results], float | None]:
    """Return a function that reads the seconds to the end of the first step, with "empty" or "filled" caches."""
    return lambda results: (results.get("first_step") or {}).get(caches)


def epoch(results: Results) -> tuple[float, str] | None:
    """Median seconds of MNIST's epochs after the first, and the kind of machine."""
    if results.get("data") != "mnist" or len(results["epochs"]) < 2:
        return None
    return median(row["took"] for row in results["epochs"][1:]), results["kind"]


def demo(results: Results) -> tuple[float, float] | None:
    """Seconds of the demo's training, and its accuracy on the test images."""
    return (results["training_seconds"], results["test"]["accuracy"]) if "training_seconds" in results else None


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


GOALS = {
    "routing": (
        Goal(
            "speed-up of `route` over naive PyTorch, forward and backward: 128 images, 1,152 children, 10 parents",
            "at least 4 x",
            route_speedup,
            "{:.1f} x".format,
            lambda speedup: speedup >= 4,
        ),
        Goal(
            "time of `route` divided by naive PyTorch's: median of the list's ten slowest shapes, timed again",
            "at most 1.05",
            slowest_shapes,
            "{:.2f}".format,
            lambda ratio: ratio <= 1.05,
        ),
        Goal(
            "memory of `route` besides inputs, output and gradients: 32 images, 20,000 children, 100 parents "
            "(4.1 GB of votes)",
            "at most 1 GiB",
            peak_of_many_votes,
            lambda size: f"{size / 2**30:.2f} GiB",
            lambda size: size <= 2**30,
        ),
        Goal(
            "time of `route` relative to proportional growth, up to 100,000 children, 1,000 parents or 1,024 images, "
            "calls of at least 10 ms",
            "0.7 to 1.3",
            growth_range,
            lambda ends: f"{ends[0]:.2f} to {ends[1]:.2f}",
            lambda ends: ends[0] >= 0.7 and ends[1] <= 1.3,
        ),
    ),
    "training": (
        Goal(
            "speed-up of training over naive PyTorch in float32, batch size 128, gradients through all iterations",
            "at least 7 x in bf16, 6.5 x in float32",
            default_row,
            lambda row: f"{row['speedup']:.1f} x in {row['dtype']}",
            lambda row: row["speedup"] >= (6.5 if row["dtype"] == "float32" else 7),
        ),
        Goal(
            "training on a GPU",
            "at least 150,000 images/s",
            gpu_rate,
            "{:,.0f} images/s".format,
            lambda rate: rate >= 150_000,
        ),
        Goal(
            "training's FLOP/s, counted for direct convolution, relative to the GEMM peak in the same dtype",
            "at least 125 % in bf16 (GPU: 65 %), 80 % in float32",
            default_row_and_kind,
            lambda found: f"{100 * found[0]['gemm_share']:.0f} % in {found[0]['dtype']}",
            enough_flops,
        ),
        Goal(
            "routing's part of a training step in float32",
            "at most 8 %",
            routing_share("float32"),
            _percent,
            lambda share: share <= 0.08,
        ),
        Goal(
            "routing's part of a training step in bf16",
            "at most 10 %",
            routing_share("bfloat16"),
            _percent,
            lambda share: share <= 0.1,
        ),
        Goal(
            "prediction's FLOP/s relative to the GEMM peak, 10,000 images",
            "at least 60 %",
            lambda results: results["prediction"]["gemm_share"] if "prediction" in results else None,
            lambda share: f"{100 * share:.0f} %",
            lambda share: share >= 0.6,
        ),
        Goal(
            "prediction of one image by a loaded network",
            "below 15 ms",
            lambda results: results.get("one_image_ms"),
            "{:.1f} ms".format,
            lambda ms: ms < 15,
        ),
        Goal(
            "`capsnet --help`",
            "below 1 s",
            lambda results: results.get("help_seconds"),
            _seconds,
            lambda seconds: seconds < 1,
        ),
        Goal(
            "from the start of `capsnet train mnist` to the end of its first step, with empty caches",
            "below 3 s",
            first_step("empty"),
            _seconds,
            lambda seconds: seconds < 3,
        ),
        Goal(
            "the same with filled caches",
            "below 2 s",
            first_step("filled"),
            _seconds,
            lambda seconds: seconds < 2,
        ),
    ),
    "epoch_to_accuracy": (
        Goal(
            "an epoch of MNIST, 55,000 images, with its validation: median of all epochs but the first",
            "at most 60 s with bf16, 180 s without",
            epoch,
            lambda found: f"{found[0]:.1f} s",
            lambda found: found[0] <= (180 if found[1] == "cpu-float32" else 60),
        ),
    ),
    "demo": (
        Goal(
            "training by `make demo`, and its accuracy on the test images",
            "at most 20 s, at least 98.5 %",
            demo,
            lambda found: f"{found[0]:.0f} s, {100 * found[1]:.2f} %",
            lambda found: found[0] <= 20 and found[1] >= 0.985,
        ),
    ),
}
