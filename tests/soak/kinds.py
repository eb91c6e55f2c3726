"""The kinds of files that the package reads: valid ones to damage, and the call that reads them."""

import gzip
import hashlib
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from capsnet import training
from capsnet.checkpoints import DIGITS, checkpoint_paths, read_checkpoint
from capsnet.data import Data, image_tensor, load_data
from capsnet.data.npz import read_npz
from capsnet.data.sources import read_idx
from capsnet.detector import Detector, load_detector, save_detector
from capsnet.evaluation import evaluate
from capsnet.recipes import Digits
from capsnet.runs import Run, load_run, start_run
from capsnet.weights import import_weights
from tests.soak.mutations import BINARY, TEXT, Change, damaged
from tests.test_weights import keras_weights, pytorch_weights

SMALL = {"conv_channels": 4, "primary_types": 1, "capsule_dim": 4, "decoder": "none", "epochs": 1}


@dataclass(frozen=True)
class FileKind:
    """One kind of file."""

    name: str
    path: Path
    originals: Sequence[bytes]
    read: Callable[[Path], Any]
    """Reads the file as the package does; its result is compared by `digest`."""
    changes: Sequence[Change] = BINARY
    sealed: bool = False
    """Whether it has a checksum, so that no other value may be read from it."""
    seal: Callable[[bytes], bytes] = bytes
    """Makes a file of damaged content, with a valid checksum."""
    also: Sequence[bytes] = ()
    """Other valid files, which the damage may produce despite the checksum."""
    share: int = 4
    """Its share of all inputs, relative to other kinds."""

    def write(self, rng: random.Random) -> None:
        """Replace the valid file by a damaged one."""
        self.path.write_bytes(self.seal(damaged(rng, self.originals, self.changes)))


def small_data() -> Data:
    """A few digits: 64 to train on, 20 for validation and 20 for the test."""
    data = load_data("digits")
    sizes = {"train": 64, "validation": 20, "test": 20}
    return replace(data, **{part: getattr(data, part).select(torch.arange(n)) for part, n in sizes.items()})


def small_run(room: Path) -> Run:
    """A run of a very small network, with a detector and results: all files of a run except pictures."""
    data = small_data()
    run = start_run(room / "small", Digits(**SMALL), data)
    network = training.train(run, data)
    save_detector(run, Detector(1.5, 95.0, 20))
    run.write_results(network, data, evaluate(network, data.test))
    return run


def run_kinds(run: Run) -> list[FileKind]:
    """The files of a run. Each is read by the function that users call; nothing reads results.json."""
    folder, (checkpoint, *_) = run.folder, checkpoint_paths(run)
    content = checkpoint.read_bytes()
    read: dict[str, Callable[[Path], Any]] = {
        "recipe.json": lambda path: repr(load_run(path.parent)),
        "environment.json": lambda path: repr(run.training_parts),
        "log.jsonl": lambda path: repr(run.records()),
        "detector.json": lambda path: repr(load_detector(run)),
        "best/config.json": lambda path: network_of(run),
    }
    kinds = [FileKind(name, folder / name, [(folder / name).read_bytes()], call, TEXT) for name, call in read.items()]
    weights = folder / "best" / "model.safetensors"
    guarded: dict[str, Any] = {"originals": [weights.read_bytes()], "read": read["best/config.json"], "sealed": True}
    kinds.append(FileKind("best/model.safetensors", weights, **guarded))
    kinds.append(FileKind("checkpoint", checkpoint, [content], read_checkpoint, sealed=True))
    resealed = {"originals": [content[DIGITS:]], "seal": sealed_checkpoint}
    kinds.append(FileKind("checkpoint, its checksum corrected", checkpoint, read=read_checkpoint, **resealed))
    return kinds


def network_of(run: Run) -> dict[str, Any]:
    """The weights of the run's network, and its arguments."""
    network = run.load_network()
    return {"as": repr(network)} | dict(network.state_dict())


def sealed_checkpoint(content: bytes) -> bytes:
    """A checkpoint with this content."""
    return hashlib.sha256(content).hexdigest().encode() + content


