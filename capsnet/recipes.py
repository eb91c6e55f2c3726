"""Recipes: every choice of a training run as one frozen dataclass, and a sub-class for each named way to train."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, with_config
from typing_extensions import Doc

from capsnet.checks import STRICT, Decoder, Initialisation, Iterations, Scale, Size, Slope, check_arguments
from capsnet.errors import InputError
from capsnet.ops import Gradient

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Pixels = Annotated[int, Field(ge=0, le=1024)]
Images = Annotated[int, Field(ge=0, le=10**9)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Length = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=10**6)]


@with_config(STRICT)
@dataclass(frozen=True)
class Recipe:
    """Every choice of a training run; each field is an option of `capsnet train`.

    A training ends after `epochs` or after `steps`: exactly one of them is set. If neither is given, the class's
    `length` applies.

    Raises InputError, naming the option and the value, for a value of a wrong type or out of bounds, and for both
    epochs and steps.
    """

    length: ClassVar[dict[str, int]] = {"epochs": 50}

    # the network
    network: Annotated[
        Literal["capsnet", "cnn", "small-cnn"],
        Doc("A CapsNet, the paper's convolutional baseline, or a smaller baseline with about the cost of a CapsNet."),
    ] = "capsnet"
    iterations: Annotated[Iterations, Doc("Routing iterations: the number of weighted sums.")] = 3
    gradient: Annotated[
        Gradient, Doc("Backpropagate through all routing iterations, or only through the last one.")
    ] = "all"
    conv_channels: Annotated[Size, Doc("Channels of conv1.")] = 256
    conv_kernel: Annotated[Size, Doc("Kernel size of conv1, in pixels.")] = 9
    negative_slope: Annotated[Slope, Doc("Negative slope of conv1's leaky ReLU; 0 is the paper's ReLU.")] = 0.0
    primary_types: Annotated[Size, Doc("Types of primary capsules.")] = 32
    primary_dim: Annotated[Size, Doc("Dimensions of a primary capsule.")] = 8
    primary_kernel: Annotated[Size, Doc("Kernel size of the primary capsules.")] = 9
    primary_stride: Annotated[Size, Doc("Stride of the primary capsules.")] = 2
    primary_scale: Annotated[Scale, Doc("Factor of the primary capsules before the squash.")] = 1.0
    capsule_dim: Annotated[Size, Doc("Dimensions of a class capsule.")] = 16
    shared: Annotated[bool, Doc("Share the matrices of a capsule type over all places of the grid.")] = False
    prior: Annotated[bool, Doc("Learn the initial routing logits.")] = False
    bias: Annotated[bool, Doc("Add a learned bias to the weighted sum in every iteration.")] = False
    none_of_the_above: Annotated[bool, Doc("Add a none-of-the-above logit to the softmax of the couplings.")] = False
    initialisation: Annotated[
        Initialisation, Doc("PyTorch's defaults, or the truncated normals of the authors' code.")
    ] = "torch"
    decoder: Annotated[
        Decoder,
        Doc("The paper's decoder, transposed convolutions, or no decoder and no reconstruction loss."),
    ] = "dense"

    # the losses
    margin_present: Annotated[Length, Doc("Margin loss: the true class's capsule should be longer than this.")] = 0.9
    margin_absent: Annotated[Length, Doc("Margin loss: the other capsules should be shorter than this.")] = 0.1
    margin_down_weight: Annotated[Weight, Doc("Margin loss: weight of the other capsules.")] = 0.5
    reconstruction_weight: Annotated[
        Weight, Doc("Weight of the reconstruction loss; the margin loss has weight 1.")
    ] = 0.0005

    # the data
    validation: Annotated[
        Images | None,
        Doc("Training images kept for validation; by default 5000 of MNIST and Fashion-MNIST, a tenth of other data."),
    ] = None
    image_size: Annotated[Size | None, Doc("Resize all images to squares of this side, in pixels.")] = None
    shift: Annotated[Pixels, Doc("Largest random shift of a training image, in pixels each way.")] = 2

    # the optimisation
    epochs: Annotated[Count | None, Doc("Train for this many epochs. Replaces the recipe's steps.")] = None
    steps: Annotated[Count | None, Doc("Train for this many steps (batches). Replaces the recipe's epochs.")] = None
    batch_size: Annotated[Size, Doc("Images in a step.")] = 128
    lr: Annotated[Rate, Doc("Adam's learning rate: the initial one, or the peak of one-cycle.")] = 1e-3
    schedule: Annotated[
        Literal["exponential", "one-cycle"],
        Doc("Learning rate that decays exponentially, or that rises to its peak and falls to zero along cosines."),
    ] = "exponential"
    warmup: Annotated[Fraction, Doc("Fraction of the steps in which one-cycle rises.")] = 0.2
    lr_decay: Annotated[Rate, Doc("Factor of the exponential schedule.")] = 0.96
    lr_decay_steps: Annotated[
        Count | None, Doc("Steps in which the exponential schedule decays by its factor; `epoch`: those of one epoch.")
    ] = 2000
    lr_min: Annotated[Length, Doc("Lowest learning rate of the exponential schedule.")] = 1e-6
    ema_decay: Annotated[
        Fraction, Doc("Decay of the moving average of the weights, which is then evaluated and kept; 0: no average.")
    ] = 0.0
    seed: Annotated[Seed, Doc("Seed of the split, the initial weights, the order of the images and shifts.")] = 0
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed"], Doc("auto: bf16 if the hardware supports it, else float32.")
    ] = "auto"
    compile: Annotated[bool | None, Doc("Use torch.compile; by default on a GPU with a C++ compiler.")] = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            for name, value in self.length.items():
                object.__setattr__(self, name, value)  # as the dataclass is frozen
        check_arguments(Recipe, vars(self), flag)  # not type(self), whose hints may have no bounds
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"--epochs {self.epochs} and --steps {self.steps}: set one of them, and the other to None")

    def total_steps(self, epoch_steps: int) -> int:
        """Return the number of steps of a training whose epochs have this many steps."""
        return self.steps or (self.epochs or 0) * epoch_steps  # one of them is set

    def check_effects(self) -> None:
        """Raise InputError for a field that differs from its class's default and has no effect."""
        for governed, other, idle in WITHOUT_EFFECT:
            value = getattr(self, other)
            changed = [flag(f.name) for f in fields(self) if f.name in governed and getattr(self, f.name) != f.default]
            if value in idle and changed:
                raise InputError(f"{', '.join(changed)} has no effect under {flag(other)} {value}: leave it out")


