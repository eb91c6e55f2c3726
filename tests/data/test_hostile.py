"""Malicious files are refused in one line, quickly and in little memory: before they are unpacked."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from capsnet.data import image_tensor, load_data
from capsnet.data.sources import FILES, data_folder, read_idx
from capsnet.errors import InputError
from capsnet.files import MAX_UNPACKED

GREY = (1, 4, 6)


def peak(call):
    """The memory in MiB that a refused call takes of Python and numpy, and what it says."""
    tracemalloc.start()
    with pytest.raises(InputError) as refusal:
        call()
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return taken >> 20, str(refusal.value)


def growth(*paths):
    """The memory in MiB by which a process of its own grows as it reads images, and what it says of each."""
    code = """
import resource, sys
from PIL import Image
from capsnet.data import image_tensor
from capsnet.errors import InputError
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        print(tuple(image_tensor(path, (3, 28, 28)).shape))
    except InputError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *said, grown = result.stdout.splitlines()
    assert not result.stderr
    return int(grown), said


def zeros_gzipped(header, n):
    """A gzip file of a header and n zeros, without the memory that they take."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    return packer.compress(header) + b"".join(packer.compress(block) for _ in range(n >> 20)) + packer.flush()


def header_of(shape, descr="|u1"):
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_npz(path, *, compression=zipfile.ZIP_STORED, **members):
    """An .npz file of arrays, or of bytes as they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            if not isinstance(content, bytes):
                file = io.BytesIO()
                np.save(file, content)
                content = file.getvalue()
            archive.writestr(f"{name}.npy", content)
    return path


LABELS = np.arange(20) % 2
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 5, 6), dtype=np.uint8)


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(zeros_gzipped(struct.pack(">4I", 0x803, 300 << 10, 32, 32), 300 << 20))
    taken, message = peak(lambda: read_idx(path, 3))
    assert message == (
        f"{path} would unpack to 314572800 bytes, more than 256 MiB and 20 times its size: if it is not damaged, "
        f"gunzip it"
    )
    assert taken < 8


