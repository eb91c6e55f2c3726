"""The pictures of targeted attacks show what became of each pair of classes."""

import json

import pytest
import torch

from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.figures import targeted
from capsnet.figures.targeted import draw_targeted
from capsnet.robustness.targeted import attack_targets

from .conftest import CLASSES


@pytest.fixture
def images(network):
    """Forty images of noise, labelled by the network's answers."""
    pixels = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        return ImageSet(pixels, network(pixels / 255).lengths.argmax(dim=-1))


def words(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def cells(axes):
    return [text.get_text() for text in axes.texts]


def test_the_same_network_and_images_make_the_same_bytes(network, images, tmp_path):
    one, two = (draw_targeted(network, images, CLASSES, tmp_path / f"{name}.png", steps=5) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "a-images.png").read_bytes() == (tmp_path / "b-images.png").read_bytes()


def test_the_matrices_have_the_success_and_the_distance_of_each_pair(network, images, tmp_path, pages):
    drawn = pages(targeted)
    draw_targeted(network, images, CLASSES, tmp_path / "a.png", steps=4, per_class=2)
    attacked = attack_targets(network, images, steps=4, per_class=2)
    rates = attacked.by_pair(100.0 * attacked.success, torch.ones_like(attacked.success))
    distances = attacked.by_pair(attacked.l2, attacked.success)
    for axes, table, form in zip(drawn[0].axes, (rates, distances), ("{:.0f}", "{:.1f}"), strict=True):
        assert cells(axes) == [
            "" if row == column else "—" if table[row][column] is None else form.format(table[row][column])
            for row in range(3)
            for column in range(3)
        ]
    assert f"{int(attacked.success.sum())} of n = 12 attacks succeeded" in words(drawn[0])
    assert "at most 4 steps of 0.2 (L2)" in words(drawn[0])


def test_a_failure_is_framed_and_a_success_is_not(network, images, tmp_path, pages):
    drawn = pages(targeted)
    draw_targeted(network, images, CLASSES, tmp_path / "a.png", steps=1, step_size=1e-4)
    draw_targeted(network, images, CLASSES, tmp_path / "b.png")
    assert [len(figure.axes[0].patches) for figure in drawn[1::2]] == [6, 0]
    assert "—" in cells(drawn[0].axes[1])


def test_a_block_is_the_original_the_adversarial_image_and_the_difference(network, images, tmp_path, pages):
    attacked = attack_targets(network, images)
    tiles, _, most = targeted._tiles(attacked, 3)
    place = [*zip(attacked.sources.tolist(), attacked.targets.tolist(), strict=True)].index((0, 2))
    original, adversarial, difference = tiles[0, 6:9]
    torch.testing.assert_close(original, attacked.originals[place].expand(3, 8, 8))
    torch.testing.assert_close(adversarial, attacked.adversarial[place].expand(3, 8, 8))
    change = attacked.adversarial[place, 0] - attacked.originals[place, 0]
    red, _, blue = difference
    assert (red > blue)[change > 0.1 * most].all()
    assert (red < blue)[change < -0.1 * most].all()


def test_the_numbers_beside_the_picture_have_n_and_every_pair(network, images, tmp_path):
    path = draw_targeted(network, images, CLASSES, tmp_path / "a.png", steps=4)
    numbers = json.loads(path.with_suffix(".json").read_text())
    attacked = attack_targets(network, images, steps=4)
    assert numbers["n"] == 6
    assert numbers["successes"] == int(attacked.success.sum())
    assert numbers["success_rate"] == pytest.approx(numbers["successes"] / 6)
    assert numbers["l2"] == attacked.by_pair(attacked.l2, attacked.success)
    assert numbers["steps"] == attacked.by_pair(attacked.steps, attacked.success)
    assert (numbers["most_steps"], numbers["classes"]) == (4, list(CLASSES))


def test_what_cannot_be_attacked_leaves_no_picture(network, images, tmp_path):
    with pytest.raises(InputError, match="at least 1 image per class"):
        draw_targeted(network, images, CLASSES, tmp_path / "a.png", per_class=0)
    assert not list(tmp_path.iterdir())
