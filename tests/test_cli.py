"""The command line, from training to figures; a user's mistake is one line on stderr and exit status 2."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from capsnet import hardware
from capsnet.analysis import subject
from capsnet.analysis.subject import Context, compare_option, ood_option
from capsnet.build import build_network
from capsnet.cli import COMMANDS, analysis, commands, execute, explanation
from capsnet.cli.run import print_evaluation
from capsnet.cli.train import check_request, make_request
from capsnet.data import sources
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation
from capsnet.hardware import default_device
from capsnet.recipes import OLD_NAMES, RECIPES, flag, name_of
from capsnet.runs import load_run
from tests.commands import COMMAND, SMALL, capsnet, files, parsed
from tests.training import few_digits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run that has ended, one that was begun, a folder of something else, and two image files."""
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


def test_training_prints_the_run_folder_and_the_accuracy_and_leaves_results_and_a_report(here):
    out = (here / "ended.txt").read_text()
    results = json.loads((here / "ended" / "results.json").read_text())
    assert out.startswith("run folder: ended\nrecipe digits, 1,294 training images of (1, 8, 8)\n")
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


def test_evaluating_says_whose_capsule_was_reconstructed(here):
    for masked_by in ("prediction", "label"):
        asked = ("evaluate", "ended", "--masked-by", masked_by)
        assert f"from the {masked_by}'s capsule" in capsnet(*asked).out
        assert json.loads(capsnet(*asked, "--json").out)["masked_by"] == masked_by


def test_predicting_gives_a_row_per_image_and_says_how_they_were_read(here):
    said = capsnet("predict", "ended", "0.png", "1.png")
    assert said.status == 0
    assert "0.png" in said.out
    assert "1.png" in said.out
    assert said.out.endswith("images were read as they are (--invert swaps light and dark)\n")
    assert capsnet("predict", "ended", "0.png", "--invert").out.endswith("light and dark were swapped\n")


def test_predicting_as_json_gives_an_object_per_image(here):
    first, second = json.loads(capsnet("predict", "ended", "0.png", "1.png", "--json").out)
    assert first.keys() == {"image", "predicted", "lengths", "reconstruction_error", "threshold", "suspicious"}
    assert first["suspicious"] == (first["reconstruction_error"] > first["threshold"])
    assert (first["image"], second["image"]) == ("0.png", "1.png")
    assert first["lengths"].keys() == set("0123456789")
    assert first["predicted"] == max(first["lengths"], key=first["lengths"].get)


def test_the_report_is_made_again(here):
    report = here / "ended" / "report.html"
    report.unlink()
    assert capsnet("report", "ended") == (0, "report: ended/report.html\n", "")
    assert report.is_file()


@pytest.mark.parametrize(
    ("line", "pictures"),
    [
        ("reconstructions ended --images 4 --columns 2", ["reconstructions.png"]),
        ("errors ended --images 4", ["errors.png"]),
        ("masks ended --per-class 1", ["masks.png"]),
        (
            "perturbations ended --class 3 --range 0.3 --step 0.075 --dimension 0 --dimension 5",
            ["perturbations-3.png", "perturbations-3.gif"],
        ),
        ("couplings ended --image 2", ["couplings.png"]),
        ("targeted ended", ["targeted.png", "targeted-images.png"]),
        ("detection ended --images 5 --ood digits", ["detection.png"]),
        ("affine ended --compare blind --images 9", ["affine.png", "affine-reconstructions.png"]),
        ("attacks ended --images 3 --epsilon 0.1 --epsilon 0.3", ["attacks.png", "attacks-masking.png"]),
        ("lengths blind", ["lengths.png"]),
        ("confusion blind", ["confusion.png"]),
        ("curves blind", ["curves.png"]),
    ],
)
def test_an_analysis_makes_its_figures_and_writes_their_numbers_as_json(here, line, pictures):
    folder = here / line.split()[1] / "figures"
    paths = [folder / picture for picture in pictures]
    for path in (*paths, paths[0].with_suffix(".json")):
        path.unlink(missing_ok=True)
    printed = "".join(f"{path.relative_to(here)}\n" for path in paths)
    assert capsnet(*shlex.split(line)) == (0, printed, "")
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == path.suffix[1:].upper()
    assert json.loads(paths[0].with_suffix(".json").read_text())


