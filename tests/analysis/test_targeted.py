"""A targeted attack brings a network to the target, within bounds, or says that it did not."""

import json

import pytest
import torch

from capsnet.analysis import targeted
from capsnet.analysis.targeted import attack_targets, plot_targeted
from capsnet.baselines import ConvBaseline
from capsnet.data import ImageSet
from capsnet.errors import InputError
from capsnet.models import CapsNet
from tests.analysis.conftest import CLASSES


def capsules(shape, classes):
    network = CapsNet(shape, classes, conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 3
    return network


def noise_for(network, count=60):
    """Images of noise whose labels are the network's predictions."""
    pixels = torch.randint(256, (count, *network.image_shape), dtype=torch.uint8)
    return ImageSet(pixels, predict(network, pixels / 255))


def predict(network, pixels):
    with torch.no_grad():
        output = network(pixels)
    return (output.lengths if isinstance(network, CapsNet) else output).argmax(dim=-1)


@pytest.mark.parametrize("steps", [2, 60])
def test_a_success_is_classified_as_the_target_and_a_failure_is_not(network, steps):
    attacked = attack_targets(network, noise_for(network), steps=steps, per_class=2)
    assert torch.equal(predict(network, attacked.adversarial) == attacked.targets, attacked.success)
    assert attacked.success.all() if steps == 60 else not attacked.success.all()


def test_a_baseline_is_attacked_by_its_logits():
    baseline = ConvBaseline((1, 8, 8), 2, "small").eval()
    with torch.no_grad():
        baseline.head[-1].bias -= baseline(torch.rand(20, 1, 8, 8)).median(dim=0).values
    attacked = attack_targets(baseline, noise_for(baseline))
    assert attacked.success.all()
    assert torch.equal(predict(baseline, attacked.adversarial), attacked.targets)


def test_the_ascent_never_takes_more_than_its_steps_nor_goes_further_than_they_reach(network):
    attacked = attack_targets(network, noise_for(network), steps=3, step_size=0.1)
    assert attacked.steps.max() <= 3
    assert (attacked.steps[~attacked.success] == 3).all()
    assert (attacked.l2 <= 0.1 * attacked.steps + 1e-5).all()
    assert attacked.l2.min() > 0.05


def test_pixels_stay_in_their_range(network):
    adversarial = attack_targets(network, noise_for(network), steps=20, step_size=2.0).adversarial
    assert adversarial.min() == 0
    assert adversarial.max() == 1


def test_every_pair_of_classes_is_attacked_from_the_first_images_that_are_right(network):
    images = noise_for(network)
    images.labels[0] = (images.labels[0] + 1) % 3  # and so is not a source
    attacked = attack_targets(network, images, per_class=2, steps=1)
    pairs = list(zip(attacked.sources.tolist(), attacked.targets.tolist(), strict=True))
    assert pairs == [(k, j) for k in range(3) for _ in range(2) for j in range(3) if j != k]
    right = predict(network, images.images / 255) == images.labels
    first = [images.images[right & (images.labels == k)][:2] / 255 for k in range(3)]
    torch.testing.assert_close(attacked.originals[::2], torch.cat(first))


def test_the_ascent_is_uphill_on_the_targets_length(network):
    attacked = attack_targets(network, noise_for(network), steps=1, step_size=0.05)
    with torch.no_grad():
        before, after = (
            network(pixels).lengths.gather(-1, attacked.targets[:, None])
            for pixels in (attacked.originals, attacked.adversarial)
        )
    assert (after > before).all()


def test_means_by_pair_have_sources_in_rows_and_count_only_what_is_asked_for(network):
    attacked = attack_targets(network, noise_for(network), per_class=2, steps=60)
    table = attacked.by_pair(attacked.l2, attacked.success)
    here = (attacked.sources == 0) & (attacked.targets == 2) & attacked.success
    assert table[0][2] == pytest.approx(float(attacked.l2[here].mean()))
    assert table[0][2] != pytest.approx(table[2][0])
    assert [table[k][k] for k in range(3)] == [None] * 3
    assert attacked.by_pair(attacked.l2, torch.zeros_like(attacked.success)) == [[None] * 3] * 3


def test_of_more_than_ten_classes_the_first_ten_are_attacked():
    network = capsules((1, 8, 8), 12)
    attacked = attack_targets(network, noise_for(network, 600), steps=1)
    assert attacked.classes == 10
    assert len(attacked.targets) > 9
    assert max(attacked.sources.max(), attacked.targets.max()) == 9


def test_the_same_images_give_the_same_attack(network):
    images = noise_for(network)
    one, two = (attack_targets(network, images, steps=10).adversarial for _ in range(2))
    assert torch.equal(one, two)


def test_a_set_without_an_image_classified_right_is_refused(network):
    images = noise_for(network)
    with pytest.raises(InputError, match="none of the 60 images is classified right, so there is nothing to attack"):
        attack_targets(network, ImageSet(images.images, (images.labels + 1) % 3))


@pytest.mark.parametrize(("per_class", "steps", "size"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, float("nan"))])
def test_counts_below_1_and_steps_of_no_length_are_refused(network, per_class, steps, size):
    with pytest.raises(InputError, match=f"not {per_class}, {steps} and {size:g}"):
        attack_targets(network, noise_for(network), per_class=per_class, steps=steps, step_size=size)


