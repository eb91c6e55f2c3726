"""A network predicts image files as it predicts the same images of a data set."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from capsnet import evaluation
from capsnet.analysis.detection.detector import Detector, fit_detector, load_detector, save_detector
from capsnet.cli.run import print_predictions
from capsnet.errors import InputError
from capsnet.evaluation import predict_batches
from capsnet.runs import load_run
from tests.commands import capsnet
from tests.training import BASELINE, TINY, few_digits, train


def predict(run, images, **options):
    """Predict as the command `capsnet predict` does."""
    detector = load_detector(run)
    threshold = None if detector is None else detector.threshold
    return evaluation.predict(run.load_network(), run.classes, images, threshold=threshold, **options)


@pytest.fixture
def pictures(tmp_path):
    """The first test digits as PNG files."""
    paths = [tmp_path / f"{at}.png" for at in range(20)]
    for path, image in zip(paths, few_digits().test.images, strict=False):
        Image.fromarray(image.squeeze(0).numpy()).save(path)
    return paths


@pytest.fixture
def with_detector(trained, tmp_path):
    """The trained run, with a detector fitted to its validation images."""
    run = load_run(shutil.copytree(trained.folder, tmp_path / "with-detector"))
    save_detector(run, fit_detector(run.load_network(), few_digits().validation))
    return run


@pytest.fixture
def noise(tmp_path):
    """An image of noise."""
    Image.fromarray(torch.randint(256, (8, 8), dtype=torch.uint8).numpy()).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_a_test_digit_in_a_file_has_the_prediction_that_it_has_in_the_data_set(trained, pictures):
    [(_, _, predicted)] = predict_batches(trained.load_network(), few_digits().test)
    predictions = predict(trained, pictures)
    assert [int(prediction.predicted) for prediction in predictions] == predicted.predictions[:20].tolist()
    lengths = torch.tensor([list(prediction.lengths.values()) for prediction in predictions])
    torch.testing.assert_close(lengths, predicted.scores[:20])
    assert [prediction.image for prediction in predictions] == [str(path) for path in pictures]


def test_the_reconstruction_error_is_that_of_the_predicted_class(trained, pictures):
    [(pixels, _, predicted)] = predict_batches(trained.load_network(), few_digits().test)
    squares = (predicted.reconstructions - pixels).square().sum(dim=(1, 2, 3))  # over channel, row and column
    errors = torch.tensor([prediction.reconstruction_error for prediction in predict(trained, pictures)])
    torch.testing.assert_close(errors, squares[:20])


def test_more_images_than_a_batch_are_predicted_in_their_order(trained, pictures, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 8)
    in_parts = predict(trained, iter(pictures))
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 20)
    at_once = predict(trained, pictures)
    assert [(p.image, p.predicted) for p in in_parts] == [(p.image, p.predicted) for p in at_once]
    torch.testing.assert_close([p.reconstruction_error for p in in_parts], [p.reconstruction_error for p in at_once])
    assert predict(trained, []) == []


def test_a_negative_is_read_with_light_and_dark_swapped(trained, pictures, tmp_path):
    negative = tmp_path / "negative.png"
    Image.fromarray(255 - few_digits().test.images[0, 0].numpy()).save(negative)
    [positive], [inverted] = predict(trained, pictures[:1]), predict(trained, [negative], invert=True)
    assert (inverted.predicted, inverted.lengths) == (positive.predicted, positive.lengths)
    assert predict(trained, [negative])[0].lengths != positive.lengths


def test_an_image_of_another_size_and_in_colour_is_read(trained, pictures, tmp_path):
    Image.open(pictures[0]).convert("RGB").resize((80, 80)).save(tmp_path / "large.jpg")
    assert predict(trained, [tmp_path / "large.jpg"])[0].predicted == predict(trained, pictures[:1])[0].predicted


def test_a_baseline_has_probabilities_and_no_reconstruction_error(tmp_path, pictures):
    run = train(tmp_path / "run", replace(BASELINE, epochs=None, steps=1))
    [prediction] = predict(run, pictures[:1])
    assert sum(prediction.lengths.values()) == pytest.approx(1)
    assert (prediction.reconstruction_error, prediction.threshold, prediction.suspicious) == (None, None, None)


def test_a_folder_stands_for_all_images_in_it_in_sorted_order(trained, pictures, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    in_folder, one_by_one = predict(trained, [tmp_path]), predict(trained, sorted(pictures))
    assert [p.image for p in in_folder] == [str(path) for path in sorted(pictures)]
    assert in_folder == one_by_one


def test_a_folder_without_images_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="holds no images: give image files, or a folder with images"):
        predict(trained, [tmp_path])


def test_a_missing_or_unreadable_image_is_named(trained, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    for path in (tmp_path / "missing.png", broken):
        with pytest.raises(InputError, match=f"{path.name} cannot be read as an image"):
            predict(trained, [pictures[0], path])


def test_an_image_with_a_reconstruction_error_above_the_threshold_is_suspicious(with_detector, pictures, noise):
    threshold = fit_detector(with_detector.load_network(), few_digits().validation).threshold
    predictions = predict(with_detector, [*pictures, noise])
    assert [p.suspicious for p in predictions] == [p.reconstruction_error > threshold for p in predictions]
    assert {p.threshold for p in predictions} == {threshold}
    assert predictions[-1].suspicious
    assert not predictions[0].suspicious


def test_an_error_equal_to_the_threshold_is_not_suspicious(with_detector, pictures):
    [prediction] = predict(with_detector, pictures[:1])
    save_detector(with_detector, Detector(prediction.reconstruction_error, 95.0, 60))
    assert predict(with_detector, pictures[:1])[0].suspicious is False


def test_without_a_detector_no_image_is_suspicious_or_not(trained, pictures):
    [prediction] = predict(trained, pictures[:1])
    assert (prediction.threshold, prediction.suspicious) == (None, None)


def test_a_detector_is_read_as_it_was_written(with_detector):
    assert load_detector(with_detector) == fit_detector(with_detector.load_network(), few_digits().validation)


def test_a_detector_of_other_weights_is_not_used(with_detector, tmp_path, pictures):
    other = train(tmp_path / "other", replace(TINY, epochs=None, steps=1))
    shutil.copy(other.best / "model.safetensors", with_detector.best / "model.safetensors")
    assert load_detector(with_detector) is None
    assert predict(with_detector, pictures[:1])[0].suspicious is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"threshold": 3}', '{"threshold": null, "weights": ""}'])
def test_a_damaged_detector_is_refused_in_one_line(with_detector, content):
    (with_detector.folder / "detector.json").write_text(content)
    with pytest.raises(InputError, match=r"detector\.json is damaged: .* `capsnet detection .*` makes it again") as no:
        load_detector(with_detector)
    assert "\n" not in str(no.value)


def test_the_table_flags_suspicious_images_and_has_the_threshold(with_detector, pictures, noise, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    threshold = json.loads((with_detector.folder / "detector.json").read_text())["threshold"]
    print_predictions(predict(with_detector, [pictures[0], noise]), load_detector(with_detector), inverted=False)
    said = capsys.readouterr().out
    rows = {line.split("│")[1].strip().rpartition("/")[2]: line for line in said.splitlines() if ".png" in line}
    assert rows["noise.png"].split("│")[6].strip() == "yes"
    assert rows["0.png"].split("│")[6].strip() == "no"
    assert f"suspicious: the reconstruction error is above {threshold:.2f}, as for 5 % of the validation images" in said


def test_the_command_prints_the_percentile_of_the_detector(with_detector, pictures):
    detector = fit_detector(with_detector.load_network(), few_digits().validation, percentile=97.5)
    save_detector(with_detector, detector)
    said = capsnet("predict", with_detector.folder, pictures[0])
    assert f"above {detector.threshold:.2f}, as for 2.5 % of the validation images;" in said.out


def test_the_table_says_how_to_get_a_detector_where_there_is_none(trained, pictures, tmp_path, capsys):
    print_predictions(predict(trained, pictures[:1]), None, inverted=False)
    assert "`capsnet detection RUN` makes one\n" in capsys.readouterr().out
    baseline = train(tmp_path / "run", replace(BASELINE, epochs=None, steps=1))
    print_predictions(predict(baseline, pictures[:1]), None, inverted=False)
    assert "detect" not in capsys.readouterr().out
