"""What the measurements are held to, and whether they reached it."""

from collections.abc import Callable
from typing import Any, NamedTuple

Results = dict[str, Any]
NOT_RUN = "—"


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
    """The goals of "routing" or "training", always the same ones; of empty results none was measured."""
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


def worst(results: Results) -> tuple[float, list[int]] | None:
    """The door's longest time over the textbook's, and at which shape: of all shapes that both were timed at."""
    found = [(one["door_takes"], one["shape"]) for one in results.get("listed", {}).get("each", ())]
    for one in results.get("shapes", ()):
        times = one["ways"]["door"]["textbook_takes"]
        found += [] if times is None else [(1 / times, list(one["shape"].values()))]
    return max(found, default=None)


def peak_of_many(results: Results) -> int | None:
    """Bytes that the door takes where the votes alone would take 4.1 GB."""
    many = {"b": 32, "i": 20_000, "j": 100, "d": 8, "e": 16}
    return next((one["bytes"]["door"] for one in results.get("memory", ()) if one["shape"] == many), None)


def growth(results: Results) -> tuple[float, float] | None:
    """The least and the most of proportional cost."""
    found = [of for axis in results.get("growth", {}).values() for of in axis["of_proportional"] if of is not None]
    return (min(found), max(found)) if found else None


def last_share(results: Results) -> tuple[float, str] | None:
    """The last setting's share of the matrix rate, and the dtype."""
    return (results["rows"][-1]["share"], results["rows"][-1]["dtype"]) if "rows" in results else None


def _device(results: Results) -> str:
    return results.get("environment", {}).get("device", "")


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
            "its time at the worst of all shapes that were timed, large and small",
            "at most 1.10 of the textbook's",
            worst,
            lambda found: f"{found[0]:.2f} at {' · '.join(f'{size:,}' for size in found[1])}",
            lambda found: found[0] <= 1.1,
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
            "training against the textbook: batch 128, 8,215,568 parameters, gradients through all iterations",
            "at least 3.5 x as fast",
            lambda results: results["rows"][-1]["times_textbook"] if "rows" in results else None,
            "{:.1f} x".format,
            lambda times: times >= 3.5,
        ),
        Aim(
            "training on an H200",
            "at least 150,000 images/s",
            lambda results: results["rows"][-1]["images_per_second"] if "H200" in _device(results) else None,
            "{:,.0f} images/s".format,
            lambda rate: rate >= 150_000,
        ),
        Aim(
            "training's FLOP/s, as the textbook counts them, against a matrix product in the same dtype",
            "at least 65 % in bf16, 80 % in float32",
            last_share,
            lambda last: f"{100 * last[0]:.0f} % in {last[1]}",
            lambda last: last[0] >= (0.65 if last[1] == "bfloat16" else 0.8),
        ),
        Aim(
            "routing's part of a training step",
            "at most 8 %",
            lambda results: results["routing"]["share"] if "routing" in results else None,
            lambda share: f"{100 * share:.1f} %",
            lambda share: share <= 0.08,
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
            "{:.2f} s".format,
            lambda seconds: seconds < 0.3,
        ),
    ),
}