def flag(name: str) -> str:
    """Return a field's option on the command line."""
    return f"--{name.replace('_', '-')}"


CAPSNET_FIELDS = (
    "iterations",
    "gradient",
    "conv_channels",
    "conv_kernel",
    "negative_slope",
    "primary_types",
    "primary_dim",
    "primary_kernel",
    "primary_stride",
    "primary_scale",
    "capsule_dim",
    "shared",
    "prior",
    "bias",
    "none_of_the_above",
    "initialisation",
    "decoder",
)  # the arguments of CapsNet
LOSS_FIELDS = ("margin_present", "margin_absent", "margin_down_weight", "reconstruction_weight")
WITHOUT_EFFECT: tuple[tuple[tuple[str, ...], str, tuple[object, ...]], ...] = (
    ((*CAPSNET_FIELDS, *LOSS_FIELDS), "network", ("cnn", "small-cnn")),
    (("reconstruction_weight",), "decoder", ("none",)),
    (("lr_decay", "lr_decay_steps", "lr_min"), "schedule", ("one-cycle",)),
    (("lr_decay_steps",), "lr_decay", (1.0,)),
    (("gradient",), "iterations", (1,)),
    (("warmup",), "schedule", ("exponential",)),
)  # fields that have no effect where another field has one of these values
OLD_NAMES = {
    "rate": "lr",
    "batch": "batch_size",
    "averaging": "ema_decay",
    "slope": "negative_slope",
    "reconstruction": "reconstruction_weight",
    "decay": "lr_decay",
    "decay_steps": "lr_decay_steps",
    "rate_floor": "lr_min",
    "leaky": "none_of_the_above",
}  # of fields, in the recipe.json of older runs and as options
LOG_STEPS = 20  # between records of a training's log: like SAVE_MINUTES, not a part of a recipe
SAVE_MINUTES = 5.0  # between checkpoints within an epoch


