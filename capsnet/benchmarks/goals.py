"""What the measurements are held to, and whether they reached it."""

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

Results = dict[str, Any]
NOT_RUN = "—"
KINDS = {"cpu-bf16": "CPU with bf16", "cpu-float32": "CPU without bf16", "cuda": "GPU"}


class Goal(NamedTuple):
    """A figure that was asked for, in words, and what was measured; `held` is None where nothing was."""

    what: str
    asked: str
    measured: str
    held: bool | None

    @property
    def mark(self) -> str:
        """The figure with the word for whether it is enough."""
        return {None: NOT_RUN, True: f"{self.measured}, held", False: f"**{self.measured}, missed**"}[self.held]


class Aim(NamedTuple):
    """What is asked for, how to read it from the results, how to show it, and whether it is enough."""

    what: str
    asked: str
    read: Callable[[Results], Any]
    show: Callable[[Any], str]
    enough: Callable[[Any], bool]


def goals(name: str, results: Results) -> list[Goal]:
    """The goals of one of AIMS, always the same ones; of empty results none was measured."""
    told = []
    for aim in AIMS[name]:
        value = aim.read(results)
        if value is None:
            told.append(Goal(aim.what, aim.asked, NOT_RUN, None))
        else:
            told.append(Goal(aim.what, aim.asked, aim.show(value), aim.enough(value)))
    return told


def against_textbook(results: Results) -> float | None:
    """How many times as long as the door the textbook takes at the paper's shape, in the dtype where it is least."""
    paper = {"b": 128, "i": 1152, "j": 10, "d": 8, "e": 16}
    shapes = [one for one in results.get("shapes", ()) if one["shape"] == paper]
    return min((one["ways"]["door"]["textbook_takes"] for one in shapes), default=None)


def worst(results: Results) -> float | None:
    """`route`'s time over the textbook's: the median of the worst shapes of the list, timed once more."""
    again = results.get("listed", {}).get("again", ())
    return median(one["door_takes"] for one in again) if again else None


def peak_of_many(results: Results) -> int | None:
    """Bytes that the door takes where the votes alone would take 4.1 GB."""
    many = {"b": 32, "i": 20_000, "j": 100, "d": 8, "e": 16}
    return next((one["bytes"]["door"] for one in results.get("memory", ()) if one["shape"] == many), None)


def growth(results: Results) -> tuple[float, float] | None:
    """The least and the most of proportional cost."""
    found = [of for axis in results.get("growth", {}).values() for of in axis["of_proportional"] if of is not None]
    return (min(found), max(found)) if found else None


def default_row(results: Results) -> Results | None:
    """The row of `capsnet train`, as it is if nothing else is asked for."""
    rows = [row for row in results.get("rows", ()) if row.get("default", True)]
    return rows[-1] if rows else None


def rate(results: Results) -> float | None:
    """Images/s of training on a GPU."""
    row = default_row(results)
    return row["images_per_second"] if row is not None and results["kind"] == "cuda" else None


def training(results: Results) -> tuple[Results, str] | None:
    """The row of `capsnet train`, and the kind of machine."""
    row = default_row(results)
    return None if row is None else (row, results["kind"])


def enough_share(found: tuple[Results, str]) -> bool:
    """Whether training's FLOP/s are as many as they should be in its dtype on its kind of machine."""
    row, kind = found
    asked = 0.8 if row["dtype"] == "float32" else 0.65 if kind == "cuda" else 1.25
    return row["share"] >= asked


def routing_share(dtype: str) -> Callable[[Results], float | None]:
    """What reads routing's part of a training step in a dtype, with gradients through all iterations."""

    def read(results: Results) -> float | None:
        found = (one for one in results.get("routing", ()) if (one["dtype"], one["gradient"]) == (dtype, "all"))
        return next((one["share"] for one in found), None)

    return read


def first_step(caches: str) -> Callable[[Results], float | None]:
    """What reads the seconds to the end of the first step, with caches that are "empty" or "filled"."""
    return lambda results: (results.get("first_step") or {}).get(caches)


def epoch(results: Results) -> tuple[float, str] | None:
    """The median seconds of MNIST's epochs after the first, and the kind of machine."""
    if results.get("data") != "mnist" or len(results["epochs"]) < 2:
        return None
    return median(one["took"] for one in results["epochs"][1:]), results["kind"]


