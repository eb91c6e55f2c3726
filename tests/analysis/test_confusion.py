"""The confusion matrix shows every error, however many predictions are right."""

import numpy as np
import pytest
import torch
from PIL import Image

from capsnet.analysis import confusion
from capsnet.analysis.confusion import plot_confusion
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation

from .conftest import CLASSES

COUNTS = [[980, 0, 1], [12, 1010, 0], [0, 0, 0]]


def evaluation(counts):
    counts = torch.as_tensor(counts)
    return Evaluation(int(counts.sum()), int(counts.sum() - counts.trace()), counts.tolist(), None, "prediction")


def written(axes):
    """The counts written in the cells: (row, column) → count."""
    texts = [text for text in axes.texts if text.get_text().isdigit()]
    return {(text.get_position()[1], text.get_position()[0]): int(text.get_text()) for text in texts}


def test_a_cell_holds_its_count_by_true_row_and_predicted_column(tmp_path, pages):
    plotted = pages(confusion)
    plot_confusion(evaluation(COUNTS), CLASSES, tmp_path / "a.png")
    counts = {(0, 0): 980, (0, 2): 1, (1, 0): 12, (1, 1): 1010, (2, 2): 0}
    assert written(plotted[0].axes[0]) == counts


def test_only_the_errors_are_coloured(tmp_path, pages):
    plotted = pages(confusion)
    plot_confusion(evaluation(COUNTS), CLASSES, tmp_path / "a.png")
    diagonal, errors = (image.get_array() for image in plotted[0].axes[0].images)
    assert np.array_equal(~np.ma.getmaskarray(errors), [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert np.array_equal(~np.ma.getmaskarray(diagonal), np.eye(3))


def test_one_error_among_thousands_of_right_predictions_is_seen(tmp_path):
    with Image.open(plot_confusion(evaluation([[5000, 1], [0, 5000]]), ("a", "b"), tmp_path / "a.png")) as picture:
        colours = np.asarray(picture.convert("HSV"))
    assert (colours[..., 1] > 200).mean() > 0.1  # saturated, which nothing else on the page is


def test_the_same_evaluation_makes_the_same_bytes(tmp_path):
    one, two = (plot_confusion(evaluation(COUNTS), CLASSES, tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_network_without_errors_has_no_scale_of_errors(tmp_path, pages):
    plotted = pages(confusion)
    plot_confusion(evaluation([[3, 0], [0, 4]]), ("a", "b"), tmp_path / "a.png")
    assert len(plotted[0].axes) == 1


def test_counts_that_do_not_fit_a_hundred_classes_are_left_out(tmp_path, pages):
    counts = torch.diag(torch.full((100,), 50_000))
    counts[3, 7] = 4
    plotted = pages(confusion)
    names = tuple(f"a class with the long name {k}" for k in range(100))
    plot_confusion(evaluation(counts), names, tmp_path / "a.png")
    assert not written(plotted[0].axes[0])


@pytest.mark.parametrize(("names", "rotation"), [(CLASSES, 0), (("a name", "of many", "letters here"), 90)])
def test_names_wider_than_a_cell_are_written_upwards(tmp_path, pages, names, rotation):
    plotted = pages(confusion)
    plot_confusion(evaluation(COUNTS), names, tmp_path / "a.png")
    assert {label.get_rotation() for label in plotted[0].axes[0].get_xticklabels()} == {rotation}


def test_names_that_are_not_as_many_as_the_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="has 3 classes, but there are 2 names"):
        plot_confusion(evaluation(COUNTS), ("a", "b"), tmp_path / "a.png")
