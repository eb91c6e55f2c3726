"""A grid of images is one picture, in which every image is whole and where it belongs."""

import torch
from matplotlib.figure import Figure

from capsnet.figures.grid import cell_height, composed, draw_grid, in_colour


def tile(axes, row, column, height=8, width=8):
    """The image in a row and a column of a grid, [h, w, 3] in [0, 1]."""
    down, across = -(-height // 10), -(-width // 10)
    picture = torch.as_tensor(axes.images[0].get_array().filled()) / 255
    top, left = row * (height + down) + down, column * (width + across) + across
    return picture[top : top + height, left : left + width]


def grey(axes, row, column):
    return tile(axes, row, column)[..., 0]


def test_images_lie_by_row_and_column_with_gutters_around_them():
    tiles = torch.arange(6).view(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 15) / 10
    picture = composed(tiles)
    assert picture.shape == (2 * 5 + 1, 3 * 17 + 2, 3)
    assert picture[1:5, 2:17].unique().tolist() == [0]
    assert picture[6:10, 36:51].unique().tolist() == [128]
    assert picture[0].unique().tolist() == picture[-1].unique().tolist() == picture[5].unique().tolist() == [237]
    assert picture[:, :2].unique().tolist() == picture[:, -2:].unique().tolist() == [237]


def test_three_channels_are_colours_and_others_their_mean_in_grey():
    pixels = torch.rand(3, 4, 5)
    assert torch.equal(in_colour(pixels), pixels)
    torch.testing.assert_close(in_colour(pixels[:2]), pixels[:2].mean(dim=0).expand(3, 4, 5))


def test_a_stripe_is_stretched_and_a_square_is_not():
    assert cell_height(28, 28) == 1
    assert cell_height(100, 2) == 3
    assert cell_height(2, 100) == 1 / 3


def test_the_middle_of_an_image_is_at_its_column_and_row():
    tiles = torch.zeros(3, 2, 1, 10, 20)
    tiles[2, 1] = 1
    axes = draw_grid(Figure((6, 6)), tiles, (1, 2), 1.5, ["a", "b", "c"])
    left, right, bottom, top = axes.images[0].get_extent()
    height, width = composed(tiles).shape[:2]
    column = int((1 - left) / (right - left) * width)
    row = int((2 - top) / (bottom - top) * height)
    assert (row, column) == (2 * 11 + 1 + 5, 22 + 2 + 10)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_a_cell_has_its_size_in_inches_however_many_there_are():
    def cell(columns):
        figure = Figure((6, 6))
        axes = draw_grid(figure, torch.zeros(1, columns, 1, 28, 28), (0, 0), 0.9, ["a"])
        left, right = axes.get_xlim()
        return 6 * axes.get_position().width / (right - left)

    assert abs(cell(1) - 0.9) < 1e-9
    assert abs(cell(7) - 0.9) < 1e-9
