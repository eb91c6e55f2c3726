"""The handwritten digits bundled with scikit-learn: 1,797 scans of 8x8 pixels, with nothing to download."""

import torch

from capsnet.data.sets import Data, ImageSet, hold_out


def load_digits(per_class: int = 36, seed: int = 0) -> Data:
    """Load the bundled digits; 36 of each digit, drawn by seed 0, are the test of 360. Images [n, 1, 8, 8]."""
    from sklearn import datasets

    bunch = datasets.load_digits()
    levels = torch.from_numpy(bunch.images)  # [n, 8, 8], 0 to 16
    images = (levels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)  # [n, 1, 8, 8]
    labels = torch.from_numpy(bunch.target).long()
    train, test = hold_out(ImageSet(images, labels), [per_class] * 10, seed)
    nothing = train.select(torch.arange(0))
    return Data("digits", tuple(str(digit) for digit in range(10)), train, nothing, test)
