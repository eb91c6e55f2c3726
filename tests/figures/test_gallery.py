"""All pictures of a run are drawn by name, those that the network allows, and the report finds them."""

from dataclasses import replace

import pytest
import torch

from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.evaluation import predict_set
from capsnet.figures.gallery import ALL, GALLERY, QUICK, Subject, draw_gallery, drawn, fitting
from capsnet.models import CapsNet


@pytest.fixture
def subject(make_run, network, data):
    """What the pictures of a network, of the fixture's by default, are drawn from."""

    def subject(network=network):
        return Subject(make_run(), network, data, predict_set(network, data.test))

    return subject


@pytest.fixture
def asked(monkeypatch):
    """The names of the exhibits that are asked to draw, which they do not do."""
    names = []
    for name, exhibit in GALLERY.items():
        monkeypatch.setitem(GALLERY, name, exhibit._replace(draw=lambda subject, folder, name=name: names.append(name)))
    return names


def test_the_pictures_that_are_named_are_drawn_and_no_others(subject, asked):
    draw_gallery(subject(), ["attacks", "confusion"])
    assert asked == ["attacks", "confusion"]


def test_a_capsnet_that_draws_can_have_every_picture(subject):
    assert fitting(subject(), GALLERY) == list(GALLERY)


def test_a_baseline_can_have_what_takes_no_capsules(subject):
    baseline = ConvBaseline((1, 8, 8), 3, size="small")
    assert fitting(subject(baseline), GALLERY) == ["targeted", "affine", "attacks", "lengths", "confusion", "curves"]


def test_a_capsnet_without_decoder_can_have_what_takes_no_drawings(subject):
    blind = CapsNet((1, 8, 8), 3, decoder="none", conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3)
    assert fitting(subject(blind), ALL) == ["couplings", "targeted", "affine", "lengths", "confusion", "curves"]


def test_without_validation_images_attacks_are_not_detected(subject):
    whole = subject()
    nothing = replace(whole.data, validation=whole.data.validation.select(torch.arange(0)))
    assert "detection" not in fitting(replace(whole, data=nothing), ALL)


def test_a_name_that_is_none_is_refused_before_anything_is_drawn(subject, asked):
    with pytest.raises(InputError, match="no picture 'mask': choose from drawings, errors, masks"):
        draw_gallery(subject(), ["curves", "mask"])
    assert not asked


def test_a_picture_that_the_network_cannot_have_is_refused_by_name(subject, asked):
    with pytest.raises(InputError, match="masks cannot be drawn: the network is a baseline without capsules"):
        draw_gallery(subject(ConvBaseline((1, 8, 8), 3, size="small")), ["masks"])
    assert not asked


@pytest.mark.parametrize("name", [name for name in GALLERY if name not in ("attacks", "detection")])
def test_an_exhibit_draws_the_files_that_it_names(subject, tmp_path, name):
    draw_gallery(subject(), [name])
    files = sorted(path.name for path in (tmp_path / "figures").glob("*.png"))
    assert files == sorted(path.name for path in (tmp_path / "figures").glob(GALLERY[name].files))
    assert files
    assert (tmp_path / "figures" / min(files, key=len)).with_suffix(".json").is_file()


def test_the_report_finds_pictures_in_the_order_of_the_gallery(tmp_path):
    for name in ("curves.png", "tweaks-1.png", "tweaks-0.png", "drawings.png", "tweaks-0.gif", "holiday.png"):
        (tmp_path / name).touch()
    assert [path.name for path, _ in drawn(tmp_path)] == ["drawings.png", "tweaks-0.png", "tweaks-1.png", "curves.png"]


def test_a_training_ends_with_pictures_of_the_gallery():
    assert set(QUICK) < set(ALL) < set(GALLERY)