def test_an_analysis_command_has_the_options_of_its_subject_and_prints_what_it_yields(here, monkeypatch):
    seen = []

    @subject.subject({"counts-*.png": "Counts."})
    @click.option("--images", default=7, help="Number of images.")
    @compare_option
    @ood_option
    def counts(context: Context, images: int = 7):
        """Count the images."""
        seen.append((context, images))
        yield from (context.folder / f"counts-{k}.png" for k in range(2))

    monkeypatch.setattr(analysis, "find_subject", lambda name: counts)
    line = ("affine", "ended", "--compare", here / "blind", "--ood", "digits", "--images", 3)
    assert capsnet(*line) == (0, "ended/figures/counts-0.png\nended/figures/counts-1.png\n", "")
    [(context, images)] = seen
    assert (context.run.folder, images, context.ood.name) == (Path("ended"), 3, "digits")
    assert list(context.networks) == ["ended", "blind"]
    usage = capsnet("affine", "--help").out
    assert "Count the images." in usage
    assert re.search(r"--images INTEGER +Number of images\.  \[default: 7\]", usage)


def test_a_run_is_resumed_by_its_own_recipe_which_may_be_given_more_epochs(here):
    recipe = make_request(parsed("train digits --run ended --resume --epochs 7")).recipe
    assert recipe == replace(load_run("ended").recipe, epochs=7)
    assert recipe.conv_channels == 8


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "Missing command. Try `capsnet --help`."),
        (5000 * "9", "No such command '99999"),
        (f"train digits --recipe {5000 * '9'}", "no recipe '999999999999...9999999999999': choose one of paper"),
        ("trian", "No such command 'trian'. Did you mean 'train'?"),
        ("--wings", "No such option '--wings'"),
        ("evaluate ended --recipe paper", "--recipe"),
        ("train", "Missing argument 'DATA'"),
        ("train digits --wings 2", "No such option '--wings'"),
        ("train digits --epoch 2", "No such option '--epoch'. Did you mean '--epochs'?"),
        ("train digits --compile False", "unexpected extra argument (False)"),
        ("train digits --recipe papre", "no recipe 'papre': choose one of paper"),
        ("train digits --recipe", "Option '--recipe' requires an argument"),
        ("train digits --run", "Option '--run' requires an argument"),
        ("train digits --run --resume", "'--run': '--resume' is an option: give a value before it"),
        ("train digits --epochs many", "'--epochs': 'many' is not a valid integer"),
        ("train digits --epochs 0", "--epochs must be greater than or equal to 1, not 0"),
        ("train digits --lr nan", "--lr must be a finite number, not nan"),
        ("train digits --reconstruction-weight nan", "--reconstruction-weight must be a finite number, not nan"),
        ("train digits --seed 99999999999", "--seed must be less than 4294967296, not 99999999999"),
        ("train digits --network mlp", "'--network': 'mlp' is not one of 'capsnet', 'cnn', 'small-cnn'"),
        ("train digits --epochs 20 --steps 5", "--epochs 20 and --steps 5: set one of them"),
        ("train digits --epochs 1e3", "'--epochs': '1e3' is not a valid integer"),
        ("train digits --log-every 0", "'--log-every': 0 is not in the range x>=1"),
        ("train digits --save-every 0", "'--save-every': 0.0 is not in the range x>0"),
        ("train digits --device tpu", "'--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        ("train digits --margin-present 2", "--margin-present must be less than or equal to 1, not 2.0"),
        ("train mnist --network cnn --margin-absent 0.2", "--margin-absent has no effect under --network cnn"),
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
            "--resume continues with the run's own recipe: leave",
        ),
        ("train digits --data-dir data", "--data-dir has no effect for digits: only mnist and fashion_mnist"),
        ("train thesis --data-dir data", "--data-dir has no effect for thesis"),
        ("evaluate ended --data-dir data", "--data-dir has no effect for digits"),
        ("evaluate blind --masked-by label", "--masked-by label has no effect: the network of blind has no decoder"),
        ("reconstructions ended --data-dir data", "--data-dir has no effect for digits"),
        ("train digits --device cpu --cuda-graph", "--cuda-graph has no effect on a CPU: leave it out"),
        ("train digits --device cpu --no-cuda-graph", "--no-cuda-graph has no effect on a CPU: leave it out"),
        ("train digits --device cpu --images-on-device", "--images-on-device has no effect on a CPU: leave it out"),
        ("train digits --device cpu --no-images-on-device", "--no-images-on-device has no effect on a CPU: leave it"),
        ("train ''", "'DATA': '' cannot be used as a path: it is empty"),
        ("train digits --run ''", "'--run': '' cannot be used as a path: it is empty"),
        ("train digits --run=", "'--run': '' cannot be used as a path: it is empty"),
        ("train digits --recipe=", "no recipe '': choose one of paper"),
        ("train digits --epochs=", "'--epochs': '' is not a valid integer"),
        ("evaluate ended --data ''", "'--data': '' cannot be used as a path: it is empty"),
        ("train ~nosuchuser", "'~nosuchuser' cannot be used as a path"),
        ("train digits --run ~nosuchuser/run", "'~nosuchuser/run' cannot be used as a path"),
        (f"train digits --run {300 * 'x'}", "cannot be used as a path: File name too long"),
        (f"train {300 * 'x'}", "cannot be used as a path: File name too long"),
        (f"train {252 * 'x'} --resume", "is not a run folder"),
        ("train digits --run nul\0nul", "'nul\\x00nul' cannot be used as a path: embedded null byte"),
        (f"report {300 * 'x'}", "cannot be used as a path"),
        (f"affine ended --compare {300 * 'x'}", "cannot be used as a path"),
        (f"predict ended {300 * 'x'}.png", "cannot be used as a path"),
        (f"report ended --ood {300 * 'x'}", "cannot be used as a path"),
        (f"import-weights 0.png {300 * 'x'}", "cannot be used as a path"),
        ("train digits --validation 5000", "choose --validation from 0 to 1436"),
        ("train minst", "no data set 'minst'"),
        ("train mnist --data-dir data", "give their folder with --data-dir"),
        ("train digits --run ended", "ended exists: continue it with --resume, replace it with --overwrite"),
        ("train digits --run thesis", "thesis exists and is not a run folder"),
        ("train digits --run thesis --overwrite", "thesis exists and is not a run folder"),
        ("train digits --run 0.png/run", "0.png/run cannot be made: Not a directory"),
        ("train digits --recipe fast --run new", "an image of 8x8 is too small for kernels of 9 and 9"),
        ("train digits --resume --run nowhere", "nowhere is not a run folder"),
        ("train digits --resume", "runs/digits-digits is not a run folder"),
        ("train --epochs 3 digits --resume", "runs/digits-digits is not a run folder"),
        ("train digits --resume --run ended --lr 0.5", "ended was trained with other options (lr)"),
        ("evaluate", "Missing argument 'RUN'"),
        ("evaluate nowhere", "nowhere is not a run folder"),
        ("evaluate begun", "begun has no trained network yet"),
        ("evaluate ended --data minst", "no data set 'minst'"),
        ("evaluate ended --masked-by nobody", "--masked-by"),
        ("predict ended", "Missing argument 'IMAGE...'"),
        ("predict ended missing.png", "missing.png cannot be read as an image"),
        ("predict ended thesis/chapter.txt", "thesis/chapter.txt cannot be read as an image"),
        ("predict nowhere 0.png", "nowhere is not a run folder"),
        ("report nowhere", "nowhere is not a run folder"),
        ("report ended --only mask", "'--only': 'mask' is not one of 'reconstructions', 'errors', 'masks', "),
        ("report ended --only curves --compare blind", "--compare has no effect on curves: leave it out"),
        (
            "report ended --only curves --only affine --ood digits",
            "--ood has no effect on curves, affine: leave it out",
        ),
        ("report ended --only curves --ood nowhere", "--ood has no effect on curves: leave it out"),
        (
            "report blind --ood digits",
            "--ood has no effect on couplings, targeted, affine, lengths, confusion, curves: ",
        ),
        ("report blind --only masks", "masks cannot be made: the network has no decoder"),
        ("reconstructions blind", "cannot be made: the network has no decoder: train one with --decoder dense"),
        ("masks blind", "the network has no decoder"),
        ("perturbations blind", "the network has no decoder"),
        ("detection blind", "the network has no decoder"),
        ("reconstructions ended --images 0", "at least one image"),
        ("masks ended --per-class 0", "a mask matrix has 1 to 20 images of a class, not 0"),
        ("perturbations ended --class eleven", "no class 'eleven' in digits: its classes are 0, 1"),
        ("perturbations ended --dimension 16", "there is no dimension 16: this network's capsules have 0 to 15"),
        ("perturbations ended --step 0.1", "steps of 0.1 do not lead from 0 to 0.25"),
        ("perturbations ended --image 360", "there is no image 360: the set has images 0 to 359"),
        ("couplings ended --image 360", "360"),
        ("detection ended --ood mnist", "mnist"),
        ("affine ended --compare ended", "two runs are named ended"),
        ("affine ended --compare nowhere", "nowhere is not a run folder"),
        ("affine ended --images 0", "0"),
        ("attacks ended --epsilon 1.5", "1.5"),
        ("attacks ended --images 0", "an attack takes at least one image, not 0"),
        ("import-weights missing.pt new", "missing.pt"),
        ("import-weights 0.png new", "0.png"),
        ("report begun", "begun has no trained network yet"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_exit_status_2(here, line, words, monkeypatch):
    nobody = replace(sources.SOURCES["mnist"], mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(sources.SOURCES, "mnist", nobody)
    monkeypatch.setenv("no_proxy", "*")
    before = files(here)
    status, out, err = capsnet(*shlex.split(line))
    assert status == 2
    assert re.fullmatch(r"(run folder: \S+\n)?" if line.startswith("train") else "", out)
    assert re.fullmatch("capsnet: [^\n]+\n", err)
    assert words in err
    assert files(here) == before


@pytest.mark.parametrize("old", OLD_NAMES)
def test_the_old_name_of_a_recipe_s_option_is_answered_with_the_new_one(old):
    words = f"capsnet: {flag(old)} is now called {flag(OLD_NAMES[old])}\n"
    assert capsnet("train", "digits", flag(old), 1) == (2, "", words)
    assert capsnet("train", "digits", f"--{old}=1") == (2, "", words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("figures ended", "`figures` is now called `report`"),
        ("drawings ended", "`drawings` is now called `reconstructions`, and `errors` for misclassified images alone"),
        ("drawings ended --errors-only", "`drawings` is now called `reconstructions`, and `errors` for "),
        ("reconstructions ended --errors-only", "--errors-only is now a command: `capsnet errors RUN`"),
        ("tweaks ended --class 3", "`tweaks` is now called `perturbations`"),
        ("bench", "`bench` is no longer a command: run the programs in benchmarks/"),
        ("report ended --beside blind", "--beside is now called --compare"),
        ("report ended --other mnist", "--other is now called --ood"),
        ("affine ended --count 9", "--count is now called --images"),
        ("attacks ended --epsilons 0.1", "--epsilons is now called --epsilon"),
        ("perturbations ended --dimensions 3", "--dimensions is now called --dimension"),
        ("train digits --no-leaky", "--no-leaky is now called --none-of-the-above"),
        ("evaluate ended --rate 1", "No such option '--rate'."),
    ],
)
def test_old_commands_and_options_are_answered_with_the_new_ones(line, words):
    status, out, err = capsnet(*line.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"capsnet: {words}")
    assert err.count("\n") == 1


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
    ends = {"epochs": 3} if "--epochs" in line else {}
    assert make_request(parsed(f"train {line}")).recipe == RECIPES[recipe](**ends)


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
    recipe = make_request(parsed(f"train {line}")).recipe
    assert (recipe.epochs, recipe.steps) == ends


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("", {}),
        ("--lr 0.01 --prior", {"lr": 0.01, "prior": True}),
        ("--no-shared --shared", {"shared": True}),
        ("--compile", {"compile": True}),
        ("--no-compile", {"compile": False}),
        ("--lr-decay-steps epoch", {"lr_decay_steps": None}),
        ("--lr-decay-steps 7", {"lr_decay_steps": 7}),
        ("--schedule one_cycle", {"schedule": "one-cycle"}),
        ("--margin-present 0.8 --margin-down-weight 1", {"margin_present": 0.8, "margin_down_weight": 1.0}),
    ],
)
def test_an_option_changes_its_field_of_the_recipe_and_no_other(line, changed):
    assert make_request(parsed(f"train mnist --recipe paper {line}")).recipe == RECIPES["paper"](**changed)


