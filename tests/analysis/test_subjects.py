"""All figures of a run are made by name, those that the network allows, and the report finds them."""

from dataclasses import replace
from inspect import signature

import pytest
import torch
from click import Command

from capsnet.analysis import SUBJECTS, find_subject
from capsnet.analysis.report import ALL, QUICK, captions, make_report
from capsnet.analysis.subject import Context, Subject
from capsnet.baselines import ConvBaseline
from capsnet.errors import InputError
from capsnet.models import CapsNet


@pytest.fixture
def context(make_run, network, data):
    """What the figures of a network, of the fixture's by default, are made from."""

    def context(network=network):
        return Context(make_run(), network, data)

    return context


@pytest.fixture
def made(monkeypatch):
    """The names of the subjects that are asked for their figures, which they do not make."""
    names = []
    monkeypatch.setattr(Subject, "__call__", lambda subject, context: names.append(subject.function.__name__))
    return names


def possible(context, names=tuple(SUBJECTS)):
    return [name for name in names if not find_subject(name).missing(context)]


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_name_is_that_of_a_subject_whose_defaults_are_those_of_its_options(name):
    subject = find_subject(name)
    assert isinstance(subject, Subject)
    assert subject.function.__name__ == name
    defaults = {name: parameter.default for name, parameter in signature(subject.function).parameters.items()}
    for option in subject.options:
        if option.name not in ("compare", "ood"):  # which the command line turns into a part of the context
            given = Command(name, params=[option]).make_context(name, []).params[option.name]
            assert given == defaults[option.name]


@pytest.mark.parametrize(("name", "line"), SUBJECTS.items())
def test_the_help_line_of_a_subject_is_that_of_its_docstring(name, line):
    assert line == find_subject(name).function.__doc__.split("\n\n")[0]


def test_the_figures_that_are_named_are_made_and_no_others(context, made):
    make_report(context(), ["attacks", "confusion"])
    assert made == ["attacks", "confusion"]


def test_a_capsnet_with_a_decoder_can_have_every_figure(context):
    assert possible(context()) == list(SUBJECTS)


def test_a_baseline_can_have_what_takes_no_capsules(context):
    baseline = ConvBaseline((1, 8, 8), 3, size="small")
    assert possible(context(baseline)) == ["targeted", "attacks", "affine", "lengths", "confusion", "curves"]


def test_a_capsnet_without_decoder_can_have_what_takes_no_reconstructions(context):
    blind = CapsNet((1, 8, 8), 3, decoder="none", conv_channels=4, conv_kernel=3, primary_types=2, primary_kernel=3)
    assert possible(context(blind), ALL) == ["couplings", "targeted", "affine", "lengths", "confusion", "curves"]


def test_without_validation_images_attacks_are_not_detected(context):
    full = context()
    nothing = replace(full.data, validation=full.data.validation.select(torch.arange(0)))
    assert "detection" not in possible(replace(full, data=nothing), ALL)


def test_a_name_that_is_none_is_refused_before_anything_is_made(context, made):
    with pytest.raises(InputError, match="no figure 'mask': choose from reconstructions, errors, masks"):
        make_report(context(), ["curves", "mask"])
    assert not made


def test_a_figure_that_the_network_cannot_have_is_refused_by_name(context, made):
    baseline = context(ConvBaseline((1, 8, 8), 3, size="small"))
    with pytest.raises(InputError, match="masks cannot be made: the network is a baseline without capsules"):
        make_report(baseline, ["confusion", "masks"])
    assert not made


@pytest.mark.parametrize("names", [QUICK, list(ALL), None])
def test_of_all_figures_those_are_left_out_that_the_network_cannot_have(context, made, names):
    baseline = context(ConvBaseline((1, 8, 8), 3, size="small"))
    make_report(baseline, names)
    assert made == possible(baseline, names or ALL)


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name not in ("attacks", "detection")])
def test_a_subject_makes_the_files_that_it_names(context, tmp_path, name):
    paths = find_subject(name)(context())
    files = sorted(path.name for path in (tmp_path / "figures").glob("*.png"))
    assert files == sorted(path.name for path, _ in captions(tmp_path / "figures"))
    assert set(files) == {path.name for path in paths if path.suffix == ".png"}
    assert (tmp_path / "figures" / min(files, key=len)).with_suffix(".json").is_file()


def test_the_report_finds_figures_in_the_order_of_the_subjects(tmp_path):
    names = ("reconstructions.png", "perturbations-0.png", "perturbations-1.png", "curves.png")
    for name in (*names[::-1], "perturbations-0.gif", "holiday.png"):
        (tmp_path / name).touch()
    assert [path.name for path, _ in captions(tmp_path)] == list(names)


@pytest.mark.parametrize(
    "names",
    [
        {"affine.png": "with 95 % intervals", "affine-reconstructions.png": "below each image, its reconstruction"},
        {"attacks.png": "worst of all attacks", "attacks-masking.png": "Checks for masked gradients"},
        {"targeted.png": "on each pair of classes", "targeted-images.png": "the adversarial images"},
        {"perturbations-0.png": "from one capsule", "perturbations-1.png": "from one capsule"},
    ],
)
def test_each_figure_has_its_own_caption_and_the_main_one_is_first(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    found = {path.name: caption for path, caption in captions(tmp_path)}
    assert list(found) == list(names)
    assert all(words in found[name] for name, words in names.items())


def test_no_two_figures_of_a_subject_share_a_caption():
    for name in SUBJECTS:
        texts = find_subject(name).captions.values()
        assert len(set(texts)) == len(texts)


def test_a_training_ends_with_figures_of_the_subjects():
    assert set(QUICK) < set(ALL) < set(SUBJECTS)
