"""The command line, from training to figures; what a user can put right is one line and exit status 2."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from capsnet.build import build_network
from capsnet.cli import parse
from capsnet.data import sources
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.printing import print_evaluation
from capsnet.recipe import Recipe
from capsnet.recipes import RECIPES
from capsnet.runs import load_run
from capsnet.verbs import VERBS, find_verb
from tests.commands import COMMAND, SMALL, capsnet, files
from tests.training import few_digits


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
    assert first.keys() == {"image", "predicted", "lengths", "reconstruction_error", "threshold", "suspicious"}
    assert first["suspicious"] == (first["reconstruction_error"] > first["threshold"])
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
        (5000 * "9", "no verb '999999999999...9999999999999': choose one of train"),
        (f"train digits --recipe {5000 * '9'}", "no recipe '999999999999...9999999999999': choose one of paper"),
        ("fly", "no verb 'fly': choose one of train, evaluate, predict, "),
        ("--wings", "no verb '--wings'"),
        ("evaluate ended --recipe paper", "--recipe"),
        ("train", "DATA"),
        ("train digits --wings 2", "--wings"),
        ("train digits --recipe papre", "no recipe 'papre': choose one of paper"),
        ("train digits --recipe", "--recipe"),
        ("train digits --run", "--run"),
        ("train digits --epochs many", "--epochs"),
        ("train digits --epochs 0", "--epochs must be greater than or equal to 1, not 0"),
        ("train digits --lr nan", "--lr must be a finite number, not nan"),
        ("train digits --reconstruction-weight nan", "--reconstruction-weight must be a finite number, not nan"),
        ("train digits --seed 99999999999", "--seed must be less than 4294967296, not 99999999999"),
        ("train digits --network mlp", "--network"),
        ("train digits --epochs 20 --steps 5", "--epochs 20 and --steps 5: set one of them"),
        ("train digits --epochs 1e3", "--epochs: {None}|INT, not '1e3'"),
        ("train digits --lr 100", "--lr must be less than or equal to 1, not 100.0"),
        (
            "train digits --primary-stride 99999999999999999999",
            "--primary-stride must be less than or equal to",
        ),
        ("train digits --warmup 0.1 --schedule exponential", "--warmup has no effect under --schedule exponential"),
        ("train mnist --lr-decay 0.5 --lr-min 0.1", "--lr-decay, --lr-min has no effect under --schedule one-cycle"),
        ("train mnist --network cnn --negative-slope 0.1", "--negative-slope has no effect under --network cnn"),
        (
            "train mnist --decoder none --reconstruction-weight 1",
            "--reconstruction-weight has no effect under --decoder none",
        ),
        (
            "train digits --resume --run ended --recipe digits",
            "--resume goes on by the run's own recipe: leave",
        ),
        ("train digits --data-dir data", "--data-dir has no effect for digits: only mnist and fashion_mnist"),
        ("train thesis --data-dir data", "--data-dir has no effect for thesis"),
        ("evaluate ended --data-dir data", "--data-dir has no effect for digits"),
        ("evaluate blind --masked-by label", "--masked-by label has no effect: the network of blind has no decoder"),
        ("drawings ended --data-dir data", "--data-dir has no effect for digits"),
        ("train ''", "an argument is empty"),
        ("train digits --run ''", "an argument is empty"),
        ("train digits --run=", "an argument is empty: give --run= a value"),
        ("train ~nosuchuser", "'~nosuchuser' cannot be used as a path"),
        ("train digits --run ~nosuchuser/run", "'~nosuchuser/run' cannot be used as a path"),
        (f"train digits --run {300 * 'x'}", "cannot be used as a path: File name too long"),
        (f"train {300 * 'x'}", "cannot be used as a path: File name too long"),
        (f"train {252 * 'x'} --resume", "is no run folder"),
        ("train digits --run nul\0nul", "'nul\\x00nul' cannot be used as a path: embedded null byte"),
        (f"figures {300 * 'x'}", "cannot be used as a path"),
        (f"affine ended --beside {300 * 'x'}", "cannot be used as a path"),
        (f"predict ended {300 * 'x'}.png", "cannot be used as a path"),
        (f"figures ended --other {300 * 'x'}", "cannot be used as a path"),
        (f"bench --folder {300 * 'x'}", "cannot be used as a path"),
        (f"import-weights 0.png {300 * 'x'}", "cannot be used as a path"),
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
        ("train digits --resume --run ended --lr 0.5", "ended was trained otherwise (rate)"),
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
        ("--save-every 1 digits", "digits"),
    ],
)
def test_the_recipe_is_the_one_named_or_else_that_of_the_data(line, recipe):
    asked = parse(["train", *shlex.split(line)])
    epochs = 3 if "--epochs" in line else RECIPES[recipe]().epochs
    assert (asked.recipe, asked.settings) == (recipe, replace(RECIPES[recipe](), epochs=epochs))


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("mnist", (None, 2000)),
        ("mnist --epochs 20", (20, None)),
        ("mnist --epochs=20", (20, None)),
        ("mnist --steps 9", (None, 9)),
        ("digits --steps 9", (None, 9)),
        ("mnist --recipe official --epochs 3", (3, None)),
        ("digits --run ended --resume", (1, None)),
        ("digits --run ended --resume --steps 99", (None, 99)),
        ("digits --run blind --resume --epochs 2", (2, None)),
    ],
)
def test_epochs_or_steps_of_the_command_line_take_the_place_of_the_recipe_s(here, line, ends):
    settings = parse(["train", *shlex.split(line)]).settings
    assert (settings.epochs, settings.steps) == ends


@pytest.mark.parametrize("line", ["--conv_channels 8 digits", "--no-prior digits", "--data_dir digits mnist"])
def test_a_flag_in_any_spelling_is_not_taken_for_the_data(line):
    assert parse(["train", *shlex.split(line)]).recipe == ("fast" if "mnist" in line else "digits")


def test_a_tilde_in_a_path_is_the_home_folder():
    asked = parse(["affine", "~/run", "--beside", "~/a", "~/b"])
    assert (asked.run, asked.beside) == (Path.home() / "run", (Path.home() / "a", Path.home() / "b"))


ODD = (
    *("", "-1", "0", "1", "99999999999999999999", "9" * 5000, "1.5", "1e400", "nan", "-inf", "None", "True", "x" * 300),
    *(
        "é",
        "\U0001f600",
        "a\0b",
        "\udcff",
        "\ud800",
        "~",
        "~nosuchuser",
        "/",
        ".",
        "..",
        "-",
        "--",
        "--help=1",
        "[red]",
    ),
    *("a\nb", "mnist", "digits", "exponential", "one-cycle", "none", "small-cnn", "last", "{}", "%s", "a b"),
)


@pytest.mark.parametrize("seed", range(4))
def test_no_command_line_ends_in_anything_but_a_verb_a_help_or_one_line(here, seed):
    draw = random.Random(seed)
    for _ in range(75):
        name = draw.choice(["train"] * 6 + [*VERBS])
        flags = [field.name for field in fields(find_verb(name))] + [field.name for field in fields(Recipe)]
        line = [name, draw.choice(["digits", "ended", draw.choice(ODD)])]
        for _ in range(draw.randrange(4)):
            line += [
                draw.choice(["--{}", "--{}", "--no-{}"]).format(draw.choice(flags).replace("_", draw.choice("-_")))
            ]
            line += [draw.choice(ODD)] * draw.choice([0, 1, 1, 1, 2])
        refusal = answer_to(line)
        assert "\n" not in refusal, line
        assert len(refusal) < 1000, line


def answer_to(line):
    """What a command line is refused with, when its settings are read and its network is built without memory."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            verb = parse(line)
        if line[0] == "train" and not verb.resume:
            verb.settings.check_effects()
            with torch.device("meta"):
                build_network(verb.settings, (1, 28, 28), 10)
    except InputError as error:
        return str(error)
    except SystemExit as stop:
        return f"a status of {stop.code}\n" if stop.code else ""
    return ""


