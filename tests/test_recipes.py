"""A recipe's fields are the network's options and the training's settings; each named recipe is as documented."""

import inspect
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import get_args, get_type_hints

import pytest
from typing_extensions import Doc

from capsnet import build
from capsnet.build import build_network
from capsnet.cli.train import make_request
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.recipes import OLD_NAMES, RECIPES, Digits, Fast, Recipe, find_recipe, name_of, recorded_recipe
from capsnet.runs import load_run, start_run
from capsnet.training import train
from tests.commands import parsed
from tests.training import few_digits

OPTIONS = {
    name: option.default
    for name, option in inspect.signature(CapsNet).parameters.items()
    if name not in ("image_shape", "classes")
}


def another(name):
    """A value that a field may have and by default has not."""
    value, allowed = getattr(Recipe(), name), get_args(get_type_hints(Recipe)[name])
    if isinstance(value, str):
        return next(choice for choice in allowed if choice != value)
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_of_the_network_is_a_field_of_the_same_name_and_reaches_it(name, monkeypatch):
    given = {}
    monkeypatch.setattr(build, "CapsNet", lambda shape, classes, **options: given.update(options))
    build_network(replace(Recipe(), **{name: another(name)}), (1, 28, 28), 10)
    assert given == OPTIONS | {name: another(name)}


def test_every_field_says_what_it_is():
    for name, hint in get_type_hints(Recipe, include_extras=True).items():
        if name != "length":
            (doc,) = [about for about in hint.__metadata__ if isinstance(about, Doc)]
            assert doc.documentation.endswith("."), name


# FACTS of the paper and of the codes that the recipes are named after; what is not listed is the paper's.
PROMISED = {
    "paper": {},
    "official": {
        "primary_scale": 1 / 32,
        "bias": True,
        "initialisation": "official",
        "reconstruction_weight": 20 * 0.0005,
        "epochs": None,
        "steps": 300_000,
    },
    "chainer": {
        "shared": True,
        "decoder": "none",
        "batch_size": 256,
        "epochs": 500,
        "lr_decay": 0.95,
        "lr_decay_steps": None,
        "lr_min": 1e-5,
    },
    "tensorflow": {
        "batch_size": 100,
        "epochs": None,
        "steps": 10_000,
        "lr_decay": 0.7,
        "lr_decay_steps": 1000,
        "shift": 0,
    },
    "pytorch": {"iterations": 4, "prior": True, "epochs": 250, "reconstruction_weight": 0.0005 * 10 / 784},
    "notebook": {"batch_size": 20, "epochs": 3, "lr_decay": 1.0, "shift": 0},
}


@pytest.mark.parametrize("name", PROMISED)
def test_a_named_recipe_differs_from_the_paper_where_it_should_and_nowhere_else(name):
    recipe, paper = RECIPES[name](), Recipe()
    changed = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    assert {k: value for k, value in changed.items() if value != getattr(paper, k)} == PROMISED[name]


def test_the_defaults_are_the_paper():
    paper = Recipe()
    assert (paper.conv_channels, paper.conv_kernel, paper.negative_slope) == (256, 9, 0)
    assert (paper.primary_types, paper.primary_dim, paper.primary_kernel, paper.primary_stride) == (32, 8, 9, 2)
    assert (paper.capsule_dim, paper.iterations, paper.gradient, paper.decoder) == (16, 3, "all", "dense")
    assert (paper.margin_present, paper.margin_absent, paper.margin_down_weight) == (0.9, 0.1, 0.5)
    assert (paper.reconstruction_weight, paper.shift, paper.batch_size) == (0.0005, 2, 128)
    assert (paper.lr, paper.lr_decay, paper.lr_decay_steps, paper.lr_min) == (1e-3, 0.96, 2000, 1e-6)