@pytest.mark.parametrize("line", ["--conv_channels 8 digits", "--no-prior digits", "--data_dir digits mnist"])
def test_an_option_may_be_spelled_with_underscores(line):
    assert name_of(make_request(parsed(f"train {line}")).recipe) == ("fast" if "mnist" in line else "digits")


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("mnist", "mnist-fast"),
        ("mnist --epochs 3", "mnist-fast"),
        ("mnist --recipe paper --lr 0.001", "mnist-paper"),
        ("mnist --seed 1", "mnist-fast-seed1"),
        ("mnist --network small-cnn", "mnist-fast-small-cnn"),
        ("mnist --lr 0.001 --network cnn", "mnist-fast-cnn-lr0.001"),
        ("mnist --decoder none", "mnist-fast-decoder-none"),
        ("mnist --recipe pytorch --no-prior --shared", "mnist-pytorch-shared-no-prior"),
        ("mnist --recipe paper --lr-decay-steps epoch", "mnist-paper-lr-decay-steps-epoch"),
        ("some/photos.npz --batch-size 64", "photos-fast-batch-size64"),
        ("digits --seed 1 --resume --run other", None),
    ],
)
def test_a_run_without_a_name_is_called_after_its_data_its_recipe_and_what_differs_from_it(here, line, folder):
    if folder:
        assert make_request(parsed(f"train {line}")).folder == Path("runs") / folder
    else:
        with pytest.raises(InputError, match="other is not a run folder"):
            make_request(parsed(f"train {line}"))


