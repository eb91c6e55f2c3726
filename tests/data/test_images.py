"""An image file of any kind becomes the right pixels, or is refused with its name."""

import numpy as np
import pytest
import torch
from PIL import Image

from capsnet.data.images import image_tensor
from capsnet.errors import InputError

GREY = (1, 4, 6)
COLOUR = (3, 4, 6)
RIGHT_DOWN = 6  # EXIF orientation: turned by 90 degrees


def save(path, mode="L", colour=100, size=(6, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg", "pgm"])
def test_every_usual_format_is_read(tmp_path, suffix):
    pixels = image_tensor(save(tmp_path / f"image.{suffix}"), GREY)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == GREY
    assert (pixels.int() - 100).abs().max() <= 2


def test_a_path_may_be_text_and_an_image_may_be_pillows(tmp_path):
    path = save(tmp_path / "image.png")
    assert torch.equal(image_tensor(str(path), GREY), image_tensor(Image.open(path), GREY))


def test_colour_becomes_grey_or_stays_as_the_network_takes_it(tmp_path):
    path = save(tmp_path / "image.png", "RGB", (255, 0, 0))
    assert image_tensor(path, GREY).unique().tolist() == [76]  # the luma of red
    assert image_tensor(path, COLOUR)[:, 0, 0].tolist() == [255, 0, 0]


def test_grey_becomes_three_equal_channels(tmp_path):
    assert image_tensor(save(tmp_path / "image.png"), COLOUR).unique().tolist() == [100]


@pytest.mark.parametrize(("invert", "ink"), [(False, 200), (True, 55)])
def test_transparent_pixels_become_black(tmp_path, invert, ink):
    image = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    image.paste((200, 200, 200, 255), (0, 0, 3, 4))
    image.save(tmp_path / "image.png")
    pixels = image_tensor(tmp_path / "image.png", GREY, invert=invert)
    assert pixels[0, 0].tolist() == [ink] * 3 + [0] * 3


def test_half_transparent_grey_is_half_as_bright(tmp_path):
    pixels = image_tensor(save(tmp_path / "image.png", "LA", (200, 128)), GREY)
    assert pixels.unique().tolist() == [100]


def test_16_bits_are_scaled_to_8_and_not_cut_off(tmp_path):
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for name in ("image.png", "image.tiff"):
        Image.fromarray(levels).save(tmp_path / name)
        assert image_tensor(tmp_path / name, (1, 1, 4)).flatten().tolist() == [0, 1, 128, 255]


def test_a_palette_is_looked_up(tmp_path):
    image = Image.new("RGB", (6, 4), (0, 0, 255)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "image.png")
    assert image_tensor(tmp_path / "image.png", COLOUR)[:, 0, 0].tolist() == [0, 0, 255]


def test_black_and_white_becomes_0_and_255(tmp_path):
    image = Image.new("1", (6, 4), 0)
    image.putpixel((5, 0), 1)
    image.save(tmp_path / "image.png")
    assert image_tensor(tmp_path / "image.png", GREY)[0, 0].tolist() == [0, 0, 0, 0, 0, 255]


def test_an_image_lying_on_its_side_is_turned_upright(tmp_path):
    image = Image.new("L", (4, 2), 0)
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = RIGHT_DOWN
    image.save(tmp_path / "image.png", exif=exif)
    pixels = image_tensor(tmp_path / "image.png", (1, 4, 2))
    assert pixels[0].nonzero().tolist() == [[0, 1]]  # the top left corner is now the top right


def test_an_image_is_resized_to_height_and_width_in_this_order(tmp_path):
    assert image_tensor(save(tmp_path / "image.png", size=(30, 20)), (3, 8, 5)).shape == (3, 8, 5)


def test_inverting_turns_dark_on_light_into_light_on_dark(tmp_path):
    assert image_tensor(save(tmp_path / "image.png", colour=250), GREY, invert=True).unique().tolist() == [5]


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"image\.png cannot be read as an image \(.+\)"):
        image_tensor(path, GREY)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"image\.{suffix} cannot be read as an image"):
        image_tensor(path, GREY)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png cannot be read as an image \(No such file or directory\)"):
        image_tensor(tmp_path / "gone.png", GREY)


def test_floating_point_pixels_are_refused(tmp_path):
    with pytest.raises(InputError, match="pixels of mode F have no known range: save it with 8 or 16 bits"):
        image_tensor(save(tmp_path / "image.tiff", "F", 0.5), GREY)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    for size in ((6, 4), (60, 40)):
        with pytest.raises(InputError, match=r"cannot be read as an image .+ decompression bomb"):
            image_tensor(save(tmp_path / "image.png", size=size), GREY)


def test_a_network_of_two_channels_takes_no_image_file(tmp_path):
    with pytest.raises(InputError, match=r"an image has 1 channel \(grey\) or 3 \(colour\), not the 2"):
        image_tensor(save(tmp_path / "image.png"), (2, 4, 6))