@pytest.fixture
def images(network):
    """Forty images of noise, labelled by the network's predictions."""
    pixels = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        return ImageSet(pixels, network(pixels / 255).lengths.argmax(dim=-1))


def words(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\n", " ")


def cells(axes):
    return [text.get_text() for text in axes.texts]


def test_the_same_network_and_images_make_the_same_bytes(network, images, tmp_path):
    (one, _), (two, _) = (plot_targeted(network, images, CLASSES, tmp_path / f"{name}.png", steps=5) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "a-images.png").read_bytes() == (tmp_path / "b-images.png").read_bytes()


def test_the_matrices_have_the_success_and_the_distance_of_each_pair(network, images, tmp_path, pages):
    figures = pages(targeted)
    plot_targeted(network, images, CLASSES, tmp_path / "a.png", steps=4, per_class=2)
    attacked = attack_targets(network, images, steps=4, per_class=2)
    rates = attacked.by_pair(100.0 * attacked.success, torch.ones_like(attacked.success))
    distances = attacked.by_pair(attacked.l2, attacked.success)
    for axes, table, form in zip(figures[0].axes, (rates, distances), ("{:.0f}", "{:.1f}"), strict=True):
        assert cells(axes) == [
            "" if row == column else "—" if table[row][column] is None else form.format(table[row][column])
            for row in range(3)
            for column in range(3)
        ]
    assert f"{int(attacked.success.sum())} of n = 12 attacks succeeded" in words(figures[0])
    assert "at most 4 steps of 0.2 (L2)" in words(figures[0])


def test_a_failure_is_framed_and_a_success_is_not(network, images, tmp_path, pages):
    figures = pages(targeted)
    plot_targeted(network, images, CLASSES, tmp_path / "a.png", steps=1, step_size=1e-4)
    plot_targeted(network, images, CLASSES, tmp_path / "b.png")
    assert [len(figure.axes[0].patches) for figure in figures[1::2]] == [6, 0]
    assert "—" in cells(figures[0].axes[1])


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


def test_the_numbers_next_to_the_figure_have_n_and_every_pair(network, images, tmp_path):
    path, _ = plot_targeted(network, images, CLASSES, tmp_path / "a.png", steps=4)
    numbers = json.loads(path.with_suffix(".json").read_text())
    attacked = attack_targets(network, images, steps=4)
    assert numbers["n"] == 6
    assert numbers["successes"] == int(attacked.success.sum())
    assert numbers["success_rate"] == pytest.approx(numbers["successes"] / 6)
    assert numbers["l2"] == attacked.by_pair(attacked.l2, attacked.success)
    assert numbers["steps"] == attacked.by_pair(attacked.steps, attacked.success)
    assert (numbers["most_steps"], numbers["classes"]) == (4, list(CLASSES))


def test_what_cannot_be_attacked_leaves_no_figure(network, images, tmp_path):
    with pytest.raises(InputError, match="at least 1 image per class"):
        plot_targeted(network, images, CLASSES, tmp_path / "a.png", per_class=0)
    assert not list(tmp_path.iterdir())