def test_a_name_that_would_be_long_ends_in_a_hash_of_what_differs():
    line = "train mnist --conv-channels 8 --primary-types 2 --primary-dim 4 --capsule-dim 8"
    folders = {make_request(parsed(f"{line} --seed {seed}")).folder for seed in (1, 2, 1)}
    assert len(folders) == 2
    assert all(re.fullmatch("mnist-fast-[0-9a-f]{8}", folder.name) for folder in folders)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch):
    context = parsed("report ~/run --compare ~/a --compare ~/b")
    assert context.params["run"] == Path.home() / "run"
    assert context.params["compare"] == (Path.home() / "a", Path.home() / "b")
    assert make_request(parsed("train digits --run ~/run --data-dir ~/data")).folder == Path.home() / "run"


@pytest.mark.parametrize("line", ["train digits", "evaluate run", "predict run 0.png", "report run"])
def test_a_command_runs_on_the_device_that_is_asked_for(monkeypatch, line):
    seen = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("meta"))
    monkeypatch.setattr(click.Command, "invoke", lambda command, context: seen.append(default_device()))
    for device in ([], ["--device", "auto"], ["--device", "cpu"]):
        execute([*shlex.split(line), *device])
    assert [device.type for device in seen[1::2]] == ["meta", "meta", "cpu"]  # after the group's own
    assert default_device().type == "meta"


