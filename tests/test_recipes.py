"""A recipe's fields are the network's options and the training's settings; each name stands for what it promises."""

import inspect
import re
import shlex
from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest

from capsnet import build
from capsnet.build import build_network
from capsnet.cli import parse
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.recipe import Recipe
from capsnet.recipes import RECIPES, find_recipe

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
    source = inspect.getsource(Recipe)
    for field in fields(Recipe):
        assert re.search(rf'    {field.name}: .+\n    """[A-Z].+\."""', source), field.name


# FACTS of the paper and of the codes that the recipes are named after; what is not listed is the paper's.
PROMISED = {
    "paper": {},
    "official": {
        "primary_scale": 1 / 32,
        "bias": True,
        "initialisation": "official",
        "reconstruction": 20 * 0.0005,
        "epochs": 1000,
        "steps": 300_000,
    },
    "chainer": {
        "shared": True,
        "decoder": "none",
        "batch": 256,
        "epochs": 500,
        "decay": 0.95,
        "decay_steps": None,
        "rate_floor": 1e-5,
    },
    "tensorflow": {"batch": 100, "steps": 10_000, "decay": 0.7, "decay_steps": 1000, "shift": 0},
    "pytorch": {"prior": True, "epochs": 250},
    "notebook": {"batch": 20, "epochs": 3, "decay": 1.0, "shift": 0},
}


@pytest.mark.parametrize("name", PROMISED)
def test_a_named_recipe_differs_from_the_paper_where_it_should_and_nowhere_else(name):
    recipe, paper = RECIPES[name](), Recipe()
    changed = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    assert {k: value for k, value in changed.items() if value != getattr(paper, k)} == PROMISED[name]


def test_the_defaults_are_the_paper():
    paper = Recipe()
    assert (paper.conv_channels, paper.conv_kernel, paper.slope) == (256, 9, 0)
    assert (paper.primary_types, paper.primary_dim, paper.primary_kernel, paper.primary_stride) == (32, 8, 9, 2)
    assert (paper.capsule_dim, paper.iterations, paper.gradient, paper.decoder) == (16, 3, "all", "dense")
    assert (paper.reconstruction, paper.shift, paper.batch) == (0.0005, 2, 128)
    assert (paper.rate, paper.decay, paper.decay_steps, paper.rate_floor) == (1e-3, 0.96, 2000, 1e-6)


def test_the_fast_recipe_trains_the_papers_network():
    assert {name: getattr(RECIPES["fast"](), name) for name in OPTIONS} == OPTIONS | {"gradient": "last"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_docstring_gives_a_command_that_trains_by_it(name):
    command = re.search(r"^ *capsnet (train \w+ --recipe \w+)", RECIPES[name].__doc__, re.MULTILINE)[1]
    asked = parse(shlex.split(command))
    assert (asked.recipe, asked.settings) == (name, RECIPES[name]())


@pytest.mark.parametrize(("name", "variant"), [("chainer", {"slope": 0.05}), ("tensorflow", {"prior": True})])
def test_a_variant_in_a_docstring_is_a_flag(name, variant):
    flag = re.search(r"\(with (--.+?):", RECIPES[name].__doc__)[1]
    asked = parse(["train", "mnist", "--recipe", name, *flag.split()])
    assert asked.settings == RECIPES[name](**variant)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("iterations", "conv_channels", "conv_kernel", "primary_types", "primary_dim")),
        *((name, 0) for name in ("primary_kernel", "primary_stride", "capsule_dim", "image_size", "decay_steps")),
        *((name, 0) for name in ("epochs", "steps", "batch", "rate", "decay")),
        *((name, -1) for name in ("validation", "shift", "reconstruction", "rate_floor", "seed", "rate", "averaging")),
        *((name, 1.0) for name in ("warmup", "averaging")),
        ("warmup", -0.1),
        ("rate", float("nan")),
    ],
)
def test_an_impossible_value_is_refused_in_one_line_that_names_its_flag(field, value):
    with pytest.raises(InputError) as refusal:
        Recipe(**{field: value})
    flag = f"--{field.replace('_', '-')}"
    assert re.fullmatch(rf"{flag} must be (at least|above) .+, not {value}", str(refusal.value))


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="no recipe 'papre': choose one of paper, official, fast, digits, chainer"):
        find_recipe("papre")
