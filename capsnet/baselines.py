"""Plain convolutional networks to compare capsules with."""

from typing import Literal

from torch import Tensor, nn

from capsnet.checks import Classes, ImageShape, check_arguments, check_parameters
from capsnet.errors import InputError
from capsnet.hub import HubNetwork
from capsnet.layers import channels_last
from capsnet.models import check_images

BaselineSize = Literal["paper", "small"]


class ConvBaseline(HubNetwork):
    """A plain convolutional network to compare with: logits [b, j] of images [b, c, h, w].

    `size="paper"` is the paper's baseline (35,445,522 parameters on MNIST, Section 5); `size="small"` takes about as
    much arithmetic as a CapsNet and has fewer parameters.

    Raises InputError for an argument of the wrong type or out of bounds, an image that is too small, and too many
    parameters.
    """

    def __init__(
        self, image_shape: ImageShape = (1, 28, 28), classes: Classes = 10, size: BaselineSize = "paper"
    ) -> None:
        check_arguments(ConvBaseline.__init__, locals())
        super().__init__()
        self.image_shape, self.classes = tuple(image_shape), classes
        channels, height, width = image_shape
        if size == "paper":
            widths, hidden, pool = (256, 256, 128), (328, 192), 1
        else:
            widths, hidden, pool = (32, 64, 128), (256, 128), 4
        if min(height, width) < pool:
            raise InputError(f"an image of {height}x{width} is too small: the baseline pools {pool}x{pool} places")
        features = widths[-1] * (height // pool) * (width // pool)
        check_parameters(convolutions=25 * channels * widths[0], head=features * hidden[0] + hidden[1] * classes)
        convolutions: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            convolutions += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU()]
        self.features = channels_last(nn.Sequential(*convolutions, nn.MaxPool2d(pool), nn.Flatten()))
        self.head = nn.Sequential(
            nn.Linear(features, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images [b, c, h, w] → logits [b, j]; InputError for images of another shape, dtype or device."""
        check_images(images, self.image_shape, next(self.parameters()))
        logits: Tensor = self.head(self.features(images))  # [b, j]
        return logits
