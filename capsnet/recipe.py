"""Every choice that a training run makes: one frozen dataclass."""

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from pydantic import Field, with_config

from capsnet.checks import STRICT, Iterations, Scale, Size, Slope, check_arguments
from capsnet.errors import InputError

Times = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Pixels = Annotated[int, Field(ge=0, le=1024)]
Images = Annotated[int, Field(ge=0, le=10**9)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=10**6)]


@with_config(STRICT)
@dataclass(frozen=True)
class Recipe:
    """Every choice that a training run makes; each field is a flag of `capsnet train`.

    A training ends after `epochs` or after `steps`, of which exactly one is set. A recipe that is given neither has
    its class's own `length`; whoever gives one replaces that.

    Raises InputError, naming the flag and the value, for a value of another type or out of bounds and for both epochs
    and steps.
    """

    length: ClassVar[dict[str, int]] = {"epochs": 50}

    # the network
    network: Literal["capsnet", "cnn", "small-cnn"] = "capsnet"
    """A capsule network, the paper's convolutional baseline, or a baseline of about a CapsNet's cost."""
    iterations: Iterations = 3
    """Routing iterations: how many weighted sums."""
    gradient: Literal["all", "last"] = "all"
    """Whether gradients pass through every routing iteration or the last one only."""
    conv_channels: Size = 256
    """Channels of conv1."""
    conv_kernel: Size = 9
    """Side of conv1's kernel, in pixels."""
    negative_slope: Slope = 0.0
    """Slope of conv1's leaky ReLU below zero; 0 is the paper's ReLU."""
    primary_types: Size = 32
    """Types of primary capsules."""
    primary_dim: Size = 8
    """Dimensions of a primary capsule."""
    primary_kernel: Size = 9
    """Side of the primary capsules' kernel, in places."""
    primary_stride: Size = 2
    """Stride of the primary capsules' kernel, in places."""
    primary_scale: Scale = 1.0
    """Factor on the primary capsules before they are squashed."""
    capsule_dim: Size = 16
    """Dimensions of a class capsule."""
    shared: bool = False
    """Share each capsule type's matrices over the places of the grid."""
    prior: bool = False
    """Learn the initial routing logits."""
    bias: bool = False
    """Add a learned bias to the weighted sum inside every iteration."""
    none_of_the_above: bool = False
    """Give the children a none-of-the-above logit in the softmax."""
    initialisation: Literal["torch", "official"] = "torch"
    """PyTorch's defaults, or the truncated normals of the authors' code."""
    decoder: Literal["dense", "conv", "none"] = "dense"
    """The paper's decoder, one of transposed convolutions, or none and no reconstruction loss."""

    # the losses
    reconstruction_weight: Weight = 0.0005
    """Weight of the reconstruction loss, beside a margin loss of weight 1."""

    # the data
    validation: Images | None = None
    """Training images kept for validation: 5,000 of MNIST's and Fashion-MNIST's by default, a tenth of others."""
    image_size: Size | None = None
    """Side in pixels that images from a folder are resized to."""
    shift: Pixels = 2
    """Largest shift of a training image each way, in pixels."""

    # the optimisation
    epochs: Times | None = None
    """Times through the training images; none where the training ends after steps."""
    steps: Times | None = None
    """Batches to train on; none where the training ends after epochs."""
    batch_size: Size = 128
    """Images in a step."""
    lr: Rate = 1e-3
    """Adam's learning rate: the first one, or the peak of one-cycle."""
    schedule: Literal["exponential", "one-cycle"] = "exponential"
    """A rate that decays by a constant factor, or one that rises to its peak and falls to zero along cosines."""
    warmup: Share = 0.2
    """Share of the steps in which one-cycle rises."""
    lr_decay: Rate = 0.96
    """Factor on the exponential rate."""
    lr_decay_steps: Times | None = 2000
    """Steps from one such factor to the next; an epoch's if none are given."""
    lr_min: Annotated[float, Field(ge=0, le=1)] = 1e-6
    """Lowest learning rate of the exponential schedule."""
    ema_decay: Share = 0.0
    """Decay per step of the average of the weights that is evaluated and kept; 0 keeps the last weights."""
    seed: Seed = 0
    """Seed of the split, the initial weights, the order of the images and their shifts."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic; auto is bf16 where the hardware has it, else float32."""
    compile: bool | None = None
    """Use torch.compile; by default where it pays."""

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None:
            for name, value in self.length.items():
                object.__setattr__(self, name, value)  # as the dataclass is frozen
        check_arguments(Recipe, vars(self), flag)  # not type(self), whose hints may have no bounds
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"--epochs {self.epochs} and --steps {self.steps}: set one of them, and the other to None")

    def total_steps(self, epoch_steps: int) -> int:
        """How many steps a training takes whose epochs have so many steps each."""
        return self.steps or (self.epochs or 0) * epoch_steps  # one of them is set

    def check_effects(self) -> None:
        """Raise InputError for a field that was changed from its class's own value and has no effect."""
        for governed, other, idle in WITHOUT_EFFECT:
            value = getattr(self, other)
            changed = [flag(f.name) for f in fields(self) if f.name in governed and getattr(self, f.name) != f.default]
            if value in idle and changed:
                raise InputError(f"{', '.join(changed)} has no effect under {flag(other)} {value}: leave it out")


def flag(name: str) -> str:
    """A field's name as the command line has it."""
    return f"--{name.replace('_', '-')}"


CAPSULES = (
    *("iterations", "gradient", "conv_channels", "conv_kernel", "negative_slope", "primary_types", "primary_dim"),
    *(
        "primary_kernel",
        "primary_stride",
        "primary_scale",
        "capsule_dim",
        "shared",
        "prior",
        "bias",
        "none_of_the_above",
    ),
    *("initialisation", "decoder"),
)  # what a CapsNet takes
WITHOUT_EFFECT: tuple[tuple[tuple[str, ...], str, tuple[object, ...]], ...] = (
    ((*CAPSULES, "reconstruction_weight"), "network", ("cnn", "small-cnn")),
    (("reconstruction_weight",), "decoder", ("none",)),
    (("lr_decay", "lr_decay_steps", "lr_min"), "schedule", ("one-cycle",)),
    (("lr_decay_steps",), "lr_decay", (1.0,)),
    (("gradient",), "iterations", (1,)),
    (("warmup",), "schedule", ("exponential",)),
)  # fields that change nothing where another field has one of these values
