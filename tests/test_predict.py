"""What a network sees in image files is what it saw in the same images of a data set."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from capsnet.errors import InputError
from capsnet.evaluation import answers
from capsnet.predict import predict
from tests.training import TINY, few_digits, train


@pytest.fixture
def pictures(tmp_path):
    """The first test digits as PNG files."""
    paths = [tmp_path / f"{at}.png" for at in range(20)]
    for path, image in zip(paths, few_digits().test.images, strict=False):
        Image.fromarray(image.squeeze(0).numpy()).save(path)
    return paths


def test_a_test_digit_in_a_file_gets_the_answer_it_gets_in_the_data_set(trained, pictures):
    [(_, _, given)] = answers(trained.load_network(), few_digits().test)
    predictions = predict(trained, pictures)
    assert [int(prediction.answer) for prediction in predictions] == given.predictions[:20].tolist()
    lengths = torch.tensor([list(prediction.lengths.values()) for prediction in predictions])
    torch.testing.assert_close(lengths, given.scores[:20])
    assert [prediction.image for prediction in predictions] == [str(path) for path in pictures]


def test_the_drawing_error_is_that_of_the_answers_drawing(trained, pictures):
    [(pixels, _, given)] = answers(trained.load_network(), few_digits().test)
    squares = (given.drawings - pixels).square().sum(dim=(1, 2, 3))  # over channel, row and column
    errors = torch.tensor([prediction.drawing_error for prediction in predict(trained, pictures)])
    torch.testing.assert_close(errors, squares[:20])


def test_a_negative_is_read_with_light_and_dark_swapped(trained, pictures, tmp_path):
    negative = tmp_path / "negative.png"
    Image.fromarray(255 - few_digits().test.images[0, 0].numpy()).save(negative)
    [positive], [inverted] = predict(trained, pictures[:1]), predict(trained, [negative], invert=True)
    assert (inverted.answer, inverted.lengths) == (positive.answer, positive.lengths)
    assert predict(trained, [negative])[0].lengths != positive.lengths


def test_a_picture_of_another_size_and_in_colour_is_read_too(trained, pictures, tmp_path):
    Image.open(pictures[0]).convert("RGB").resize((80, 80)).save(tmp_path / "large.jpg")
    assert predict(trained, [tmp_path / "large.jpg"])[0].answer == predict(trained, pictures[:1])[0].answer


def test_a_baseline_gives_probabilities_and_no_drawing_error(tmp_path, pictures):
    run = train(tmp_path / "run", replace(TINY, network="small-cnn", steps=1))
    [prediction] = predict(run, pictures[:1])
    assert sum(prediction.lengths.values()) == pytest.approx(1)
    assert prediction.drawing_error is None


def test_a_missing_or_unreadable_image_is_named(trained, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    for path in (tmp_path / "missing.png", broken):
        with pytest.raises(InputError, match=f"{path.name} cannot be read as an image"):
            predict(trained, [pictures[0], path])