def test_no_more_of_a_gzip_file_is_unpacked_than_its_header_promises(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(zeros_gzipped(struct.pack(">2I", 0x801, 10), 300 << 20))
    taken, message = peak(lambda: read_idx(path, 1))
    assert "labels.gz is too long: more than the 10 bytes that (10,) takes" in message
    assert taken < 8


def test_a_header_of_more_images_than_the_file_holds_is_refused_before_room_is_made_for_them(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(InputError, match="images would unpack to"):
        read_idx(path, 3)


def test_large_files_are_unpacked_as_far_as_their_size_warrants(tmp_path):
    n = MAX_UNPACKED + (1 << 20)
    with (tmp_path / "labels").open("wb") as file:
        file.write(struct.pack(">2I", 0x801, n))
        file.truncate(n + 8)
    assert read_idx(tmp_path / "labels", 1).shape == (n,)


def test_an_npz_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path, n = tmp_path / "bomb.npz", 300 << 10
    block = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(header_of((n, 32, 32)))
            for _ in range(300):
                member.write(block)
        archive.writestr("labels.npy", header_of((n,)) + bytes(n))
    taken, message = peak(lambda: load_data(str(path)))
    assert "bomb.npz would unpack to 314880000 bytes, more than 256 MiB and 20 times its size" in message
    assert taken < 8


@pytest.mark.parametrize("shape", [(2**40, 28, 28), (2**62, 2**62, 2**62), (-1, 5, 6), (20, 5, 7), (19, 5, 6)])
def test_an_array_whose_header_and_archive_disagree_is_refused(tmp_path, shape):
    path = write_npz(tmp_path / "own.npz", images=header_of(shape) + IMAGES.tobytes(), labels=LABELS)
    with pytest.raises(InputError, match=r"own\.npz cannot be read as \.npz \(images has "):
        load_data(str(path))


def test_an_archive_that_overstates_an_array_is_refused(tmp_path):
    path = write_npz(tmp_path / "own.npz", images=header_of((20, 5, 6)) + bytes(600), labels=LABELS)
    content = path.read_bytes()
    size = len(header_of((20, 5, 6))) + 600
    path.write_bytes(content.replace(struct.pack("<2I", size, size), struct.pack("<2I", size, size + 1)))
    with pytest.raises(InputError, match=r"own\.npz cannot be read as \.npz"):
        load_data(str(path))


HEADERS = {
    "garbage": b"\x93NUMPY\x01\x00\x76\x00" + bytes(118),
    "no magic": b"not an array at all",
    "empty": b"",
    "cut short": header_of((20, 5, 6))[:40],
    "another version": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * 1000,
    "deep": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 8999 + b"1",
    "brackets": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"[" * 9000,
    "long": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b" " * 60000,
    "no type": header_of((20, 5, 6)).replace(b"|u1", b"|zz"),
    "objects": header_of((20, 5, 6)).replace(b"|u1", b"|O8"),
    "no width": header_of((2**40,)).replace(b"|u1", b"|S0"),
    "python 2": header_of((20, 5, 6)).replace(b"20,", b"2L,"),
    "axes": header_of((1,) * 100),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("array", ["images", "labels", "classes"])
def test_a_damaged_header_of_an_array_is_refused_by_name(tmp_path, array, name):
    arrays = {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b"])} | {array: HEADERS[name]}
    with pytest.raises(InputError, match=r"own\.npz cannot be read as \.npz \(.+\): write it with np\.savez$"):
        load_data(str(write_npz(tmp_path / "own.npz", **arrays)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression_is_refused(tmp_path, compression):
    path = write_npz(tmp_path / "own.npz", compression=compression, images=IMAGES, labels=LABELS)
    with pytest.raises(InputError, match=r"\(images is encrypted or compressed in an unusual way\)"):
        load_data(str(path))


@pytest.mark.parametrize(("field", "value"), [("flag", 1), ("method", 99), ("version", 255)])
def test_a_member_that_is_encrypted_or_of_an_unknown_kind_is_refused(tmp_path, field, value):
    path = write_npz(tmp_path / "own.npz", images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    local, central = {"flag": (6, 8), "method": (8, 10), "version": (4, 6)}[field]
    content[content.index(b"PK\x03\x04") + local] = value
    content[content.index(b"PK\x01\x02") + central] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.npz cannot be read as \.npz \(.+\): write it with np\.savez$"):
        load_data(str(path))


def test_content_that_was_damaged_after_its_header_is_refused(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_npz(tmp_path / "own.npz", compression=compression, images=IMAGES, labels=LABELS)
        content = bytearray(path.read_bytes())
        content[400] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"own\.npz cannot be read as \.npz"):
            load_data(str(path))


def small_tiff(path, width, height, tile=None):
    """A TIFF file of less than 1,000 bytes that says it has so many pixels, in one strip or tile of packed zeros."""
    pixels = zlib.compress(bytes(1000), 9)
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 8, 325: len(pixels)} if tile else {273: 8, 278: height, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = struct.pack("<I", 8 + len(pixels))
    path.write_bytes(b"II*\0" + start + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert path.stat().st_size < 1000
    return path


def test_a_tiff_of_a_few_bytes_and_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    thin = small_tiff(tmp_path / "thin.tiff", 20, 4_194_324)
    tiled = small_tiff(tmp_path / "tiled.tiff", 16, 16, tile=32768)
    grown, said = growth(thin, tiled)
    assert said == [
        f"{thin} cannot be read as an image (its 20 x 4194324 pixels are not from 1 to 67108864)",
        f"{tiled} cannot be read as an image (its 32768 x 32768 pixels a tile are not from 1 to 67108864)",
    ]
    assert grown < 32


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "jpg", "ppm"])
def test_an_image_of_too_many_pixels_is_refused_whatever_its_format(tmp_path, suffix):
    path = tmp_path / f"large.{suffix}"
    Image.new("1" if suffix in ("png", "tiff", "bmp") else "L", (8200, 8200)).save(path)
    with pytest.raises(InputError, match=rf"large\.{suffix} cannot be read as an image \(its 8200 x 8200 pixels are"):
        image_tensor(path, GREY)
    with pytest.raises(InputError, match="the image cannot be read as an image"):
        image_tensor(Image.new("1", (8200, 8200)), GREY)


def test_no_image_takes_more_memory_than_the_limit_says(tmp_path):
    modes = ("L", "RGB", "RGBA", "LA", "P", "I;16", "CMYK")
    paths = [tmp_path / f"{at}.tiff" for at in range(len(modes))]
    for mode, path in zip(modes, paths, strict=True):
        Image.new(mode, (4096, 2048)).save(path, compression="tiff_adobe_deflate")  # an eighth of the limit
    grown, said = growth(*paths)
    assert said == ["(3, 28, 28)"] * len(modes)
    assert grown < 1.2e9 / 8 / 2**20 + 32


def test_an_image_without_pixels_is_refused(tmp_path):
    with pytest.raises(InputError, match="its 0 x 5 pixels are not from 1"):
        image_tensor(Image.new("L", (0, 5)), GREY)


def test_eps_is_refused_since_it_is_a_program(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "image.eps")
    with pytest.raises(InputError, match="EPS is a program, which would be run"):
        image_tensor(tmp_path / "image.eps", GREY)


def test_an_image_that_pillow_opened_but_cannot_decode_is_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)).save(tmp_path / "image.png")
    content = (tmp_path / "image.png").read_bytes()
    with pytest.raises(InputError, match="the image cannot be read as an image"):
        image_tensor(Image.open(io.BytesIO(content[: len(content) // 2])), GREY)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("read", [lambda path: image_tensor(path, GREY), lambda path: read_idx(path, 3)])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, kind, read):
    path = tmp_path / "images"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(InputError, match="images cannot be read: it is not a regular file"):
        read(path)


NO_PATHS = {
    "": "'' cannot be used as a path: it is empty",
    "~nosuchuser/data": r"'~nosuchuser/data' cannot be used as a path: Could not determine home directory",
    "a" * 5000: r"'a{60}'\.\.\. cannot be used as a path: File name too long",
    "a\0b": r"'a\\x00b' cannot be used as a path: embedded null byte",
}


@pytest.mark.parametrize("name", NO_PATHS, ids=["empty", "nobody's", "long", "NUL"])
def test_a_name_that_is_no_path_is_refused_as_data_and_as_their_folder(name, monkeypatch):
    with pytest.raises(InputError, match=NO_PATHS[name]):
        load_data(name)
    with pytest.raises(InputError, match=NO_PATHS[name]):
        load_data("mnist", data_dir=name)
    if name and "\0" not in name:
        monkeypatch.setenv("CAPSNET_DATA", name)
        with pytest.raises(InputError, match=NO_PATHS[name]):
            data_folder()


@pytest.mark.parametrize("name", NO_PATHS, ids=["empty", "nobody's", "long", "NUL"])
def test_a_name_that_is_no_path_is_refused_as_an_image(name):
    with pytest.raises(InputError, match="cannot be read") as refusal:
        image_tensor(name, GREY)
    assert len(str(refusal.value)) < 500


def test_a_file_in_the_place_of_the_folder_of_the_data_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file: name a folder for the data"):
        load_data("mnist", data_dir=tmp_path / "file")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"no data set .*loop': give|cannot be used as a path"):
        load_data(str(tmp_path / "loop"))
    with pytest.raises(InputError, match=r"loop cannot be read as an image \(Too many levels of symbolic links\)"):
        image_tensor(tmp_path / "loop", GREY)


def test_a_line_break_in_a_name_does_not_break_the_line(tmp_path):
    (tmp_path / "two\nlines.npz").touch()
    with pytest.raises(InputError, match=r"two\\nlines\.npz cannot be read as \.npz"):
        load_data(str(tmp_path / "two\nlines.npz"))


def test_damaged_files_of_mnist_are_named(tmp_path, put):
    put(tmp_path)
    (tmp_path / FILES[0]).write_bytes(gzip.compress(b"\0\0\x08\x03"))
    with pytest.raises(InputError, match=f"{FILES[0]} is truncated within its header"):
        load_data("mnist", data_dir=tmp_path)


@pytest.fixture
def open_folder():
    """A temporary folder that every user may enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("closed", ["pets", "pets/cat", "pets/cat/0.png", "own.npz", "mnist", f"mnist/{FILES[0]}"])
def test_what_may_not_be_read_is_named(open_folder, put, closed):
    data = "mnist" if "mnist" in closed else closed.split("/")[0]
    for name in ("pets/cat", "pets/dog"):
        (open_folder / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (6, 4), number).save(open_folder / name / f"{number}.png")
    np.savez(open_folder / "own.npz", images=IMAGES, labels=LABELS)
    put(open_folder / "mnist")
    code = """
import os, sys
from PIL import Image
from capsnet.data import load_data
from capsnet.errors import InputError
Image.init()
os.chdir(sys.argv[1])
os.chmod(sys.argv[2], 0)
if os.getuid() == 0:
    os.setuid(65534)  # nobody, as root may read everything
try:
    load_data(sys.argv[3], data_dir=".")
except InputError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(open_folder), closed, data]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "Permission denied" in result.stdout
    assert closed.split("/")[-1] in result.stdout
    assert len(result.stdout.splitlines()) == 1
