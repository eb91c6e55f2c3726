"""What all pictures share: PNG files that depend on nothing but what is drawn, and names that fit."""

import subprocess
import sys
from errno import ENOSPC

import pytest
from matplotlib.figure import Figure
from PIL import Image

from capsnet.errors import InputError
from capsnet.figures.style import class_names, fitting, page, round_numbers


def draw(path):
    with page(path, 3, 2) as figure:
        figure.text(0.5, 0.5, "words")
    return path


def full_disk(*arguments, **options):
    raise OSError(ENOSPC, "No space left on device")


def test_a_page_is_a_png_of_print_quality(tmp_path):
    with Image.open(draw(tmp_path / "folder" / "page.png")) as picture:
        assert picture.format == "PNG"
        assert round(picture.info["dpi"][0]) == 200


def test_a_page_says_nothing_of_when_or_by_what_it_was_made(tmp_path):
    with Image.open(draw(tmp_path / "page.png")) as picture:
        assert set(picture.info) == {"dpi"}


def test_what_reaches_beyond_a_page_is_not_cut(tmp_path):
    with page(tmp_path / "page.png", 1, 1) as figure:
        figure.text(0, 0, "a text that is much wider than the page")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width > 400


def test_a_page_that_fails_halfway_leaves_the_old_one(tmp_path):
    before = draw(tmp_path / "page.png").read_bytes()
    with pytest.raises(ZeroDivisionError), page(tmp_path / "page.png", 3, 2):
        raise ZeroDivisionError
    assert (tmp_path / "page.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["page.png"]


def test_a_page_that_cannot_be_written_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(
        InputError, match=r"cannot write .*page.png, which is left as it was: .*No space left on device"
    ):
        draw(tmp_path / "page.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_figures_are_imported_without_matplotlib():
    code = "import capsnet.figures, sys; assert 'matplotlib' not in sys.modules"
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
