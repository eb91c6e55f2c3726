"""How far a share measured on n images may lie from the true one."""

from typing import Any

from capsnet.errors import InputError

Z = 1.959963984540054  # standard deviations of a normal distribution that hold 95 % of it


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score ("Probable Inference", J. Am. Stat. Assoc. 22, 1927).

    right of n → its lower and upper end, shares in [0, 1]; unlike right/n ± 1.96 standard errors, it is not empty
    where all or none are right.
    Raises InputError for no images, or more right ones than there are.
    """
    if not 0 <= right <= n or n < 1:
        raise InputError(f"a share is of at least one image, and of no more than there are: not {right} of {n}")
    share, doubt = right / n, Z**2 / n
    centre = share + doubt / 2
    reach = Z * (share * (1 - share) / n + doubt / (4 * n)) ** 0.5
    low, high = ((centre + side * reach) / (1 + doubt) for side in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def share(right: int, n: int) -> dict[str, Any]:
    """A share as numbers to publish: n, right, accuracy and its 95 % interval; these are None without images."""
    low, high = wilson(right, n) if n else (None, None)
    return {"n": n, "right": right, "accuracy": right / n if n else None, "low": low, "high": high}
