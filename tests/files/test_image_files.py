"""Images from files against planted colors: every mode, orientation, kind of transparency and format."""

import colorsys
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from image_files import DOCUMENT, STORED, stored, turned
from PIL import Image

from fewchannels.errors import InputError
from fewchannels.files.images import SIXTEEN_BITS, as_rgb, read_image

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 7))
BYTES = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape))
COLORS = SHAPES.flatmap(lambda shape: arrays(np.uint8, (*shape, 3)))
CUT_OUTS = SHAPES.flatmap(lambda shape: arrays(np.uint8, (*shape, 4)))


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None] / 255
    return colors * opacity + 255 * (1 - opacity)


def close(found: Image.Image, expected: np.ndarray, within: float = 0) -> None:
    assert found.mode == "RGB"
    got = np.asarray(found).astype(float)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= within


@settings(max_examples=40)
@given(BYTES)
def test_gray_and_black_and_white_images_keep_their_values(values: np.ndarray) -> None:
    close(read_image(stored(Image.fromarray(values), "PNG")), gray(values))
    bits = values > 127
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        close(read_image(stored(Image.fromarray(bits), kind)), gray(bits * 255))


@settings(max_examples=40)
@given(SHAPES.flatmap(lambda shape: arrays(np.uint16, shape)), st.sampled_from(("PNG", "TIFF", "big-endian TIFF")))
def test_of_sixteen_bits_the_upper_eight_are_kept(values: np.ndarray, kind: str) -> None:
    values[0, 0] = 40_000
    image = Image.fromarray(values)
    if kind == "big-endian TIFF":
        image = Image.frombytes("I;16B", image.size, values.astype(">u2").tobytes())
    close(read_image(stored(image, kind.split()[-1])), gray(values // 256))


@settings(max_examples=40)
@given(SHAPES.flatmap(lambda shape: arrays(np.uint16, shape)), st.sampled_from(SIXTEEN_BITS))
def test_every_order_of_sixteen_bits_is_read(values: np.ndarray, mode: str) -> None:
    values[0, 0] = 40_000
    order = {"I;16": "<", "I;16L": "<", "I;16B": ">", "I;16N": "="}[mode]
    image = Image.frombytes(mode, values.shape[::-1], values.astype(f"{order}u2").tobytes())
    close(as_rgb(image, "it"), gray(values // 256))


@pytest.mark.parametrize("largest", [1, 255, 1023, 4095])
def test_few_bits_in_sixteen_are_refused_instead_of_black(largest: int) -> None:
    values = np.linspace(0, largest, 24).reshape(4, 6).astype(np.uint16)
    with pytest.raises(InputError, match=f"no value above {largest} of 65535.* not scaled"):
        read_image(stored(Image.fromarray(values), "PNG"))
    close(read_image(stored(Image.fromarray(values * 0), "PNG")), gray(values * 0))


@settings(max_examples=40)
@given(SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(0, 1, width=32))))
def test_floating_point_of_0_to_1_is_scaled(values: np.ndarray) -> None:
    close(read_image(stored(Image.fromarray(values), "TIFF")), gray(values.astype(float) * 255), within=0.501)


@pytest.mark.parametrize("wrong", [1.01, -0.01, 255.0, np.nan, np.inf])
def test_other_floating_point_is_refused(wrong: float) -> None:
    values = np.full((3, 2), 0.5, np.float32)
    values[1, 1] = wrong
    with pytest.raises(InputError, match=r"floating-point values .* between 0 .* and 1"):
        read_image(stored(Image.fromarray(values), "TIFF"))


@settings(max_examples=40)
@given(COLORS, st.sampled_from(("PNG", "TIFF", "BMP", "PPM", "WEBP")))
def test_colors_are_kept(colors: np.ndarray, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    close(read_image(stored(Image.fromarray(colors), kind, **options)), colors)


@settings(max_examples=40)
@given(CUT_OUTS, st.sampled_from(("PNG", "TIFF", "WEBP")))
def test_what_is_transparent_is_white_and_hides_no_color(pixels: np.ndarray, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = read_image(stored(Image.fromarray(pixels, "RGBA"), kind, **options))
    close(found, on_white(pixels[..., :3], pixels[..., 3]), within=1)


@settings(max_examples=40)
@given(CUT_OUTS)
def test_gray_premultiplied_and_palette_images_with_opacity_are_composited(pixels: np.ndarray) -> None:
    values, alpha = pixels[..., 0], pixels[..., 3]
    both = Image.merge("LA", [Image.fromarray(values), Image.fromarray(alpha)])
    close(read_image(stored(both, "PNG")), on_white(gray(values), alpha), within=1)
    # What is premultiplied has lost precision where it is nearly transparent, but not in the composite.
    close(as_rgb(both.convert("La"), "it"), on_white(gray(values), alpha), within=2)
    close(as_rgb(Image.fromarray(pixels, "RGBA").convert("RGBa"), "it"), on_white(pixels[..., :3], alpha), within=2)
    palette = Image.fromarray(values)
    palette.putpalette([255 - i // 3 for i in range(768)])
    palette = palette.convert("PA")
    palette.putalpha(Image.fromarray(alpha))
    close(read_image(stored(palette, "TIFF")), on_white(gray(255 - values), alpha), within=1)


@settings(max_examples=40)
@given(BYTES, st.integers(0, 255), st.data())
def test_a_transparent_index_or_value_is_white(values: np.ndarray, index: int, data: st.DataObject) -> None:
    colors = data.draw(arrays(np.uint8, (256, 3)))
    palette = Image.fromarray(values)
    palette.putpalette(colors.ravel().tolist())
    opaque = np.where(values == index, 0, 255)
    close(read_image(stored(palette, "PNG", transparency=index)), on_white(colors[values], opaque))
    close(read_image(stored(palette, "PNG")), colors[values])
    opacity = data.draw(arrays(np.uint8, 256))
    expected = on_white(colors[values], opacity[values])
    close(read_image(stored(palette, "PNG", transparency=opacity.tobytes())), expected, within=1)
    close(read_image(stored(Image.fromarray(values), "PNG", transparency=index)), on_white(gray(values), opaque))
    if values.min() != values.max():
        close(read_image(stored(palette, "GIF", transparency=index)), on_white(colors[values], opaque))


@settings(max_examples=40)
@given(COLORS, st.data())
def test_a_transparent_color_is_white(colors: np.ndarray, data: st.DataObject) -> None:
    chosen = colors[data.draw(st.integers(0, len(colors) - 1)), 0]
    opaque = np.where((colors == chosen).all(axis=-1), 0, 255)
    found = read_image(stored(Image.fromarray(colors), "PNG", transparency=tuple(chosen.tolist())))
    close(found, on_white(colors, opaque))


@settings(max_examples=40)
@given(SHAPES.flatmap(lambda shape: arrays(np.uint16, shape)), st.data())
def test_a_transparent_value_of_sixteen_bits_is_white(values: np.ndarray, data: st.DataObject) -> None:
    values[-1, -1] = 50_000
    chosen = int(values[data.draw(st.integers(0, len(values) - 1)), 0])
    opaque = np.where(values == chosen, 0, 255)
    close(
        read_image(stored(Image.fromarray(values), "PNG", transparency=chosen)), on_white(gray(values // 256), opaque)
    )


@settings(max_examples=40)
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_video_and_hue_colors_follow_their_formulas(a: int, b: int, c: int) -> None:
    y, cb, cr = a, b - 128, c - 128  # JFIF
    expected = np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)
    close(read_image(stored(Image.new("YCbCr", (2, 1), (a, b, c)), "TIFF")), np.tile(expected, (1, 2, 1)), within=2)
    expected = np.array(colorsys.hsv_to_rgb(a / 255, b / 255, c / 255)) * 255
    close(as_rgb(Image.new("HSV", (2, 1), (a, b, c)), "it"), np.tile(expected, (1, 2, 1)), within=3)
    padded = Image.merge("RGBX", [Image.new("L", (2, 1), each) for each in (a, b, c, 77)])
    close(read_image(stored(padded, "TIFF")), np.tile(np.array([a, b, c]), (1, 2, 1)))


@pytest.mark.parametrize("orientation", STORED)
@settings(max_examples=40)
@given(colors=COLORS)
def test_images_are_upright(orientation: int, colors: np.ndarray) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](colors)))
    for kind, options in (
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True, "exact": True}),
    ):
        close(read_image(stored(image, kind, exif=turned(orientation), **options)), colors)


@pytest.mark.parametrize("orientation", STORED)
def test_a_file_that_can_be_mapped_into_memory_is_upright(orientation: int, tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](values)))
    image.save(tmp_path / "one.tiff", exif=turned(orientation))
    close(read_image(tmp_path / "one.tiff"), gray(values))


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_are_upright(orientation: int) -> None:
    colors = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 1)), np.ones((16, 16, 3))).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](colors)))
    close(read_image(stored(image, "JPEG", quality=95, exif=turned(orientation))), colors, within=4)