@dataclass(frozen=True)
class Paper(Recipe):
    """The network and the training of the paper. The paper does not say how many epochs; here it is 50.

    capsnet train mnist --recipe paper
    Not yet run to the end.
    """


@dataclass(frozen=True)
class Official(Recipe):
    """The authors' released code. Its margin loss is 1/20 of the paper's: under Adam, 20 times the reconstruction loss.

    capsnet train mnist --recipe official
    Not yet run to the end.
    """

    primary_scale: float = 1 / 32
    bias: bool = True
    initialisation: Initialisation = "official"
    reconstruction_weight: float = 0.01
    length: ClassVar[dict[str, int]] = {"steps": 300_000}


@dataclass(frozen=True)
class Fast(Recipe):
    """The paper's network, trained quickly: one-cycle, shifts of one pixel, gradients through the last iteration only.

    capsnet train mnist --recipe fast
    17.6 minutes on 2 cores of a 2.5 GHz Intel Xeon with AVX-512, float32: 99.43 % on the test images (n = 1 run),
    99.28 % on the 5,000 validation images. The settings were chosen on the validation images alone.
    """

    gradient: Gradient = "last"
    shift: int = 1
    length: ClassVar[dict[str, int]] = {"steps": 2000}
    schedule: Literal["exponential", "one-cycle"] = "one-cycle"
    lr: float = 2e-3


@dataclass(frozen=True)
class Digits(Recipe):
    """A small network for scikit-learn's 8x8 digits, which need no download.

    capsnet train digits --recipe digits
    0.9 minutes on 2 cores of a 2.5 GHz Intel Xeon: 99.44 % on the 360 test images (n = 1 run). The settings were
    chosen on validation images.
    """

    conv_channels: int = 64
    conv_kernel: int = 3
    primary_types: int = 8
    primary_kernel: int = 3
    primary_stride: int = 1
    reconstruction_weight: float = 0.005
    shift: int = 0
    length: ClassVar[dict[str, int]] = {"epochs": 40}
    batch_size: int = 32
    schedule: Literal["exponential", "one-cycle"] = "one-cycle"
    lr: float = 4e-3


@dataclass(frozen=True)
class ChainerCode(Recipe):
    """The settings of soskek/dynamic_routing_between_capsules: matrices shared over places, no decoder (99.60 %).

    capsnet train mnist --recipe chainer        (with --negative-slope 0.05: its leaky ReLU, 99.66 %)
    Not yet run to the end.

    Different there: primary capsules are not squashed, and their shared matrices have biases; the squash of a zero
    vector has gradient NaN; weights start uniform in ±0.05, biases at 0 (Chainer's default); the seed is 789; the
    learning rate falls once an epoch, not in every step; all images of a batch are shifted alike, by -2 to 1 pixels in
    one version and -2 to 2 in a later one; it trains on all 60,000 images and keeps the best epoch on the test images.
    """

    shared: bool = True
    decoder: Decoder = "none"
    length: ClassVar[dict[str, int]] = {"epochs": 500}
    batch_size: int = 256
    lr_decay: float = 0.95
    lr_decay_steps: int | None = None
    lr_min: float = 1e-5


@dataclass(frozen=True)
class TensorFlowCode(Recipe):
    """The settings of InnerPeace-Wu/CapsNet-tensorflow (99.21 % after 5,000 of its 10,000 steps).

    capsnet train mnist --recipe tensorflow     (with --prior: its learned initial logits)
    Not yet run to the end.

    Different there: the learning rate falls once in 1,000 steps, not in every step; the squash of a zero vector is NaN;
    the decoder gets the 16 numbers of one capsule and not its class, and on test images those of the true label;
    weights start from Glorot's distribution in conv1 and (slim's default) the primary capsules, else from a truncated
    normal of 0.1; it keeps the weights of the last step. The 5,000 steps in its stored config.py are only printed:
    `--max_iters` is 10,000 by default.
    """

    length: ClassVar[dict[str, int]] = {"steps": 10_000}
    batch_size: int = 100
    lr_decay: float = 0.7
    lr_decay_steps: int | None = 1000
    shift: int = 0