def data_kinds(room: Path) -> list[FileKind]:
    """Files of data sets."""
    train = load_data("digits").train.select(torch.arange(40))
    idx = struct.pack(">BBBB3I", 0, 0, 8, 3, 40, 8, 8) + train.images.numpy().tobytes()
    other = struct.pack(">BBBB3I", 0, 0, 8, 3, 20, 8, 16) + train.images.numpy().tobytes()
    arrays = {"images": train.images.numpy(), "labels": train.labels.numpy(), "classes": np.array([*"abcdefghij"])}
    npz = [saved(np.savez, arrays), saved(np.savez_compressed, arrays)]
    npz.append(saved(np.savez, arrays | {"test_images": arrays["images"], "test_labels": arrays["labels"]}))
    optional = ("classes", "test_images", "test_labels")  # the names in a zip file have no checksum
    left = [{name: array for name, array in arrays.items() if name not in optional}]
    left += [left[0] | {"test_images": arrays["images"], "test_labels": arrays["labels"]}]
    misnamed = [saved(np.savez, few) for few in left]
    npys = [npy(arrays["images"]), npy(arrays["images"] / np.float32(255)), npy(arrays["images"].repeat(3, 1))]
    return [
        FileKind("IDX", room / "plain.idx", [idx, other], read_images),
        FileKind(
            "IDX, gzipped",
            room / "zipped.gz",
            [gzip.compress(idx), gzip.compress(other)],
            read_images,
            sealed=True,
        ),
        FileKind("IDX, damaged before it was gzipped", room / "in.gz", [idx], read_images, seal=gzipped),
        FileKind("npz", room / "few.npz", npz, npz_content, sealed=True, also=misnamed),
        FileKind("npz, damaged before it was zipped", room / "in.npz", npys, npz_content, seal=zipped),
    ]


def read_images(path: Path) -> torch.Tensor:
    """The images of an IDX file."""
    return read_idx(path, 3)


def npz_content(path: Path) -> dict[str, Any]:
    """The content of an .npz file as a data set."""
    data = read_npz(path)
    check_names(data.classes)
    return {part: vars(getattr(data, part)) for part in ("train", "test")} | {"classes": data.classes}


def check_names(classes: tuple[str, ...]) -> None:
    """Raise UnicodeEncodeError for a class name that cannot be printed or written to a file."""
    for name in classes:
        name.encode()


def saved(save: Callable[..., None], arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file of these arrays."""
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def gzipped(content: bytes) -> bytes:
    """A .gz file with this content."""
    return gzip.compress(content, 1)


def zipped(images: bytes) -> bytes:
    """An .npz file with this as its array of images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", npy(np.arange(40) % 10))
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An .npy file of an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def image_kinds(room: Path) -> list[FileKind]:
    """Images, each format in several modes."""
    levels = np.kron(load_data("digits").train.images[0, 0].numpy(), np.ones((2, 2), np.uint8))
    grey = Image.fromarray(levels)
    colour = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    clear, palette, pages = grey.convert("LA"), colour.quantize(8), {"save_all": True, "append_images": [colour]}
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    written: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "PNG": [(grey, {}), (colour, {"exif": exif}), (clear, {}), (palette, {"transparency": 0}), (deep, {})],
        "JPEG": [(grey, {}), (colour, {"exif": exif}), (colour, {"progressive": True}), (colour.convert("CMYK"), {})],
        "TIFF": [(grey, {"compression": how}) for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
        "GIF": [(palette, {}), (grey, pages)],
        "BMP": [(grey, {}), (colour, {}), (palette, {})],
        "WEBP": [(colour, {}), (colour, {"lossless": True}), (clear.convert("RGBA"), {}), (grey, {"exif": exif})],
        "PPM": [(grey, {}), (colour, {})],
    }
    written["TIFF"] += [(deep, {}), (colour, pages), (grey.convert("1"), {})]
    kinds = []
    for form, images in written.items():
        originals = [image_file(image, form, how) for image, how in images]
        kinds.append(FileKind(form, room / "image", originals, read_image, share=3))
        if form == "PNG":
            kinds.append(
                FileKind("PNG, its checksums corrected", room / "image", originals, read_image, seal=png_sealed)
            )
    return kinds


def image_file(image: Image.Image, form: str, how: dict[str, Any]) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def read_image(path: Path) -> list[torch.Tensor]:
    """The image as input of a grey and of a colour network."""
    return [image_tensor(path, (1, 8, 8)), image_tensor(path, (3, 16, 16), invert=True)]


def png_sealed(content: bytes) -> bytes:
    """A PNG file with a valid checksum in each chunk that its lengths lead to."""
    sealed, place = bytearray(content), 8
    while place + 12 <= len(sealed):
        (length,) = struct.unpack(">I", sealed[place : place + 4])
        end = place + 8 + length
        if end + 4 > len(sealed):
            break
        sealed[end : end + 4] = struct.pack(">I", zlib.crc32(sealed[place + 4 : end]))
        place = end + 4
    return bytes(sealed)


def weight_kinds(room: Path) -> list[FileKind]:
    """Weights of other implementations."""
    torch.manual_seed(0)
    pickled = []
    for modern in (True, False):
        file = io.BytesIO()
        torch.save(pytorch_weights(decoder=False), file, _use_new_zipfile_serialization=modern)
        pickled.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, *keras_weights(decoder=False))
    return [
        FileKind("weights for import, .pt", room / "weights.pt", pickled, imported, share=3),
        FileKind("weights for import, .npz", room / "weights.npz", [file.getvalue()], imported, share=3, sealed=True),
    ]


def imported(path: Path) -> dict[str, torch.Tensor]:
    """The imported weights; their folder is removed again."""
    folder = import_weights(path, path.parent / "imported")
    weights = load_file(folder / "model.safetensors")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return weights
