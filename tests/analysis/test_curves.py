"""The curves of a run show the records of its log, few or many."""

import pytest
from PIL import Image

from capsnet.analysis import curves
from capsnet.analysis.curves import best_validation, plot_curves
from capsnet.errors import InputError
from capsnet.recipes import Fast, Paper

from .conftest import TRAINING, VALIDATION, train_record, validation_record


def panels(figure):
    """Panel → curve → (places, values)."""
    return {
        axes.get_ylabel(): {line.get_label().replace("\n", " "): line.get_data() for line in axes.lines}
        for axes in figure.axes
    }


@pytest.fixture
def plotted(make_run, pages, tmp_path):
    """The figure of a log of these records."""

    def plotted(records, recipe=None):
        figures = pages(curves)
        plot_curves(make_run(records, recipe), tmp_path / "a.png")
        return figures[0]

    return plotted


def test_losses_errors_and_learning_rate_are_plotted_against_epochs(plotted):
    figure = plotted([*TRAINING, *VALIDATION])
    shown = panels(figure)
    assert list(shown) == ["loss", "errors in %", "learning rate"]
    assert list(shown["loss"]) == [
        *("loss", "margin loss", "0.0005 · reconstruction", "0.0005 · reconstruction, validation"),
    ]
    places, percent = shown["errors in %"]["validation"]
    assert (list(places), list(percent)) == ([1, 2, 3], pytest.approx([18, 8, 8]))
    assert list(shown["loss"]["loss"][0]) == [0.5, 1, 1.5, 2, 2.5, 3]
    assert list(shown["loss"]["0.0005 · reconstruction"][1]) == pytest.approx([0.01 / s for s in range(5, 31, 5)])
    assert figure.axes[-1].get_xlabel() == "epochs"


def test_the_network_kept_is_marked(plotted):
    assert "kept: epoch 3, 4 errors of n = 50" in panels(plotted([*TRAINING, *VALIDATION]))["errors in %"]


def test_a_log_without_validation_shows_the_training_alone(plotted):
    shown = panels(plotted(TRAINING))
    assert list(shown["errors in %"]) == ["training batches, as it learns"]
    assert "0.0005 · reconstruction, validation" not in shown["loss"]


def test_a_log_of_validations_only_has_no_learning_rate_to_show(plotted):
    shown = panels(plotted(VALIDATION))
    assert list(shown) == ["loss", "errors in %"]
    assert list(shown["loss"]) == ["0.0005 · reconstruction, validation"]


def test_a_run_in_its_first_epoch_is_plotted_against_steps(plotted):
    figure = plotted([train_record(5, 1)])
    assert figure.axes[-1].get_xlabel() == "training steps"
    assert list(panels(figure)["loss"]["loss"][0]) == [5]


def test_a_network_without_decoder_has_one_loss(plotted):
    records = [
        {name: value for name, value in record.items() if name not in ("margin", "reconstruction")}
        for record in (*TRAINING, *VALIDATION)
    ]
    assert list(panels(plotted(records))["loss"]) == ["loss"]


def test_an_error_rate_of_zero_is_on_the_scale(plotted):
    figure = plotted([validation_record(10, 1, 3), validation_record(20, 2, 0)])
    assert figure.axes[-1].get_ylim()[0] == 0
    assert 0 in figure.axes[-1].get_yticks()


def test_a_run_without_any_error_is_plotted(plotted):
    records = [validation_record(10, 1, 0), train_record(10, 1, accuracy=1.0), train_record(20, 2, accuracy=1 - 2**-24)]
    assert plotted(records).axes[1].get_yscale() == "linear"


@pytest.mark.parametrize(("recipe", "scale"), [(Paper(), "log"), (Fast(), "linear")])
def test_a_learning_rate_that_decays_by_a_factor_has_a_logarithmic_scale(plotted, recipe, scale):
    assert plotted(TRAINING, recipe).axes[-1].get_yscale() == scale


def test_a_long_training_is_plotted_by_means_of_neighbours(plotted):
    records = [train_record(step, 1 + step // 400, loss=float(step % 2)) for step in range(1, 1201)]
    places, values = panels(plotted(records))["loss"]["loss"]
    assert len(places) == 150
    assert set(values) == {0.5}


def test_the_same_log_makes_the_same_bytes(make_run, tmp_path):
    one, two = (plot_curves(make_run(), tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with Image.open(one) as picture:
        assert (picture.format, picture.width > 1400, picture.height > 1400) == ("PNG", True, True)


def test_an_empty_log_is_refused(make_run, tmp_path):
    with pytest.raises(InputError, match=r"has no measurements to plot: its log.jsonl is empty or missing"):
        plot_curves(make_run([]), tmp_path / "a.png")


def test_of_validations_with_as_few_errors_the_last_was_kept(make_run):
    assert best_validation(make_run())["epoch"] == 3
    assert best_validation(make_run(TRAINING)) is None
