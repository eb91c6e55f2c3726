"""Measurements of what a perturbation changes: thickness, slant, width, height, place and the size of loops.

Section 5.1 of Sabour, Frosst and Hinton (2017) names such effects by eye. Here each is measured, all but the contrast
in pixels, and a sequence of images gets the name of an effect where that effect explains how they differ. The ink of
an image is the distance of its pixels from the background, which is the median along its border. Slant is removed
before strokes, widths, heights and loops are measured, so that shearing changes the slant alone.
"""

from math import pi, sqrt

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

EFFECTS = ("thickness", "contrast", "slant", "width", "height", "horizontal shift", "vertical shift", "loop size")
COMPANY = {"thickness": ("contrast",), "contrast": ("thickness",), "width": ("loop size",), "height": ("loop size",)}
BAR = sqrt(12)  # length of a uniform bar over its standard deviation


def measured(images: Tensor) -> Tensor:
    """Measure the shapes in images, in pixels and in the order of EFFECTS; those of a blank image are zero.

    thickness: twice the ink over the length of its edge, which is the sum of the gradient's norms.
    contrast: the darkest ink, from 0 to 1.
    slant: how far the top is to the right of the bottom: the slope of x on y, times the height of a uniform bar.
    width, height: between the middles of the outermost strokes: columns or rows with ink, each counted by its darkest
    pixel, less the thickness.
    horizontal and vertical shift: of the centre of the ink, from the image's middle to the right and up.
    loop size: radius of a disc with the area of all background that ink encloses.

    images [b, c, h, w] in [0, 1] → sizes [b, 8]
    """
    ink = _ink(images.double())  # [b, h, w]
    contrast = reduce(ink, "b h w -> b", "max")
    right, up, slope, height = _moments(ink)
    ink = F.pad(_upright(ink, right, up, slope), (1, 1, 1, 1))
    peak = _positive(reduce(ink, "b h w -> b", "max"))
    thickness = 2 * reduce(ink, "b h w -> b", "sum") / _positive(_edge(ink))
    wide = reduce(reduce(ink, "b h w -> b w", "max"), "b w -> b", "sum") / peak - thickness
    tall = reduce(reduce(ink, "b h w -> b h", "max"), "b h -> b", "sum") / peak - thickness
    enclosed = reduce(_filled(ink) - ink, "b h w -> b", "sum") / peak
    sizes = [thickness, contrast, slope * height, wide, tall, right, up, (enclosed / pi).sqrt()]
    return torch.stack(sizes, dim=-1)


def clear_effect(
    images: Tensor,
    sizes: Tensor,
    offsets: Tensor,
    *,
    least: float = 1 / 28,
    straight: float = 0.9,
    share: float = 0.4,
    clear: float = 1.5,
) -> str | None:
    """Name the one effect that a sequence of images shows, or None if no single one is clear.

    An effect takes place if its size differs between the first image and the last by at least `least` of the image's
    side (one pixel of MNIST's 28; for the contrast, by 0.1), and by at least the share `straight` of the sum of its
    changes from image to image (1 is monotone). Of those that take place, the clear one explains most of how the
    images change: at least `share` of the squared change, and at least `clear` times what any other effect explains,
    except its COMPANY: a blurred stroke gains thickness and contrast together, and a wider ring has a larger loop.

    images [t, c, h, w] in [0, 1], their sizes [t, 8] as `measured`, offsets [t]
    """
    *_, h, w = images.shape
    needed = torch.full_like(sizes[0], least * sqrt(h * w))
    needed[EFFECTS.index("contrast")] = 0.1
    change = (sizes[-1] - sizes[0]).abs()
    total = sizes.diff(dim=0).abs().sum(dim=0)  # over images t
    shares = explained(images, offsets) * ((change >= needed) & (change >= straight * total))
    for k in shares.argsort(descending=True).tolist():
        company = (EFFECTS[k], *COMPANY.get(EFFECTS[k], ()))
        rivals = [other for other, name in enumerate(EFFECTS) if name not in company]
        if shares[k] >= share and shares[k] >= clear * shares[rivals].max():
            return EFFECTS[k]
    return None


