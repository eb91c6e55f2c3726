"""A change of a shape gets the name of its effect, and only that one."""

import pytest
import torch
import torch.nn.functional as F

from capsnet.analysis.perturbations.effects import EFFECTS, clear_effect, measured

FINE = 4  # points across a pixel, so that shapes have soft edges
RANGE = [k / 5 for k in range(-5, 6)]


def plane(side=28):
    """Points to the right and up of the middle of an image, in pixels."""
    along = (torch.arange(side * FINE) + 0.5) / FINE - side / 2
    return along, -along[:, None]


def shape(points):
    """Whether each point is ink → image [1, h, w]."""
    return F.avg_pool2d(points.double()[None], FINE)


def ring(x_radius=5.0, y_radius=7.0, thickness=3.0, lean=0.0, right=0.0, up=0.0):
    """An ellipse of one stroke, sheared by `lean` and moved."""
    x, y = plane()
    x, y = x - right - lean * (y - up), y - up
    outer, inner = (((x / (x_radius + e)).square() + (y / (y_radius + e)).square()) < 1 for e in _edges(thickness))
    return shape(outer & ~inner)


def bar(thickness=3.0, length=18.0, lean=0.0):
    x, y = plane()
    return shape(((x - lean * y).abs() < thickness / 2) & (y.abs() < length / 2))


def loop_in_a_frame(hole):
    """A frame of fixed size, open below, around a disc with a hole whose radius is given."""
    x, y = plane()
    frame = (x.abs() < 11) & (y.abs() < 11) & ~((x.abs() < 9) & (y < 9))
    distance = x.square() + y.square()
    return shape(frame | ((distance < (hole + 2) ** 2) & (distance > hole**2)))


def _edges(thickness):
    return thickness / 2, -thickness / 2


def effect_of(make, values):
    images = torch.stack([make(value) for value in values])
    return clear_effect(images, measured(images), torch.tensor(values))


CHANGES = {
    "a thicker ring": ("thickness", lambda k: ring(thickness=3.5 + k)),
    "a thicker bar": ("thickness", lambda k: bar(3.5 + 1.5 * k, 18 + 1.5 * k)),
    "a fainter ring": ("contrast", lambda k: (0.7 + 0.3 * k) * ring()),
    "a sheared ring": ("slant", lambda k: ring(lean=0.3 * k)),
    "a sheared bar": ("slant", lambda k: bar(lean=0.2 + 0.2 * k)),
    "a wider ring": ("width", lambda k: ring(x_radius=6 + 2 * k)),
    "a wider ring that leans": ("width", lambda k: ring(x_radius=6 + 2 * k, lean=0.3)),
    "a taller ring": ("height", lambda k: ring(y_radius=7 + 2 * k)),
    "a longer bar": ("height", lambda k: bar(length=16 + 4 * k)),
    "a ring to the right": ("horizontal shift", lambda k: ring(right=2 * k)),
    "a ring upwards": ("vertical shift", lambda k: ring(up=2 * k)),
    "a loop that grows": ("loop size", lambda k: loop_in_a_frame(3 + 2 * k)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_kind_has_its_name_in_either_direction(change):
    name, make = CHANGES[change]
    assert effect_of(make, RANGE) == effect_of(make, RANGE[::-1]) == name


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("nothing", lambda k: ring()),
        ("its slant, by less than a pixel", lambda k: ring(lean=0.02 * k)),
        ("its slant, there and back", lambda k: ring(lean=0.3 * abs(k))),
        ("its slant, mostly back again", lambda k: ring(lean=0.3 * k if k < 0.5 else -0.1)),
        ("width and height alike", lambda k: ring(6 + 2 * k, 6 + 2 * k)),
        ("faint noise", lambda k: 0.05 * torch.rand(1, 28, 28)),
    ],
)
def test_no_word_is_given_where_no_effect_is_clear(what, make):
    assert effect_of(make, RANGE) is None


def test_lengths_are_those_of_the_shape():
    lengths = dict(zip(EFFECTS, measured(ring(6, 8, 3, right=1.5, up=-2)[None])[0].tolist(), strict=True))
    known = {"thickness": 3, "slant": 0, "width": 12, "height": 16, "horizontal shift": 1.5, "vertical shift": -2}
    for name, length in known.items():
        assert lengths[name] == pytest.approx(length, abs=0.3), name
    assert lengths["loop size"] == pytest.approx((4.5 * 6.5) ** 0.5, abs=0.15)


def test_slant_is_how_far_the_top_leans_over_to_the_right_of_the_bottom():
    assert measured(bar(length=18, lean=0.5)[None])[0, EFFECTS.index("slant")] == pytest.approx(9, abs=0.1)


def test_a_dark_shape_on_white_measures_as_a_bright_one_on_black():
    torch.testing.assert_close(measured(1 - ring(lean=0.2)[None]), measured(ring(lean=0.2)[None]))


def test_an_open_shape_has_no_loop():
    x, y = plane()
    opened = ring() * shape(~((x.abs() < 1) & (y > 0)))
    assert measured(opened[None])[0, EFFECTS.index("loop size")] == pytest.approx(0, abs=0.05)
    assert measured(ring()[None])[0, EFFECTS.index("loop size")] > 4


def test_an_image_measures_the_same_alone_as_among_others():
    images = torch.stack([ring(), bar(), ring(lean=0.3)])
    torch.testing.assert_close(measured(images)[1:2], measured(images[1:2]))


def test_a_blank_image_measures_zero():
    assert not measured(torch.full((2, 3, 12, 9), 0.4)).any()


def test_an_image_of_three_equal_channels_measures_as_a_grey_one():
    torch.testing.assert_close(measured(ring().expand(3, -1, -1)[None]), measured(ring()[None]))