@dataclass(frozen=True)
class PyTorchCode(Recipe):
    """The settings of adambielski/CapsNet-pytorch: learned initial logits (99.65 %).

    capsnet train mnist --recipe pytorch
    Not yet run to the end.

    Its `--routing_iterations 3` makes four weighted sums. Its margin loss is a mean over the 10 classes, and its
    reconstruction loss a mean over the 784 pixels; the recipe has the same balance of the two. Different there: no
    decoder without `--with_reconstruction`; matrices start uniform in ±1/sqrt(1152), here from N(0, 0.1); the seed is
    1; the squash of a zero vector is NaN; test images are reconstructed from the true label's capsule; the learning
    rate is constant, and falls to a tenth when the test loss has not fallen for 15 epochs (here it falls by the paper's
    schedule, and no choice depends on test images); it trains on all 60,000 images and keeps the last epoch.
    """

    iterations: int = 4
    prior: bool = True
    reconstruction_weight: float = 0.0005 * 10 / 784
    length: ClassVar[dict[str, int]] = {"epochs": 250}


@dataclass(frozen=True)
class NotebookCode(Recipe):
    """The settings of cezannec/capsule_net_pytorch: 3 epochs of small batches, constant learning rate (99.02 %).

    capsnet train mnist --recipe notebook
    Not yet run to the end.

    Different there: the softmax runs over the children, the margin loss is not squared, the squash of a zero vector is
    NaN, and matrices start from N(0, 1), with which only that softmax learns; the decoder is masked by the
    predicted class in training too, here by the true label; the seed is 1; the training images, all 60,000, are not
    shuffled; it keeps the last epoch.
    """

    length: ClassVar[dict[str, int]] = {"epochs": 3}
    batch_size: int = 20
    lr_decay: float = 1.0
    shift: int = 0


RECIPES: dict[str, type[Recipe]] = {
    "paper": Paper,
    "official": Official,
    "fast": Fast,
    "digits": Digits,
    "chainer": ChainerCode,
    "tensorflow": TensorFlowCode,
    "pytorch": PyTorchCode,
    "notebook": NotebookCode,
}


def name_of(recipe: Recipe) -> str:
    """Return the name of a recipe's class: one of RECIPES, "paper" for a plain Recipe, else its module and name."""
    kind = type(recipe)
    known = {Recipe: "paper"} | {of_name: name for name, of_name in RECIPES.items()}
    return known.get(kind) or f"{kind.__module__}.{kind.__qualname__}"


def recorded_recipe(name: str, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a run has recorded: its `name_of` and its fields, which may have their OLD_NAMES.

    A class that is not one of RECIPES is not imported: the result has its name and the fields of a plain Recipe.
    Raises InputError for an unknown name, an unknown field and a value that a recipe cannot have.
    """
    own = "." in name
    kind = _class_called(name) if own else find_recipe(name)
    known = {field.name for field in fields(kind)}
    if not own and (unknown := values.keys() - known - OLD_NAMES.keys()):
        raise InputError(f"recipe {name} has no field {min(unknown)!r}")
    values = {OLD_NAMES[old]: value for old, value in values.items() if old in OLD_NAMES} | dict(values)
    return kind(**{name: value for name, value in values.items() if name in known})


@cache
def _class_called(name: str) -> type[Recipe]:
    """Make a class with the fields of Recipe and the given module and name."""
    module, _, qualified = name.partition(".")
    return type(qualified, (Recipe,), {"__module__": module, "__qualname__": qualified})


def find_recipe(name: str) -> type[Recipe]:
    """Return the recipe of a name.

    Raises InputError for an unknown one.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {reprlib.repr(name)}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
