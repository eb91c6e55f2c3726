"""Every choice that a training run makes: one frozen dataclass."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from capsnet.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Every choice that a training run makes; each field is a flag of `capsnet train`."""

    # the network
    network: Literal["capsnet", "cnn", "small-cnn"] = "capsnet"
    """A capsule network, the paper's convolutional baseline, or a baseline of about a CapsNet's cost."""
    iterations: int = 3
    """Routing iterations: how many weighted sums."""
    gradient: Literal["all", "last"] = "all"
    """Whether gradients pass through every routing iteration or the last one only."""
    conv_channels: int = 256
    """Channels of conv1."""
    conv_kernel: int = 9
    """Side of conv1's kernel, in pixels."""
    slope: float = 0.0
    """Slope of conv1's leaky ReLU below zero; 0 is the paper's ReLU."""
    primary_types: int = 32
    """Types of primary capsules."""
    primary_dim: int = 8
    """Dimensions of a primary capsule."""
    primary_kernel: int = 9
    """Side of the primary capsules' kernel, in places."""
    primary_stride: int = 2
    """Stride of the primary capsules' kernel, in places."""
    primary_scale: float = 1.0
    """Factor on the primary capsules before they are squashed."""
    capsule_dim: int = 16
    """Dimensions of a class capsule."""
    shared: bool = False
    """Share each capsule type's matrices over the places of the grid."""
    prior: bool = False
    """Learn the initial routing logits."""
    bias: bool = False
    """Add a learned bias to the weighted sum inside every iteration."""
    leaky: bool = False
    """Give the children an orphan class in the softmax."""
    initialisation: Literal["torch", "official"] = "torch"
    """PyTorch's defaults, or the truncated normals of the authors' code."""
    decoder: Literal["dense", "conv", "none"] = "dense"
    """The paper's decoder, one of transposed convolutions, or none and no reconstruction loss."""

    # the losses
    reconstruction: float = 0.0005
    """Weight of the reconstruction loss, beside a margin loss of weight 1."""

    # the data
    validation: int | None = None
    """Training images kept for validation: 5,000 of MNIST's and Fashion-MNIST's by default, a tenth of others."""
    image_size: int | None = None
    """Side in pixels that images from a folder are resized to."""
    shift: int = 2
    """Largest shift of a training image each way, in pixels."""

    # the optimisation
    epochs: int = 50
    """Times through the training images."""
    steps: int | None = None
    """Batches to train on at most, where the epochs are not over before."""
    batch: int = 128
    """Images in a step."""
    rate: float = 1e-3
    """Adam's learning rate: the first one, or the peak of one-cycle."""
    schedule: Literal["exponential", "one-cycle"] = "exponential"
    """A rate that decays by a constant factor, or one that rises to its peak and falls to zero along cosines."""
    warmup: float = 0.2
    """Share of the steps in which one-cycle rises."""
    decay: float = 0.96
    """Factor on the exponential rate."""
    decay_steps: int | None = 2000
    """Steps from one such factor to the next; an epoch's if none are given."""
    rate_floor: float = 1e-6
    """Lowest learning rate of the exponential schedule."""
    averaging: float = 0.0
    """Decay per step of the average of the weights that is evaluated and kept; 0 keeps the last weights."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of the images and their shifts."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """Arithmetic; auto is bf16 where the hardware has it, else float32."""
    compile: bool | None = None
    """Use torch.compile; by default where it pays."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, known = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in known:
                raise InputError(f"--{name.replace('_', '-')} is one of {', '.join(known)}, not {value!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:  # as NaN is not
                raise InputError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
        for name in ("rate", "decay"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup", "averaging"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.seed >= 2**32:
            raise InputError(f"--seed must be at least 0 and below 2**32, not {self.seed}")


_LEAST = dict.fromkeys(
    (
        *("iterations", "conv_channels", "conv_kernel", "primary_types", "primary_dim", "primary_kernel"),
        *("primary_stride", "capsule_dim", "image_size", "epochs", "steps", "batch", "decay_steps"),
    ),
    1,
) | dict.fromkeys(("validation", "shift", "reconstruction", "rate_floor", "seed"), 0)