OFFLINE = """
import socket, sys

def refuse(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        raise SystemExit(f"{sys.argv} asks {address}")
    return connect(self, address)

connect, socket.socket.connect, socket.socket.connect_ex = socket.socket.connect, refuse, refuse
socket.getaddrinfo = lambda *address, **_: sys.exit(f"{sys.argv} looks up {address}")
from capsnet.cli import main
for line in LINES:
    sys.argv = ["capsnet", *line.split()]
    main()
"""


def test_no_command_touches_the_network_unasked(place, tmp_path):
    lines = [f"train digits --run run --steps 2 {shlex.join(SMALL)}", "evaluate run", f"predict run {place / '0.png'}"]
    lines += ["figures run --only confusion", "drawings run"]
    program = OFFLINE.replace("LINES", repr(lines))
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "figures" / "drawings.png").is_file()


@pytest.mark.parametrize("name", [f"photos_single_{'long' * 50}.png", "[bold]x[red].png", "a\nb :smile:.png"])
def test_a_table_in_a_pipe_cuts_no_name(here, tmp_path, name):
    shutil.copy("0.png", tmp_path / name)
    line = ["predict", "ended", str(tmp_path / name), "0.png", "0.png"]
    result = subprocess.run([*COMMAND, *line], capture_output=True, text=True, env=os.environ | {"COLUMNS": "40"})
    assert result.returncode == 0, result.stderr
    rows = [row for row in result.stdout.splitlines() if ".png" in row]
    assert len(rows) == 3
    assert str(tmp_path / name).replace("\n", "\\n") in rows[0]
    assert len({len(row) for row in rows}) == 1


def test_a_terminal_breaks_a_long_name_to_lines_and_cuts_nothing(here, tmp_path):
    path = tmp_path / f"{'long' * 50}.png"
    shutil.copy("0.png", path)
    line = shlex.join([*COMMAND, "predict", "ended", str(path)])
    result = subprocess.run(["script", "-qec", f"stty cols 100; {line}", "/dev/null"], capture_output=True, text=True)
    assert "…" not in result.stdout
    first_cells = [row.split("│")[1].strip() for row in result.stdout.splitlines() if row.count("│") == 7]
    assert "".join(first_cells) == str(path)


def test_the_table_of_an_evaluation_in_a_pipe_cuts_no_class():
    classes = ("a class of " + "many " * 60 + "words", "[red]")
    with redirect_stdout(StringIO()) as out:
        print_evaluation(Evaluation(3, 1, [[1, 1], [0, 1]], None, "prediction"), classes)
    first, second = (row for row in out.getvalue().splitlines() if "%" in row and "│" in row)
    assert classes[0] in first
    assert "[red] (1)" in first
    assert classes[1] in second


def test_a_reader_that_goes_away_ends_a_command_without_a_traceback(here):
    line = shlex.join([*COMMAND, "evaluate", "ended", "--json"])
    result = subprocess.run(["bash", "-c", f"{line} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert result.stderr == ""