def test_a_gpu_that_is_not_there_is_refused(here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = "capsnet: --device cuda: PyTorch finds no GPU on this machine; leave --device out to run on the CPU\n"
    assert capsnet("evaluate", "ended", "--device", "cuda") == (2, "", words)


@pytest.mark.parametrize("option", ["--cuda-graph", "--no-cuda-graph"])
def test_an_option_of_cuda_graphs_is_refused_with_several_processes_on_gpus(monkeypatch, option):
    monkeypatch.setattr(hardware, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(hardware, "device_count", lambda: 2)
    for devices in (1, 2):
        context = parsed(f"train digits --devices {devices} {option} --images-on-device")
        with pytest.raises(InputError, match=f"^{option} has no effect with several") if devices > 1 else nullcontext():
            check_request(make_request(context), context)


def test_the_log_has_a_record_as_often_as_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert capsnet("train", "digits", "--run", "run", "--steps", 7, "--log-every", 3, *SMALL).status == 0
    assert [record["step"] for record in load_run("run").records("train")] == [3, 6, 7]


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
def test_no_command_line_ends_in_anything_but_a_command_a_help_or_one_line(here, seed):
    draw = random.Random(seed)
    for _ in range(75):
        name = draw.choice(["train"] * 6 + [*COMMANDS])
        flags = [option for param in parsed_options(name) for option in (*param.opts, *param.secondary_opts)]
        line = [name, draw.choice(["digits", "ended", draw.choice(ODD)])]
        for _ in range(draw.randrange(4)):
            option = draw.choice(flags)
            line += [draw.choice([option, option.replace("--", "--no-"), "--" + option[2:].replace("-", "_")])]
            line += [draw.choice(ODD)] * draw.choice([0, 1, 1, 1, 2])
        refusal = answer_to(line)
        assert "\n" not in refusal, line
        assert len(refusal) < 1000, line


def parsed_options(name):
    """The options of a command."""
    context = click.Context(commands)
    return [param for param in commands.get_command(context, name).params if isinstance(param, click.Option)]


def answer_to(line):
    """What a command line is refused with, when its settings are read and its network is built without memory."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            context = parsed(line)
            if line[0] == "train" and not context.params["resume"]:
                recipe = make_request(context).recipe
                recipe.check_effects()
                with torch.device("meta"):
                    build_network(recipe, (1, 28, 28), 10)
    except InputError as error:
        return str(error)
    except click.UsageError as error:
        return explanation(error)
    except click.exceptions.Exit as stop:
        return f"a status of {stop.exit_code}\n" if stop.exit_code else ""
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
    lines += ["report run --only confusion", "reconstructions run"]
    program = OFFLINE.replace("LINES", repr(lines))
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "figures" / "reconstructions.png").is_file()


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
