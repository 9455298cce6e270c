"""Masks from files against planted subjects: every mode, palette, opacity, orientation and kind of value."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from image_files import DOCUMENT, STORED, stored, turned
from PIL import Image
from two_runs import captured

from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.masks.mask_file import RULES, Mask, mask_in, read_mask
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import select
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.files.images import SIXTEEN_BITS
from fewchannels.runs.sql.catalog import Catalog

SUBJECT = np.zeros((6, 8), bool)
SUBJECT[1:4, 2:7] = True
VOC = np.zeros((256, 3), np.uint8)  # its colors have the bits of the label, from the highest down
for label in range(256):
    for bit in range(8):
        VOC[label, bit % 3] |= (label >> bit & 1) << 7 - bit // 3

masks = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(lambda shape: arrays(np.bool_, shape))
parted = masks.filter(lambda mask: mask.any() and not mask.all())
some = settings(max_examples=30)


def read(data: bytes, folder: Path) -> Mask:
    (folder / "mask").write_bytes(data)
    return read_mask(folder / "mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


def indexed(indices: np.ndarray, colors: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(np.asarray(colors, np.uint8).ravel().tolist())
    return image


def says(mask: Mask, expected: np.ndarray, rule: str) -> None:
    np.testing.assert_array_equal(mask.pixels, expected)
    assert mask.rule == rule


@some
@given(mask=masks)
def test_black_and_white_is_read_in_every_mode_and_format(mask: np.ndarray, folder: Path) -> None:
    gray = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    for kind in ("PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"):
        if kind == "GIF" and mask.all():  # one color under index 0, which is refused
            continue
        says(
            read(stored(gray, kind, **({"lossless": True} if kind == "WEBP" else {})), folder), mask, "black_and_white"
        )
    for image in (Image.fromarray(mask), gray.convert("RGB"), gray.convert("RGBA"), gray.convert("LA")):
        says(read(stored(image, "PNG"), folder), mask, "black_and_white")
    for mode in (*SIXTEEN_BITS, "RGBX", "YCbCr", "HSV", "PA", "La", "RGBa"):
        if mode in SIXTEEN_BITS:
            image = Image.frombytes(mode, gray.size, np.where(mask, 65535, 0).astype("u2").tobytes())
        elif mode in ("La", "RGBa"):
            image = gray.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
        else:
            image = (
                gray.convert("RGB").convert("P").convert("PA") if mode == "PA" else gray.convert("RGB").convert(mode)
            )
        says(mask_in(image, "it", lossless=True), mask, "black_and_white")


@some
@given(mask=masks)
def test_a_jpeg_of_black_and_white_is_soft_and_its_subject_that(mask: np.ndarray, folder: Path) -> None:
    large = np.kron(mask, np.ones((16, 16))) > 0
    found = read(stored(Image.fromarray(np.where(large, 255, 0).astype(np.uint8)), "JPEG", quality=90), folder)
    np.testing.assert_array_equal(found.pixels, large)


@some
@given(mask=parted, swapped=st.booleans())
def test_a_palette_of_grays_goes_by_its_colors_whatever_their_indices(
    mask: np.ndarray, swapped: bool, folder: Path
) -> None:
    gray = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    quantized = gray.convert("RGB").quantize(2)
    adapted = gray.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    web, ramp = gray.convert("RGB").convert("P"), gray.convert("P")
    white_first = indexed(~mask, [[255] * 3, [0] * 3])
    for image in (quantized, adapted, web, ramp, white_first):
        for kind in ("PNG", "GIF", "TIFF"):
            says(read(stored(image, kind), folder), mask, "black_and_white")
    says(read(stored(quantized, "PNG", optimize=True), folder), mask, "black_and_white")
    four = indexed(np.where(mask, 2, 0) + np.indices(mask.shape).sum(0) % 2, np.repeat([[9, 30, 200, 240]], 3, 0).T)
    says(read(stored(four, "PNG"), folder), mask, "soft")
    order = [3, 0, 2, 1] if swapped else [2, 3, 0, 1]  # the same colors under other indices
    shuffled = indexed(np.argsort(order)[np.asarray(four)], np.repeat([[9, 30, 200, 240]], 3, 0).T[order])
    says(read(stored(shuffled, "PNG"), folder), mask, "soft")


@some
@given(mask=masks, drawn=st.data())
def test_labels_under_colors_are_the_subject_but_for_0(mask: np.ndarray, drawn: st.DataObject, folder: Path) -> None:
    labels = np.where(mask, drawn.draw(arrays(np.uint8, mask.shape, elements=st.integers(1, 20))), 0)
    used = set(np.unique(labels)) - {0}
    for colors in (VOC, np.zeros((256, 3), np.uint8)):
        image = indexed(labels, colors)
        if used <= {7} or mask.all():  # the used colors are gray or one: they may say something else than labels
            continue
        np.testing.assert_array_equal(read(stored(image, "PNG"), folder).pixels, mask)


@pytest.mark.parametrize("value", [1, 7, 100])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_label_is_the_subject(value: int, dtype: type, folder: Path) -> None:
    for kind in ("PNG", "TIFF"):
        image = Image.fromarray(np.where(SUBJECT, value, 0).astype(dtype))
        says(read(stored(image, kind), folder), SUBJECT, "labels")


def test_one_color_on_black_is_the_subject(folder: Path) -> None:
    image = Image.fromarray(np.where(SUBJECT[..., None], (128, 0, 0), (0, 0, 0)).astype(np.uint8))
    says(read(stored(image, "PNG"), folder), SUBJECT, "labels")


def test_values_near_white_alone_are_all_subject(folder: Path) -> None:
    values = np.where(SUBJECT, 255, 250).astype(np.uint8)
    says(read(stored(Image.fromarray(values), "PNG"), folder), np.ones_like(SUBJECT), "soft")


def test_white_on_transparent_black_is_a_cut_out_of_the_white(folder: Path) -> None:
    image = keyed(Image.fromarray(np.where(SUBJECT, 255, 0).astype(np.uint8)), 0)
    says(read(stored(image, "PNG"), folder), SUBJECT, "cut_out")


@some
@given(values=arrays(np.uint8, (9, 11)))
def test_a_soft_map_is_cut_at_half_of_white(values: np.ndarray, folder: Path) -> None:
    values = np.concatenate([values, np.arange(33, dtype=np.uint8).reshape(3, 11) * 7])  # 33 values or more
    says(read(stored(Image.fromarray(values), "PNG"), folder), values >= 128, "soft")
    wide = values.astype(np.uint16) * 257
    says(read(stored(Image.fromarray(wide), "PNG"), folder), values >= 128, "soft")


@pytest.mark.parametrize("low", [3, 100])
def test_two_soft_values_are_cut_at_half(low: int, folder: Path) -> None:
    values = np.where(SUBJECT, 160, low).astype(np.uint8)
    says(read(stored(Image.fromarray(values), "PNG"), folder), SUBJECT, "soft")


def test_a_soft_map_without_a_subject_has_none(folder: Path) -> None:
    nothing = np.zeros(SUBJECT.shape, bool)
    many = np.arange(48, dtype=np.uint8).reshape(SUBJECT.shape)
    says(read(stored(Image.fromarray(many), "PNG"), folder), nothing, "soft")


@some
@given(mask=parted, opacity=st.integers(0, 255), colors=st.data())
def test_what_is_opaque_in_a_cut_out_is_the_subject(
    mask: np.ndarray, opacity: int, colors: st.DataObject, folder: Path
) -> None:
    pixels = colors.draw(arrays(np.uint8, (*mask.shape, 3), elements=st.integers(1, 254)))
    image = Image.fromarray(np.dstack([pixels, np.where(mask, 255, 0).astype(np.uint8)]), "RGBA")
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        says(read(stored(image, kind, **options), folder), mask, "cut_out")
    indices = np.where(mask, 1 + pixels[..., 0] % 9, 0)
    says(read(stored(indexed(indices, VOC), "PNG", transparency=0), folder), mask, "cut_out")
    says(read(stored(indexed(indices, VOC), "GIF", transparency=0), folder), mask, "cut_out")
    sixteen = Image.fromarray(np.where(mask, 300 + pixels[..., 0].astype(np.uint16), 5).astype(np.uint16))
    says(read(stored(sixteen, "PNG", transparency=5), folder), mask, "cut_out")


@some
@given(kinds=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(4, 8)), elements=st.integers(0, 2)))
def test_what_a_file_does_not_know_is_neither_subject_nor_background(kinds: np.ndarray, folder: Path) -> None:
    kinds[0, :3] = 0, 1, 2
    if (kinds == 2).sum() > (kinds == 1).sum():  # so much of white may be the subject, and is refused
        kinds = np.array([0, 2, 1], np.uint8)[kinds]
    kinds = np.kron(kinds, np.ones((3, 3), np.uint8))
    subject, known = kinds == 1, kinds != 2
    for image, rule in (
        (Image.fromarray(np.array([0, 15, 255], np.uint8)[kinds]), "labels"),
        (Image.fromarray(np.array([0, 1, 65535], np.uint16)[kinds]), "labels"),
        (indexed(np.array([0, 15, 255])[kinds], VOC), "labels"),
        (Image.fromarray(np.array([0, 255, 128], np.uint8)[kinds]), "trimap"),
        (Image.fromarray(np.array([0, 255, 127], np.uint8)[kinds]), "trimap"),
    ):
        found = read(stored(image, "PNG"), folder)
        says(found, subject, rule)
        np.testing.assert_array_equal(found.known, known)
        twice = found.at(2 * kinds.shape[0], 2 * kinds.shape[1], "it")
        np.testing.assert_array_equal(twice.known, np.kron(known, np.ones((2, 2))))


@pytest.mark.parametrize("orientation", STORED)
@some
@given(mask=masks)
def test_masks_are_upright(orientation: int, mask: np.ndarray, folder: Path) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.where(mask, 255, 0).astype(np.uint8))))
    for kind in ("PNG", "TIFF"):
        says(read(stored(image, kind, exif=turned(orientation)), folder), mask, "black_and_white")


def label_map(*values: int) -> np.ndarray:
    """Bands of 4 x 4 pixels."""
    return np.kron(np.array([values], np.uint8), np.ones((4, 4), np.uint8))


def with_opacity(values: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", [Image.fromarray(values), Image.fromarray(alpha)])


def keyed(image: Image.Image, transparent: int) -> Image.Image:
    """With one index or gray that is transparent."""
    image.info["transparency"] = transparent
    return image


WHITE_DOT = np.zeros((16, 16), np.uint8)
WHITE_DOT[0, 15] = 255

REFUSED = {
    "two to 31 values, none above half": [
        (Image.fromarray(label_map(1, 2)), "PNG", "several labels, or a soft mask"),
        (Image.fromarray(label_map(3, 100)), "PNG", "several labels, or a soft mask"),
        (Image.fromarray(label_map(0, 1, 2, 3)), "PNG", "several labels, or a soft mask"),
        (Image.fromarray(label_map(0, 20, 120)), "PNG", "several labels, or a soft mask"),
    ],
    "two to 31 values, none of them up to half, and not all near white": [
        (Image.fromarray(label_map(128, 255)), "PNG", "several labels, or a soft mask"),
        (Image.fromarray(label_map(200, 210, 255)), "PNG", "several labels, or a soft mask"),
    ],
    "three to 31 values, one of them between dark and bright and filling areas": [
        (Image.fromarray(label_map(0, 33, 255)), "PNG", "several labels, or a soft mask"),
        (Image.fromarray(label_map(0, 60, 130, 200)), "PNG", "several labels, or a soft mask"),
    ],
    "0, values of 1 to 31, and more pixels of 255; or the values of 1 to 31 fill no area": [
        (Image.fromarray(label_map(0, 15, 255, 255)), "PNG", "255 could be the subject"),
        (
            Image.fromarray(np.where(SUBJECT, 255, np.eye(6, 8) * 2).astype(np.uint8)),
            "PNG",
            "255 could be the subject",
        ),
        (
            Image.fromarray(np.kron(np.eye(8) * 9, np.ones((2, 2))).astype(np.uint8) + WHITE_DOT),
            "PNG",
            "unknown rim",
        ),
    ],
    "one value that is neither 0 nor near white": [
        (Image.new("L", (8, 8), 200), "PNG", "is 200 everywhere"),
        (Image.new("L", (8, 8), 1), "PNG", "is 1 everywhere"),
        (Image.new("I;16", (8, 8), 3), "PNG", "is 3 everywhere"),
    ],
    "labels in a JPEG or WebP": [
        (Image.fromarray(label_map(0, 6, 0)), "WEBP", "do not survive"),
        (Image.fromarray(np.kron(label_map(0, 9, 0), np.ones((8, 8), np.uint8))), "JPEG", "do not survive"),
    ],
    "a palette of colors whose index 0 is not black, or with black at another index too": [
        (indexed(label_map(0, 1), [[200, 0, 0], [0, 0, 0]]), "PNG", "without black at index 0"),
        (indexed(label_map(0, 1), [[255, 255, 255], [200, 0, 0]]), "PNG", "without black at index 0"),
        (indexed(label_map(0, 1, 2), [[0, 0, 0], [200, 0, 0], [0, 0, 0]]), "PNG", "without black at index 0"),
        (indexed(label_map(1, 2), [[0, 0, 0], [200, 0, 0], [200, 0, 0]]), "PNG", "no pixel of index 0"),
    ],
    "a palette of dark grays that differ from their indices": [
        (indexed(label_map(0, 1, 2), [[0] * 3, [20] * 3, [70] * 3]), "PNG", "dark grays"),
    ],
    "one color, whose index means the opposite": [
        (indexed(label_map(0), [[255] * 3]), "PNG", "one color"),
        (indexed(label_map(2), [[0] * 3] * 3), "PNG", "one color"),
    ],
    "several colors without a palette": [
        (Image.fromarray(VOC[label_map(0, 1, 2)]), "PNG", "is in color"),
        (Image.fromarray(np.where(SUBJECT[..., None], (255, 0, 0), 255).astype(np.uint8)), "PNG", "is in color"),
    ],
    "black and white together with transparency": [
        (with_opacity(label_map(0, 255, 9), label_map(255, 255, 0)), "PNG", "both the transparency and the colors"),
    ],
    "black together with a transparent color that is white": [
        (keyed(indexed(label_map(0, 1), [[255] * 3, [0] * 3]), 0), "PNG", "black beside transparent white"),
        (keyed(Image.fromarray(label_map(0, 255)), 255), "PNG", "black beside transparent white"),
    ],
}


def rows_of(section: str, column: str) -> list[str]:
    text = DOCUMENT.read_text(encoding="utf-8").partition(section)[2]
    table = text.partition(column)[2].partition("\n\n")[0]
    return [row.split(" | ")[0].removeprefix("| ") for row in table.splitlines()[2:]]


def test_the_tables_of_the_document_are_those_that_are_tested() -> None:
    assert rows_of("## Interpretation of masks", "values of the mask | possible interpretations") == list(REFUSED)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall(r"\| `(\w+)` \|$", text, re.MULTILINE)) == set(RULES)
    assert all(f"`n_{rule}`" in text for rule in RULES)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_two_readings_is_refused_with_the_remedy(reason: str, folder: Path) -> None:
    for image, kind, text in REFUSED[reason]:
        options = {"lossless": True} if kind == "WEBP" else {}
        with pytest.raises(InputError, match=rf"the mask '.*mask' .*{text}.* 255 where the subject is and 0 elsewhere"):
            read(stored(image, kind, **options), folder)


@pytest.mark.parametrize(
    ("mode", "says"),
    [("F", "floating-point"), ("I", "32-bit"), ("CMYK", "amounts of ink"), ("LAB", "white point")],
)
def test_modes_that_are_no_masks_are_refused(mode: str, says: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"the mask .*{says}"):
        read(stored(Image.new(mode, (4, 4)), "TIFF"), folder)


def test_opacity_that_is_the_same_everywhere_but_not_full_is_refused(folder: Path) -> None:
    for alpha in (0, 128):
        image = with_opacity(label_map(0, 255), np.full((4, 8), alpha, np.uint8))
        with pytest.raises(InputError, match=f"has the same transparency everywhere \\({alpha} of 255\\)"):
            read(stored(image, "PNG"), folder)


@some
@given(height=st.integers(4, 40), width=st.integers(4, 40), times=st.integers(1, 5))
def test_a_mask_of_its_image_s_shape_is_brought_to_its_size_and_of_another_refused(
    height: int, width: int, times: int
) -> None:
    drawn = np.random.default_rng(height * width).random((height, width)) > 0.5
    mask = Mask(drawn, "black_and_white")
    larger = mask.at(height * times, width * times, "it").pixels
    np.testing.assert_array_equal(larger, np.kron(drawn, np.ones((times, times))))
    assert mask.at(round(height / 2), round(width / 2), "it").pixels.shape == (round(height / 2), round(width / 2))
    with pytest.raises(InputError, match="a different shape"):
        mask.at(height, width * 2, "it")
    if abs(height - width) > 4:
        with pytest.raises(InputError, match=f"{width} x {height} pixels .* its image has {height} x {width}.*rotated"):
            mask.at(width, height, "it")


def test_a_run_s_masks_say_by_which_rule_each_was_read_and_what_is_not_known(tmp_path: Path, tiny_model: Path) -> None:
    drawn = np.zeros((16, 16), np.uint8)
    drawn[:8] = 255
    labels, void = drawn // 255, drawn.copy()
    void[:8], void[8:12] = 1, 255
    alpha = np.dstack([np.full((16, 16, 3), 90, np.uint8), drawn])
    soft = np.arange(256, dtype=np.uint8).reshape(16, 16)[::-1]
    values = {"drawn": drawn, "labels": labels, "void": void, "alpha": alpha, "soft": soft, "small": drawn[::2, ::2]}
    values |= {"several": np.arange(4, dtype=np.uint8).repeat(64).reshape(16, 16), "other": drawn[:4]}
    for name, array in values.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    rows = [f"a star,{i},{tmp_path / name}.png" for i, name in enumerate(values)]
    run = captured(tmp_path, "run", tiny_model, rows, "prompt,seed,mask")
    numbers = analyze(SubjectMasks("manifest"), select(str(run)), "masks", Pool(1, 0, 1)).numbers
    assert [numbers[f"n_{rule}"] for rule in RULES] == [2, 2, 1, 0, 1]
    assert [numbers[name] for name in ("n_masks", "n_failed", "n_resized", "n_with_unknown")] == [6, 2, 1, 1]
    with Catalog(run) as catalog:
        asked = "select seed, rule, area, known is null, error from masks_samples join manifest using (sample_id)"
        found = sorted(catalog.sql(asked).fetchall())
    assert [row[1] for row in found[:6]] == [
        "black_and_white",
        "labels",
        "labels",
        "cut_out",
        "soft",
        "black_and_white",
    ]
    assert [row[2] for row in found[:6]] == pytest.approx([0.5, 0.5, 8 / 12, 0.5, 0.5, 0.5])
    assert [row[3] for row in found[:6]] == [True, True, False, True, True, True]
    assert "several labels, or a soft mask" in found[6][4]
    assert "a different shape" in found[7][4]
    of_alignment = analyze(Alignment(k=3, selections=("top",)), select(str(run)), "alignment", Pool(1, 0, 1))
    assert of_alignment.numbers
    with Catalog(run) as catalog:
        of_void = "select distinct mask_area from alignment_samples join manifest using (sample_id) where seed = 2"
        assert catalog.sql(of_void).fetchone() == pytest.approx((8 / 12,))