def test_the_fast_recipe_trains_the_papers_network():
    assert {name: getattr(RECIPES["fast"](), name) for name in OPTIONS} == OPTIONS | {"gradient": "last"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_docstring_gives_a_command_that_trains_by_it(name):
    command = re.search(r"^ *capsnet (train \w+ --recipe \w+)", RECIPES[name].__doc__, re.MULTILINE)[1]
    assert make_request(parsed(command)).recipe == RECIPES[name]()


@pytest.mark.parametrize(("name", "variant"), [("chainer", {"negative_slope": 0.05}), ("tensorflow", {"prior": True})])
def test_a_variant_in_a_docstring_is_a_flag(name, variant):
    flag = re.search(r"\(with (--.+?):", RECIPES[name].__doc__)[1]
    assert make_request(parsed(f"train mnist --recipe {name} {flag}")).recipe == RECIPES[name](**variant)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("iterations", "conv_channels", "conv_kernel", "primary_types", "primary_dim")),
        *((name, 0) for name in ("primary_kernel", "primary_stride", "capsule_dim", "image_size", "lr_decay_steps")),
        *((name, 0) for name in ("epochs", "steps", "batch_size", "lr", "lr_decay")),
        *((name, -1) for name in ("validation", "shift", "reconstruction_weight", "lr_min", "seed", "lr", "ema_decay")),
        *((name, 1.0) for name in ("warmup", "ema_decay")),
        ("warmup", -0.1),
        *(
            (name, float("nan"))
            for name in ("lr", "negative_slope", "primary_scale", "reconstruction_weight", "warmup", "ema_decay")
        ),
        *((name, float("inf")) for name in ("epochs", "lr", "lr_min", "primary_scale")),
        *((name, 10**20) for name in ("iterations", "primary_stride", "epochs", "batch_size", "seed", "shift", "lr")),
        *((name, "3") for name in ("batch_size", "epochs", "lr", "shared", "network", "validation")),
        *((name, True) for name in ("batch_size", "seed", "lr")),
        *((name, 1.5) for name in ("seed", "steps", "shared", "decoder")),
        *((name, None) for name in ("batch_size", "lr", "network")),
        ("lr", 100),
        ("compile", "yes"),
        ("iterations", 101),
    ],
)
def test_an_impossible_value_is_refused_in_one_line_that_names_its_flag(field, value):
    with pytest.raises(InputError) as refusal:
        Recipe(**{field: value})
    flag = f"--{field.replace('_', '-')}"
    assert re.fullmatch(rf"{flag} must be .+, not {re.escape(repr(value))}", str(refusal.value))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="no recipe 'papre': choose one of paper, official, fast, digits, chainer"):
        find_recipe("papre")


def test_the_bounds_of_a_field_hold_for_a_subclass_that_declares_it_anew():
    @dataclass(frozen=True)
    class Mine(Recipe):
        lr: float = 0.01

    with pytest.raises(InputError, match="--lr must be less than or equal to 1, not 100"):
        Mine(lr=100)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("paper", 50 * 430), ("official", 300_000), ("fast", 2000), ("digits", 40 * 430), ("chainer", 500 * 430)),
        *(("tensorflow", 10_000), ("pytorch", 250 * 430), ("notebook", 3 * 430)),
    ],
)
def test_a_named_recipe_trains_for_as_long_as_published(name, steps):
    assert RECIPES[name]().total_steps(430) == steps  # an epoch of MNIST at batch 128


@pytest.mark.parametrize("name", RECIPES)
def test_epochs_or_steps_that_are_given_take_the_place_of_the_recipe_s_own_length(name):
    assert RECIPES[name](epochs=20).total_steps(430) == 20 * 430
    assert RECIPES[name](steps=20).total_steps(430) == 20


@pytest.mark.parametrize("make", [lambda: Fast(epochs=20, steps=2000), lambda: replace(Fast(), epochs=20)])
def test_epochs_and_steps_together_are_refused_with_both_values(make):
    with pytest.raises(InputError, match=r"--epochs 20 and --steps 2000: set one of them, and the other to None"):
        make()