def demo(results: Results) -> tuple[float, float] | None:
    """Seconds of the demo's training, and its accuracy on the test images."""
    return (results["training_seconds"], results["test"]["accuracy"]) if "training_seconds" in results else None


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


AIMS = {
    "routing": (
        Aim(
            "`route`, forward and backward, against the textbook: 128 images, 1,152 children, 10 parents",
            "at least 4 x as fast",
            against_textbook,
            "{:.1f} x".format,
            lambda times: times >= 4,
        ),
        Aim(
            "its time at the ten worst of the list of shapes, their median in a second measurement",
            "at most 1.05 of the textbook's",
            worst,
            "{:.2f}".format,
            lambda found: found <= 1.05,
        ),
        Aim(
            "its memory over inputs, output and gradients: 32 images, 20,000 children, 100 parents (votes: 4.1 GB)",
            "at most 1 GiB",
            peak_of_many,
            lambda size: f"{size / 2**30:.2f} GiB",
            lambda size: size <= 2**30,
        ),
        Aim(
            "its cost as children grow to 100,000, parents to 1,000 or images to 1,024, once a call takes 10 ms",
            "0.7 to 1.3 of proportional",
            growth,
            lambda ends: f"{ends[0]:.2f} to {ends[1]:.2f}",
            lambda ends: ends[0] >= 0.7 and ends[1] <= 1.3,
        ),
    ),
    "training": (
        Aim(
            "training against the textbook in float32: batch 128, 8,215,568 weights, gradients through all iterations",
            "at least 7 x as fast in bf16, 6.5 x in float32",
            default_row,
            lambda row: f"{row['times_textbook']:.1f} x in {row['dtype']}",
            lambda row: row["times_textbook"] >= (6.5 if row["dtype"] == "float32" else 7),
        ),
        Aim(
            "training on a GPU",
            "at least 150,000 images/s",
            rate,
            "{:,.0f} images/s".format,
            lambda rate: rate >= 150_000,
        ),
        Aim(
            "training's FLOP/s, as direct convolution counts them, against a matrix product in the same dtype",
            "at least 125 % in bf16 (GPU: 65 %), 80 % in float32",
            training,
            lambda found: f"{100 * found[0]['share']:.0f} % in {found[0]['dtype']}",
            enough_share,
        ),
        Aim(
            "routing's part of a training step in float32",
            "at most 8 %",
            routing_share("float32"),
            _percent,
            lambda share: share <= 0.08,
        ),
        Aim(
            "routing's part of a training step in bf16",
            "at most 10 %",
            routing_share("bfloat16"),
            _percent,
            lambda share: share <= 0.1,
        ),
        Aim(
            "prediction's FLOP/s against a matrix product, 10,000 images",
            "at least 60 %",
            lambda results: results["prediction"]["share"] if "prediction" in results else None,
            lambda share: f"{100 * share:.0f} %",
            lambda share: share >= 0.6,
        ),
        Aim(
            "one image, once the network is loaded",
            "below 15 ms",
            lambda results: results.get("one_image_ms"),
            "{:.1f} ms".format,
            lambda ms: ms < 15,
        ),
        Aim(
            "`capsnet --help`",
            "below 0.3 s",
            lambda results: results.get("help_seconds"),
            _seconds,
            lambda seconds: seconds < 0.3,
        ),
        Aim(
            "from the start of `capsnet train mnist` to the end of its first step, with empty caches",
            "below 3 s",
            first_step("empty"),
            _seconds,
            lambda seconds: seconds < 3,
        ),
        Aim(
            "the same with filled caches",
            "below 2 s",
            first_step("filled"),
            _seconds,
            lambda seconds: seconds < 2,
        ),
    ),
    "epoch_to_accuracy": (
        Aim(
            "an epoch of MNIST, 55,000 images, with its validation; the median of those after the first",
            "at most 60 s with bf16, 180 s without",
            epoch,
            lambda found: f"{found[0]:.1f} s",
            lambda found: found[0] <= (180 if found[1] == "cpu-float32" else 60),
        ),
    ),
    "demo": (
        Aim(
            "`make demo`'s training, and its accuracy on the test images",
            "at most 20 s, at least 98.5 %",
            demo,
            lambda found: f"{found[0]:.0f} s, {100 * found[1]:.2f} %",
            lambda found: found[0] <= 20 and found[1] >= 0.985,
        ),
    ),
}
