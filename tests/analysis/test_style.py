"""What all figures share: PNG files that depend on nothing but the figure, grids of images, and names that fit."""

import subprocess
import sys
from errno import ENOSPC

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from capsnet.analysis.style import (
    cell_height,
    class_names,
    composed,
    fitting,
    in_colour,
    page,
    plot_grid,
    rotation,
    round_numbers,
)
from capsnet.errors import InputError


def tile(axes, row, column, height=8, width=8):
    """The image in a row and a column of a grid, [h, w, 3] in [0, 1]."""
    down, across = -(-height // 10), -(-width // 10)
    picture = torch.as_tensor(axes.images[0].get_array().filled()) / 255
    top, left = row * (height + down) + down, column * (width + across) + across
    return picture[top : top + height, left : left + width]


def grey(axes, row, column):
    return tile(axes, row, column)[..., 0]


def write(path):
    with page(path, 3, 2) as figure:
        figure.text(0.5, 0.5, "words")
    return path


def full_disk(*arguments, **options):
    raise OSError(ENOSPC, "No space left on device")


def test_a_page_is_a_png_of_print_quality(tmp_path):
    with Image.open(write(tmp_path / "folder" / "page.png")) as picture:
        assert picture.format == "PNG"
        assert round(picture.info["dpi"][0]) == 200


def test_a_page_says_nothing_of_when_or_by_what_it_was_made(tmp_path):
    with Image.open(write(tmp_path / "page.png")) as picture:
        assert set(picture.info) == {"dpi"}


def test_what_reaches_beyond_a_page_is_not_cut(tmp_path):
    with page(tmp_path / "page.png", 1, 1) as figure:
        figure.text(0, 0, "a text that is much wider than the page")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width > 400


def test_a_page_that_fails_halfway_leaves_the_old_one(tmp_path):
    before = write(tmp_path / "page.png").read_bytes()
    with pytest.raises(ZeroDivisionError), page(tmp_path / "page.png", 3, 2):
        raise ZeroDivisionError
    assert (tmp_path / "page.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["page.png"]


def test_a_page_that_cannot_be_written_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(
        InputError, match=r"cannot write .*page.png, which is left as it was: .*No space left on device"
    ):
        write(tmp_path / "page.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_figures_are_imported_without_matplotlib():
    code = "import capsnet.analysis.report, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Ankle boot", "Ankle boot"),
        ("a name of too many letters", "a name of…"),
        ("two\nlines", "two lines"),
        ("US$ 5$", r"US\$ 5\$"),
        ("\N{CJK UNIFIED IDEOGRAPH-732B}", "class 0"),
    ],
)
def test_a_name_is_shown_on_one_line_in_letters_that_the_font_has(name, shown):
    assert class_names((name,), 10) == [shown]


def test_a_cut_name_is_as_long_as_allowed():
    assert len(fitting("x" * 30, 12, "")) == 12


def test_round_numbers_are_those_between_the_ends():
    assert round_numbers(0.2, 20) == [0.2, 0.5, 1, 2, 5, 10, 20]


def test_names_of_columns_are_turned_where_one_is_wider_than_its_column():
    assert rotation(["cat", "owl"], cell=0.5) == 0
    assert rotation(["cat", "a long name"], cell=0.5) == 90


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
    axes = plot_grid(Figure((6, 6)), tiles, (1, 2), 1.5, ["a", "b", "c"])
    left, right, bottom, top = axes.images[0].get_extent()
    height, width = composed(tiles).shape[:2]
    column = int((1 - left) / (right - left) * width)
    row = int((2 - top) / (bottom - top) * height)
    assert (row, column) == (2 * 11 + 1 + 5, 22 + 2 + 10)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


def test_a_cell_has_its_size_in_inches_however_many_there_are():
    def cell(columns):
        figure = Figure((6, 6))
        axes = plot_grid(figure, torch.zeros(1, columns, 1, 28, 28), (0, 0), 0.9, ["a"])
        left, right = axes.get_xlim()
        return 6 * axes.get_position().width / (right - left)

    assert abs(cell(1) - 0.9) < 1e-9
    assert abs(cell(7) - 0.9) < 1e-9