IDLE = {
    "--lr-decay, --lr-decay-steps, --lr-min has no effect under --schedule one-cycle": Fast(
        lr_decay=0.9, lr_decay_steps=7, lr_min=0.1
    ),
    "--warmup has no effect under --schedule exponential": Recipe(warmup=0.1),
    "--lr-decay-steps has no effect under --lr-decay 1.0": RECIPES["notebook"](lr_decay_steps=7),
    "--reconstruction-weight has no effect under --decoder none": Recipe(decoder="none", reconstruction_weight=1),
    "--iterations, --negative-slope, --decoder has no effect under --network cnn": Recipe(
        network="cnn", iterations=2, negative_slope=0.1, decoder="conv"
    ),
    "--none-of-the-above, --margin-absent, --reconstruction-weight has no effect under --network small-cnn": Fast(
        network="small-cnn", none_of_the_above=True, reconstruction_weight=0.1, margin_absent=0.2
    ),
}


@pytest.mark.parametrize("words", IDLE)
def test_a_changed_field_without_effect_is_named_and_no_run_starts(words, tmp_path):
    with pytest.raises(InputError, match=rf"^{re.escape(words)}: leave it out$"):
        IDLE[words].check_effects()
    with pytest.raises(InputError, match=re.escape(words)):
        start_run(tmp_path / "run", IDLE[words], few_digits())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    "change",
    [
        *({}, {"network": "small-cnn"}, {"network": "cnn"}, {"decoder": "none"}),
        *({"schedule": "one-cycle"}, {"schedule": "exponential"}),
    ],
    ids=str,
)
def test_what_a_recipe_itself_sets_is_no_mistake_under_another_flag(name, change):
    replace(RECIPES[name](), **change).check_effects()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_a_capsule_network_is_refused_for_a_baseline(name):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} has no effect under --network cnn"):
        replace(Recipe(network="cnn"), **{name: another(name)}).check_effects()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_recipe_comes_back(name):
    recipe = RECIPES[name](seed=7)
    assert name_of(recipe) == name
    assert recorded_recipe(name, json.loads(json.dumps(asdict(recipe)))) == recipe


def test_a_recipe_of_the_user_s_is_recorded_by_its_class_and_comes_back_with_the_fields_of_a_recipe(tmp_path):
    @dataclass(frozen=True)
    class Mine(Digits):
        conv_channels: int = 5
        network: str = "small-cnn"
        remark: str = "mine"

    run = start_run(tmp_path / "run", Mine(seed=7, epochs=1), few_digits())
    train(run, few_digits())
    assert run.recipe_name == f"{__name__}.{Mine.__qualname__}"
    again = load_run(run.folder)
    assert again.recipe_name == run.recipe_name
    assert again == load_run(run.folder)
    assert {f.name: getattr(again.recipe, f.name) for f in fields(Recipe)} == {
        f.name: getattr(run.recipe, f.name) for f in fields(Recipe)
    }


def test_a_recipe_that_was_recorded_with_the_old_names_of_its_fields_is_read():
    names = {new: old for old, new in OLD_NAMES.items()}
    recipe = replace(RECIPES["tensorflow"](), lr=2e-3, negative_slope=0.05, none_of_the_above=True, ema_decay=0.9)
    recorded = {names.get(name, name): value for name, value in asdict(recipe).items() if "margin" not in name}
    assert {"rate", "batch", "averaging", "slope", "reconstruction", "decay", "rate_floor", "leaky"} <= recorded.keys()
    assert recorded_recipe("tensorflow", json.loads(json.dumps(recorded))) == recipe


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("papre", {}, "no recipe 'papre'"),
        ("fast", {"wings": 2}, "recipe fast has no field 'wings'"),
        ("fast", {"batch_size": "32"}, "--batch-size must be a valid integer, not '32'"),
        ("fast", {"epochs": "many"}, "--epochs must be a valid integer, not 'many'"),
        ("fast", {"epochs": 5, "steps": 2000}, "--epochs 5 and --steps 2000: set one of them"),
        ("mine.Mine", {"batch_size": 0}, "--batch-size must be greater than or equal to 1, not 0"),
    ],
)
def test_a_damaged_record_of_a_recipe_is_refused(name, values, words):
    with pytest.raises(InputError, match=re.escape(words)):
        recorded_recipe(name, values)
