"""A subject of analysis: a function from a trained network and its data to figures, with its caption and options."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import click

from capsnet.baselines import ConvBaseline
from capsnet.data import Data, ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import Predictions, predict_set
from capsnet.models import CapsNet
from capsnet.runs import Run

Network = CapsNet | ConvBaseline
Need = Literal["network", "capsules", "decoder", "validation", "foolbox"]


@dataclass(frozen=True)
class Context:
    """What an analysis is made from: a run, its network and its data."""

    run: Run
    network: Any  # a Network; each subject says which in `needs`
    data: Data
    compare: dict[str, Network] = field(default_factory=dict)
    """Networks to compare with, trained on the same data, by the names of their run folders."""
    ood: Data | None = None
    """Out-of-distribution data, of images of the same shape."""

    @property
    def networks(self) -> dict[str, Network]:
        """The run's network and those to compare with, by name."""
        return {self.run.folder.resolve().name: self.network} | self.compare

    @property
    def on_test(self) -> tuple[Any, ImageSet, tuple[str, ...]]:
        """What most figures are made from: the network, the test images and the names of the classes."""
        return self.network, self.data.test, self.data.classes

    @property
    def folder(self) -> Path:
        """The folder that figures are written to."""
        return self.run.folder / "figures"

    @cached_property
    def predictions(self) -> Predictions:
        """The network's predictions of the test images."""
        return predict_set(self.network, self.data.test)


@dataclass(frozen=True)
class Subject:
    """A figure, or several of one kind, and the measurement behind it."""

    function: Callable[..., Iterable[Path]]
    """Takes a Context and the values of `options`; writes figures and yields their paths."""
    captions: dict[str, str]
    """A figure's file name, or a pattern with * for several figures → their caption, in the order of the report."""
    needs: tuple[Need, ...]
    options: list[click.Parameter]
    """The options of its command, each with the default that the report takes."""

    def __call__(self, context: Context, **options: Any) -> list[Path]:
        """Make the figures.

        Raises InputError if the context lacks what the subject needs.
        """
        self.check(context)
        return list(self.function(context, **options))

    def check(self, context: Context) -> None:
        """Raise InputError if the context lacks what the subject needs."""
        if missing := self.missing(context):
            raise InputError(f"{self.function.__name__} cannot be made: {missing}")

    def missing(self, context: Context) -> str:
        """Why the subject cannot be made from a context; empty if it can."""
        if {"capsules", "decoder"} & {*self.needs} and not isinstance(context.network, CapsNet):
            return "the network is a baseline without capsules"
        if "decoder" in self.needs and context.network.decoder is None:
            return "the network has no decoder: train one with --decoder dense"
        if "validation" in self.needs and not len(context.data.validation):
            return "there are no validation images to set a threshold on: train with --validation above 0"
        if "foolbox" in self.needs and find_spec("foolbox") is None:
            return "foolbox, which makes the attacks, is not installed: pip install foolbox"
        return ""


def subject(
    captions: dict[str, str], needs: Need | tuple[Need, ...] = "network"
) -> Callable[[Callable[..., Iterable[Path]]], Subject]:
    """Make a Subject of a function, which click's option decorators may have been applied to.

    `needs` says what it needs besides a network: capsules, a decoder, validation images or the library foolbox. If one
    of them is missing, the subject raises an InputError that names it.
    """

    def make(function: Callable[..., Iterable[Path]]) -> Subject:
        options = list(reversed(getattr(function, "__click_params__", [])))
        return Subject(function, captions, needs if isinstance(needs, tuple) else (needs,), options)

    return make


compare_option = click.option("--compare", multiple=True, metavar="RUN", help="A run to compare with; repeatable.")
ood_option = click.option("--ood", metavar="DATA", help="Out-of-distribution data, for example fashion_mnist.")
