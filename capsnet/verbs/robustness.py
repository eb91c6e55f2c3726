"""The verbs that measure how a run's network holds out: attacks, their detection, affine changes."""

from dataclasses import dataclass

from capsnet.verbs.look import Compare, Look, load_other


@dataclass(frozen=True)
class Targeted(Look):
    """Attack every pair of classes: gradient ascent on the target's length until it wins."""

    per_class: int = 1
    """Images of each class, each attacked towards every other class."""

    def __call__(self) -> None:
        """Attack, draw, and say where."""
        from capsnet.figures.targeted import draw_targeted

        network, data = self.load()
        path = self.pictures / "targeted.png"
        print(draw_targeted(network, data.test, data.classes, path, per_class=self.per_class))


@dataclass(frozen=True)
class Attacks(Compare):
    """Measure accuracy under the worst of all attacks, and check the attacks themselves. Takes minutes a network."""

    images: int = 50
    """How many test images are attacked, half of them in L2 too. The time grows with them: 100 of MNIST take the
    paper's network and a small one beside it 19 minutes of one core."""
    epsilons: tuple[float, ...] = (0.1, 0.15, 0.2, 0.3)
    """The largest changes of a pixel, from 0 to 1."""

    def __call__(self) -> None:
        """Attack, draw, and say where."""
        from capsnet.figures.robustness import attack

        network, data = self.load()
        networks, path = self.networks(network, data), self.pictures / "attacks.png"
        print(attack(networks, data.test, path, count=self.images, epsilons=self.epsilons))


@dataclass(frozen=True)
class Detection(Look):
    """Tell attacks by their drawings, and keep the threshold for `capsnet predict`."""

    other: str | None = None
    """Other data that the network should not know, of images of the same shape: fashion_mnist, say."""
    count: int = 100
    """How many test images are attacked, and how many there are of noise and of the other data."""

    def __call__(self) -> None:
        """Measure, draw, and say where."""
        from capsnet.figures.robustness import detect
        from capsnet.runs import load_run

        network, data = self.capsules()
        other, path = load_other(self.other, self.data_dir), self.pictures / "detection.png"
        print(detect(load_run(self.run), network, data, path, other=other, count=self.count))


@dataclass(frozen=True)
class Affine(Compare):
    """Measure accuracy on test images that are rotated, shifted, scaled and sheared."""

    count: int = 250
    """How many test images."""

    def __call__(self) -> None:
        """Measure, draw, and say where."""
        from capsnet.figures.robustness import change

        network, data = self.load()
        networks, path = self.networks(network, data), self.pictures / "affine.png"
        print(change(networks, data.test, data.classes, path, count=self.count))