def test_an_image_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    from diffusers.utils import load_image

    colors = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    for orientation in STORED:
        Image.fromarray(colors).save(tmp_path / "photo.png", exif=turned(orientation))
        close(read_image(tmp_path / "photo.png"), np.asarray(load_image(str(tmp_path / "photo.png"))))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_a_file_of_several_images_is_refused(kind: str) -> None:
    first, *rest = (Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue"))
    with pytest.raises(InputError, match=r"contains 3 images, .*Save that one"):
        read_image(stored(first, kind, save_all=True, append_images=rest))


def test_of_a_camera_s_further_images_the_first_is_the_photograph() -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    close(read_image(stored(first, "MPO", save_all=True, append_images=[second])), np.full((8, 8, 3), (200, 0, 0)), 3)


@pytest.mark.parametrize(
    ("mode", "kind", "says"),
    [
        ("CMYK", "TIFF", "ink, whose colors depend on a profile"),
        ("CMYK", "JPEG", "ink, whose colors depend on a profile"),
        ("LAB", "TIFF", "white point"),
        ("I", "TIFF", "32-bit whole numbers"),
        ("RGB", "ICO", "cannot be read: .*Images are PNG, JPEG"),
        ("RGB", "EPS", "cannot be read: .*Images are PNG, JPEG"),
    ],
)
def test_what_has_no_known_meaning_is_refused_in_words(mode: str, kind: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(stored(Image.new(mode, (16, 16)), kind))
    with pytest.raises(InputError, match=f"the image '{path}' .*{says}"):
        read_image(path)


def test_files_that_are_damaged_or_missing_are_refused_in_words(tmp_path: Path) -> None:
    whole = stored(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)), "PNG")
    for data in (b"", whole[:8], whole[:60], whole[:-300], b"text"):
        with pytest.raises(InputError, match="the image cannot be read"):
            read_image(data)
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"the image {str(path)!r} cannot be read")):
            read_image(path)


def test_the_table_of_modes_says_what_happens_to_each() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Conversion of pixels")[2].partition("## Interpret")[0]
    said = {}
    for row in re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE):
        said |= dict.fromkeys(re.findall(r"`([^`]+)`", row[0]), row[1:])
    every = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
    assert set(said) == {*every, *SIXTEEN_BITS}
    for mode, (image, _) in said.items():
        try:
            as_rgb(Image.new(mode, (2, 2)), "it")
            assert image.startswith("accepted"), mode
        except InputError:
            assert image.startswith("rejected"), mode
