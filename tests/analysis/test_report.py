"""The report needs no other file, says where its numbers are from, and escapes a user's text."""

from base64 import b64decode
from html import escape
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from capsnet.analysis.report import write_report
from capsnet.analysis.subject import Context
from capsnet.baselines import ConvBaseline
from capsnet.data import Data
from capsnet.evaluation import Predictions, evaluate
from capsnet.files import write_json
from capsnet.recipes import Fast

from .conftest import TRAINING

NASTY = '<script>alert("1")</script> & $title'


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture
def report(make_run, network, data):
    """The page of a run's report."""

    def report(run=None, network=network, data=data):
        return Page(write_report(Context(run or make_run(), network, data)))

    return report


def test_the_report_holds_the_figures_of_the_run_and_needs_no_other_file_and_no_script(report, tmp_path):
    (tmp_path / "figures").mkdir()
    names = ("reconstructions", "perturbations-0", "perturbations-1", "confusion")
    for shade, name in enumerate((*names, "a holiday")):
        Image.new("L", (800, 600), shade).save(tmp_path / "figures" / f"{name}.png")
    page = report()
    for source, name, alt in zip(page.values("src"), names, page.values("alt"), strict=True):
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        assert b64decode(content) == (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert len(alt) > 20
        page.source = page.source.replace(content, "")
    assert page.values("width") == ["384"] * 4  # 800 dots at 200 an inch, in CSS pixels
    assert not page.values("href")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not [outside for outside in ("http", "//", "url(", "@import") if outside in page.source]


def test_the_headline_has_accuracy_n_errors_parameters_and_time(report, network, data):
    page, result = report(), evaluate(network, data.test)
    assert f"{100 * result.accuracy:.2f} % of n = 12 test images of noise" in page.text
    assert f"{result.errors} errors" in page.text
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters, trained for 1 min 31 s" in page.text
    assert "from the capsule of the predicted class" in page.text


def test_it_says_by_which_validation_the_network_was_selected(report):
    assert "best epoch on n = 50 validation images: epoch 3 with 4 errors" in report().text


def test_without_validation_it_says_that_the_last_weights_were_kept(report, make_run):
    assert "the network has the last weights" in report(make_run(TRAINING)).text


def test_each_class_has_its_n_and_accuracy_and_one_without_images_has_none(make_run, network, data):
    context = Context(make_run(), network, data)
    scores, labels = torch.eye(3)[[0, 0, 0, 1, 0]], torch.tensor([0, 0, 0, 0, 1])
    vars(context)["predictions"] = Predictions(scores, labels, None, "prediction")
    page = Page(write_report(context))
    assert "cat 4 3 75.00 %" in page.text.replace("  ", " ")
    assert "owl 0 0 —" in page.text


def test_fields_that_differ_from_the_paper_are_marked_and_only_those(report, make_run):
    page = report(make_run(recipe=Fast(epochs=4, steps=None, lr=1e-3, shift=2)))
    marked = [line for line in page.source.splitlines() if line.startswith('<tr class="differs">')]
    assert [line.split("<td>")[1].split("<")[0] for line in marked] == ["gradient", "epochs", "schedule"]
    assert "4 ≠" in page.text


PART = {"from_step": 0, "steps": 9, "device": "chip", "cores": 2, "platform": "Linux", "python": "3", "torch": "2"} | {
    "capsnet": "1",
    "commit": None,
    "command": "capsnet train",
    "precision": "32-true",
}


def write_parts(run, *parts):
    write_json(run.folder / "environment.json", {"parts": parts})


def test_the_environment_is_that_of_the_run(report, make_run):
    run = make_run()
    write_parts(run, PART | {"device": "a machine"}, PART | {"from_step": 7, "device": "another"})
    text = report(run).text
    assert "from step 0 steps 9 device a machine cores 2" in text
    assert "from step 7 steps 9 device another cores 2" in text


def test_a_missing_environment_is_said_to_be_missing(report):
    assert "Environment Not recorded." in report().text


def test_every_word_of_a_user_is_shown_as_a_word(report, make_run, data):
    classes = (NASTY, "a&b", 'c"d')
    run = make_run(classes=classes, name=NASTY)
    write_parts(run, PART | {"command": NASTY})
    page = report(run, data=Data(NASTY, classes, data.train, data.validation, data.test))
    assert "<script" not in page.source
    assert page.source.count(escape(NASTY)) == 5  # title, heading, headline, class and command
    assert NASTY in page.text


def test_a_report_of_a_baseline_does_not_speak_of_reconstructions(report):
    page = report(network=ConvBaseline((1, 8, 8), 3, size="small"))
    assert "A ConvBaseline with" in page.text
    assert "reconstructions" not in page.text


def test_the_same_run_has_the_same_report(report):
    assert report().source == report().source


def test_it_can_be_read_in_the_light_and_in_the_dark(report):
    source = report().source
    assert "prefers-color-scheme: dark" in source
    assert '<html lang="en">' in source
