"""The command line, from training to figures; what a user can put right is one line and exit status 2."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from capsnet.cli import main, parse
from capsnet.data import sources
from capsnet.recipes import RECIPES
from capsnet.runs import load_run
from tests.training import few_digits

COMMAND = [sys.executable, "-c", "from capsnet.cli import main; main()"]
SMALL = shlex.split("--conv-channels 8 --primary-types 2 --precision 32-true --compile False --batch 32")


class Said(NamedTuple):
    status: int
    out: str
    err: str


def capsnet(*arguments):
    """Run a command line in this process."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        patch.setattr(sys, "argv", ["capsnet", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
    return Said(status, out.getvalue(), err.getvalue())


def files(folder):
    """The files of a folder, and when each was last written to."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run that has ended, one that was begun, a folder of something else, and two pictures."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        said = capsnet("train", "digits", "--run", "ended", "--epochs", 1, *SMALL)
    assert said.status == 0, said
    (place / "ended.txt").write_text(said.out)
    (place / "begun").mkdir()
    (place / "begun" / "recipe.json").write_bytes((place / "ended" / "recipe.json").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert capsnet("train", "digits", "--run", "blind", "--steps", 1, "--decoder", "none", *SMALL).status == 0
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.txt").write_text("years of work")
    for at in (0, 1):
        Image.fromarray(few_digits().test.images[at, 0].numpy()).save(place / f"{at}.png")
    return place


@pytest.fixture
def here(place, monkeypatch):
    """That folder, to work in."""
    monkeypatch.chdir(place)
    return place


def test_training_tells_how_well_it_went_and_leaves_results_and_a_report(here):
    out = (here / "ended.txt").read_text()
    results = json.loads((here / "ended" / "results.json").read_text())
    assert out.startswith("ended: recipe digits, 1,294 training images of (1, 8, 8)\n")
    assert f"test accuracy {results['test']['accuracy']:.2%}: {results['test']['errors']} errors of n = 360" in out
    assert out.endswith("report: ended/report.html\n")
    assert (here / "ended" / "report.html").stat().st_size > 10_000
    assert results["environment"]["command"] == shlex.join(
        ["capsnet", "train", "digits", "--run", "ended", "--epochs", "1", *SMALL]
    )


def test_evaluating_finds_what_training_reported(here):
    said = capsnet("evaluate", "ended")
    results = json.loads((here / "ended" / "results.json").read_text())
    assert said.status == 0
    assert said.out.splitlines()[-1] in (here / "ended.txt").read_text().splitlines()
    found = json.loads(capsnet("evaluate", "ended", "--json").out)
    assert found.pop("data") == "digits"
    del results["test"]["per_class"]
    assert found == results["test"]


def test_evaluating_says_whose_capsule_was_drawn(here):
    for masked_by in ("prediction", "label"):
        asked = ("evaluate", "ended", "--masked-by", masked_by)
        assert f"drawing of the {masked_by}'s capsule" in capsnet(*asked).out
        assert json.loads(capsnet(*asked, "--json").out)["masked_by"] == masked_by


def test_predicting_gives_a_row_an_image_and_says_how_it_was_read(here):
    said = capsnet("predict", "ended", "0.png", "1.png")
    assert said.status == 0
    assert "0.png" in said.out
    assert "1.png" in said.out
    assert said.out.endswith("read as they are (--invert swaps light and dark)\n")
    assert capsnet("predict", "ended", "0.png", "--invert").out.endswith("read with light and dark swapped\n")


def test_predicting_as_json_gives_an_object_an_image(here):
    first, second = json.loads(capsnet("predict", "ended", "0.png", "1.png", "--json").out)
    assert first.keys() == {"image", "answer", "lengths", "drawing_error", "threshold", "suspicious"}
    assert first["suspicious"] == (first["drawing_error"] > first["threshold"])
    assert (first["image"], second["image"]) == ("0.png", "1.png")
    assert first["lengths"].keys() == set("0123456789")
    assert first["answer"] == max(first["lengths"], key=first["lengths"].get)


def test_figures_are_drawn_anew(here):
    report = here / "ended" / "report.html"
    report.unlink()
    assert capsnet("figures", "ended") == (0, "report: ended/report.html\n", "")
    assert report.is_file()


def test_the_errors_alone_are_drawn_when_asked(here):
    said = capsnet("drawings", "ended", "--errors-only", "--count", 4)
    assert said == (0, "ended/figures/errors.png\n", "")
    with Image.open(here / "ended" / "figures" / "errors.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("line", "pictures"),
    [
        ("masks ended --per-class 1", ["masks.png"]),
        ("tweaks ended --class 3 --range 0.3 --step 0.075 --dimensions 0 5", ["tweaks-3.png", "tweaks-3.gif"]),
        ("couplings ended --image 2", ["couplings.png"]),
        ("targeted ended", ["targeted.png"]),
        ("detection ended --count 5 --other digits", ["detection.png"]),
        ("affine ended --beside blind --count 9", ["affine.png"]),
        ("attacks ended --images 3 --epsilons 0.1 0.3", ["attacks.png"]),
    ],
)
def test_a_verb_draws_its_picture_and_keeps_its_numbers_beside_it(here, line, pictures):
    paths = [here / "ended" / "figures" / picture for picture in pictures]
    for path in (*paths, paths[0].with_suffix(".json")):
        path.unlink(missing_ok=True)
    assert capsnet(*shlex.split(line)) == (0, "".join(f"ended/figures/{picture}\n" for picture in pictures), "")
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == path.suffix[1:].upper()
    assert json.loads(paths[0].with_suffix(".json").read_text())


def test_a_run_is_resumed_by_its_own_recipe_which_may_be_given_more_epochs(here):
    asked = parse(shlex.split("train digits --run ended --resume --epochs 7"))
    assert asked.settings == replace(load_run("ended").recipe, epochs=7)
    assert asked.settings.conv_channels == 8


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "name a verb: one of train, evaluate, predict, figures, drawings, masks, tweaks, couplings, "),
        ("fly", "no verb 'fly': choose one of train, evaluate, predict, "),
        ("--wings", "no verb '--wings'"),
        ("evaluate ended --recipe paper", "--recipe"),
        ("train", "DATA"),
        ("train digits --wings 2", "--wings"),
        ("train digits --recipe papre", "no recipe 'papre': choose one of paper"),
        ("train digits --recipe", "--recipe"),
        ("train digits --run", "--run"),
        ("train digits --epochs many", "--epochs"),
        ("train digits --epochs 0", "--epochs must be at least 1, not 0"),
        ("train digits --rate nan", "--rate must be above 0, not nan"),
        ("train digits --reconstruction nan", "--reconstruction must be at least 0, not nan"),
        ("train digits --seed 99999999999", "--seed must be at least 0 and below 2**32"),
        ("train digits --network mlp", "--network"),
        ("train digits --validation 5000", "choose --validation from 0 to 1436"),
        ("train minst", "no data set 'minst'"),
        ("train mnist --data-dir data", "say with --data-dir where they are"),
        ("train digits --run ended", "ended exists: go on with it by --resume, replace it by --overwrite"),
        ("train digits --run thesis", "thesis exists and is no run folder"),
        ("train digits --run thesis --overwrite", "thesis exists and is no run folder"),
        ("train digits --run 0.png/run", "0.png/run cannot be made: Not a directory"),
        ("train digits --recipe fast --run new", "an image of 8x8 is too small for kernels of 9 and 9"),
        ("train digits --resume --run nowhere", "nowhere is no run folder"),
        ("train digits --resume", "runs/digits-digits is no run folder"),
        ("train --epochs 3 digits --resume", "runs/digits-digits is no run folder"),
        ("train digits --resume --run ended --rate 0.5", "ended was trained otherwise (rate)"),
        ("evaluate", "RUN"),
        ("evaluate nowhere", "nowhere is no run folder"),
        ("evaluate begun", "begun has no trained network yet"),
        ("evaluate ended --data minst", "no data set 'minst'"),
        ("evaluate ended --masked-by nobody", "--masked-by"),
        ("predict ended", "name at least one image"),
        ("predict ended missing.png", "missing.png cannot be read as an image"),
        ("predict ended thesis/chapter.txt", "thesis/chapter.txt cannot be read as an image"),
        ("predict nowhere 0.png", "nowhere is no run folder"),
        ("figures nowhere", "nowhere is no run folder"),
        ("figures ended --only mask", "no picture 'mask': choose from drawings, errors, masks"),
        ("figures blind --only masks", "masks cannot be drawn: the network has no decoder"),
        ("drawings blind", "this network has no decoder, so it cannot draw: train one with --decoder dense"),
        ("masks blind", "this network has no decoder"),
        ("tweaks blind", "this network has no decoder"),
        ("detection blind", "this network does not draw"),
        ("drawings ended --count 0", "at least one image"),
        ("masks ended --per-class 0", "a mask matrix has 1 to 20 images of a class, not 0"),
        ("tweaks ended --class eleven", "no class 'eleven' in digits: its classes are 0, 1"),
        ("tweaks ended --dimensions 16", "there is no dimension 16: this network's capsules have 0 to 15"),
        ("tweaks ended --step 0.1", "steps of 0.1 do not lead from 0 to 0.25"),
        ("tweaks ended --image 360", "there is no image 360: the set has images 0 to 359"),
        ("couplings ended --image 360", "360"),
        ("detection ended --other mnist", "mnist"),
        ("affine ended --beside ended", "two runs are named ended"),
        ("affine ended --beside nowhere", "nowhere is no run folder"),
        ("affine ended --count 0", "0"),
        ("attacks ended --epsilons 1.5", "1.5"),
        ("attacks ended --images 0", "an attack takes at least one image, not 0"),
        ("import-weights missing.pt new", "missing.pt"),
        ("import-weights 0.png new", "0.png"),
        ("figures begun", "begun has no trained network yet"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_exit_status_2(here, line, words, monkeypatch):
    nobody = replace(sources.SOURCES["mnist"], mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(sources.SOURCES, "mnist", nobody)
    monkeypatch.setenv("no_proxy", "*")
    before = files(here)
    status, out, err = capsnet(*shlex.split(line))
    assert (status, out) == (2, "")
    assert re.fullmatch("capsnet: [^\n]+\n", err)
    assert words in err
    assert files(here) == before


@pytest.mark.parametrize(
    ("line", "recipe"),
    [
        ("mnist", "fast"),
        ("digits", "digits"),
        ("--epochs 3 digits", "digits"),
        ("digits --recipe paper", "paper"),
        ("--recipe=paper digits", "paper"),
        ("mnist --run digits", "fast"),
        ("mnist --data-dir digits", "fast"),
    ],
)
def test_the_recipe_is_the_one_named_or_else_that_of_the_data(line, recipe):
    asked = parse(["train", *shlex.split(line)])
    epochs = 3 if "--epochs" in line else RECIPES[recipe]().epochs
    assert (asked.recipe, asked.settings) == (recipe, replace(RECIPES[recipe](), epochs=epochs))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_stop_saves_and_says_how_to_go_on(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    line = shlex.split("train digits --run 'my run' --steps 300 --decoder none") + SMALL
    with subprocess.Popen([*COMMAND, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log, patience = Path("my run", "log.jsonl"), time.monotonic() + 60
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < patience:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == 128 + number, err
    way_on = re.fullmatch("\nstopped; go on with: capsnet (.+)\n", err)[1]
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    assert step < 300
    assert capsnet(*shlex.split(way_on)).status == 0
    results = json.loads(Path("my run", "results.json").read_text())
    assert results["validation"][-1]["step"] == 300


def test_a_training_outlives_its_terminal(tmp_path):
    """The terminal is closed without a signal, as where a process was disowned."""
    keyboard, terminal = pty.openpty()
    line = shlex.split(f"train digits --run {tmp_path / 'run'} --epochs 1 --decoder none") + SMALL
    with subprocess.Popen([*COMMAND, *line], stdout=terminal, stderr=subprocess.PIPE, text=True) as process:
        os.close(terminal)
        while not (tmp_path / "run" / "log.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        os.close(keyboard)
        _, err = process.communicate()
    assert load_run(tmp_path / "run").load_network()
    assert "Traceback" not in err


@pytest.fixture
def read_only(here):
    """Runs a command line while the folder that runs lie in is mounted read-only."""

    def run(line):
        program = f"mount --bind . . && mount -o remount,bind,ro . && cd . && exec {shlex.join(COMMAND)} {line}"
        how = ["unshare", "--mount", "--map-root-user", "sh", "-c", f"cd {shlex.quote(str(here))} && {program}"]
        return subprocess.run(how, capture_output=True, text=True, check=False)

    if (
        "cannot"
        not in subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", "mount -t tmpfs none /mnt || echo cannot"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    ):
        return run
    pytest.skip("a file system can be mounted neither by this user nor in a namespace of its own")


@pytest.mark.parametrize(
    "line",
    [
        "train digits --run new",
        "train digits --run ended --resume",
        "train digits --run ended --overwrite",
        "figures ended --only confusion",
        "couplings ended",
        "detection ended --count 2",
        "import-weights x.pt new",
    ],
)
def test_on_a_read_only_file_system_there_is_one_line(read_only, here, line):
    before = files(here)
    process = read_only(line)
    assert process.returncode == 2, process
    assert re.fullmatch("(.*\n)?capsnet: [^\n]+\n", process.stderr), process.stderr
    assert files(here) == before