def explained(images: Tensor, offsets: Tensor) -> Tensor:
    """The share of the squared change of images that each effect alone explains, in the order of EFFECTS.

    images [t, c, h, w] in [0, 1], offsets [t] → shares [8] in [0, 1]
    """
    ink, offsets = _ink(images.double()), offsets.double()
    change = einsum(ink, offsets - offsets.mean(), "t h w, t -> h w").flatten()
    tangents = [tangent.flatten() for tangent in _tangents(ink[len(ink) // 2])]
    return torch.stack([F.cosine_similarity(tangent, change, dim=0) for tangent in tangents]).square()


def _tangents(ink: Tensor) -> list[Tensor]:
    """How ink [h, w] changes as each effect grows, in the order of EFFECTS: [h, w] each."""
    right, up, slope, _ = _moments(ink.unsqueeze(0))
    x, y = _places(ink)
    x, y = x - right, y - up
    below, across = torch.gradient(ink)
    above = -below
    edge = torch.hypot(across, above)
    wider, taller = -(x - slope * y) * across, -y * above
    return [edge, ink, -y * across, wider, taller, -across, -above, _looser(ink, across, above)]


def _looser(ink: Tensor, across: Tensor, above: Tensor) -> Tensor:
    """How ink [h, w] with these gradients changes as its loops grow: what is near moves away from their centre."""
    padded = F.pad(ink.unsqueeze(0), (1, 1, 1, 1))
    enclosed = (_filled(padded) - padded)[:, 1:-1, 1:-1]
    reach = round(sqrt(ink.numel()) / 10)
    near = F.max_pool2d(enclosed, 2 * reach + 1, 1, reach).squeeze(0)
    right, up, _, _ = _moments(enclosed)
    x, y = _places(ink)
    x, y = x - right, y - up
    return -near * (x * across + y * above) / _positive(torch.hypot(x, y))


def _places(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels of ink [..., h, w] are to the right, [w], and up, [h, 1], of the middle."""
    *_, h, w = ink.shape
    across, down = torch.arange(w).to(ink) - (w - 1) / 2, torch.arange(h).to(ink) - (h - 1) / 2
    return across, -down.unsqueeze(1)


def _ink(images: Tensor) -> Tensor:
    """Images [b, c, h, w] → ink [b, h, w] in [0, 1]."""
    grey = reduce(images, "b c h w -> b h w", "mean")
    border = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], dim=-1)
    return (grey - rearrange(border.median(dim=-1).values, "b -> b 1 1")).abs()


def _moments(ink: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ink [b, h, w] → its centre, to the right and up of the middle, its slope of x on y and its height, each [b]."""
    share = ink / _positive(reduce(ink, "b h w -> b 1 1", "sum"))
    x, y = _places(ink)
    right, up = reduce(share * x, "b h w -> b 1 1", "sum"), reduce(share * y, "b h w -> b 1 1", "sum")
    together = reduce(share * (x - right) * (y - up), "b h w -> b", "sum")
    upwards = reduce(share * (y - up).square(), "b h w -> b", "sum")
    return right.flatten(), up.flatten(), together / _positive(upwards), BAR * upwards.sqrt()


def _upright(ink: Tensor, right: Tensor, up: Tensor, slope: Tensor) -> Tensor:
    """Move ink [b, h, w] to the middle and shear it until x no longer depends on y."""
    _, h, w = ink.shape
    none, one = torch.zeros_like(slope), torch.ones_like(slope)
    across = torch.stack([one, -slope * h / w, right * 2 / w], dim=-1)  # rows run down, y up
    down = torch.stack([none, one, -up * 2 / h], dim=-1)
    places = F.affine_grid(torch.stack([across, down], dim=1), [len(ink), 1, h, w], align_corners=False)
    return F.grid_sample(ink.unsqueeze(1), places, align_corners=False).squeeze(1)


def _edge(ink: Tensor) -> Tensor:
    """Length of the edge of ink [b, h, w] with a blank border, weighted by the ink: [b]."""
    across, down = ink[:, :-1].diff(dim=2), ink[:, :, :-1].diff(dim=1)
    return reduce(torch.hypot(across, down), "b h w -> b", "sum")


def _filled(ink: Tensor) -> Tensor:
    """Fill what ink [b, h, w] encloses: each pixel gets the least ink that every path to the border has to cross."""
    level = torch.ones_like(ink)
    level[:, 0], level[:, -1], level[:, :, 0], level[:, :, -1] = 0, 0, 0, 0
    while True:
        across = -F.max_pool2d(-level, (1, 3), 1, (0, 1))
        around = torch.minimum(across, -F.max_pool2d(-level, (3, 1), 1, (1, 0)))  # paths have no diagonal steps
        lower = torch.maximum(ink, around)
        if torch.equal(lower, level):
            return level
        level = lower


def _positive(numbers: Tensor) -> Tensor:
    """Numbers to divide by: a zero, whose dividend is zero too, becomes the smallest positive float."""
    return numbers.clamp(min=torch.finfo(numbers.dtype).tiny)
