import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from singer_hf.evaluation import AnnotationError
from singer_hf.evaluation.targets import IGNORE, class_mask, depth_map, read_map


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def palette_image(indices: np.ndarray) -> Image.Image:
    """Mode P; colours that have nothing to do with the indices."""
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([(37 * i + 11) % 256 for i in range(768)])
    return image


INDICES = np.arange(12).reshape(3, 4)


@pytest.mark.parametrize(
    "cell",
    [
        Image.fromarray(INDICES.astype(np.uint8)),
        palette_image(INDICES),
        Image.fromarray(INDICES.astype(np.uint16)),
        Image.fromarray(INDICES.astype(np.int32)),
        Image.fromarray(INDICES.astype(np.float32)),
        INDICES,
        INDICES.tolist(),
        INDICES[None],
        INDICES[..., None].tolist(),
        INDICES.astype(np.float64),
    ],
    ids=["L", "P", "I;16", "I", "F", "array", "lists", "1hw", "hw1", "float64"],
)
def test_every_kind_of_map_gives_its_numbers(cell):
    found = read_map(cell)
    assert found.shape == (3, 4) and np.array_equal(found, INDICES)


@pytest.mark.parametrize("image", [Image.fromarray(INDICES.astype(np.uint8)), palette_image(INDICES)])
def test_encoded_maps_give_their_numbers(image, tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(png(image))
    for cell in (png(image), {"bytes": png(image), "path": None}, {"bytes": None, "path": str(path)}):
        assert np.array_equal(read_map(cell), INDICES)


def test_16_bits_are_kept():
    values = np.array([[0, 255, 256], [4000, 40000, 65535]], dtype=np.uint16)
    assert np.array_equal(read_map(png(Image.fromarray(values))), values)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_an_image_without_annotation(cell):
    with pytest.raises(AnnotationError, match="it has no annotation.*filter.*target_column"):
        read_map(cell)


@pytest.mark.parametrize(
    "cell",
    [
        b"no image at all",
        png(Image.fromarray(INDICES.astype(np.uint8)))[:-30],
        {"bytes": None, "path": "/no.png"},
    ],
    ids=["garbage", "cut", "no file"],
)
def test_an_annotation_that_cannot_be_read(cell):
    with pytest.raises(AnnotationError, match="its annotation cannot be read"):
        read_map(cell)


def test_a_mask_that_was_cut_is_refused_whatever_other_libraries_set(monkeypatch):
    whole = png(Image.fromarray(np.random.default_rng(0).integers(0, 99, (64, 64), dtype=np.uint8)))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_map(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "cell",
    [
        Image.new("RGB", (4, 3)),
        png(Image.new("RGB", (4, 3))),
        Image.new("LA", (4, 3)),
        np.zeros((3, 3, 4)),
        np.zeros(12),
        3,
        [["a", "b"]],
        np.zeros((3, 4), dtype=complex),
    ],
    ids=["RGB", "encoded RGB", "LA", "3hw", "flat", "number", "text", "complex"],
)
def test_what_is_not_one_channel_of_numbers_is_refused(cell):
    with pytest.raises(AnnotationError, match="its annotation .*expected one"):
        read_map(cell)


def test_lines_of_unequal_length_are_refused():
    with pytest.raises(AnnotationError, match="its annotation"):
        read_map([[1, 2], [3]])


# -- masks ------------------------------------------------------------------------------------------------------------
def mask(values, **options) -> list:
    options = {"num_labels": 3, "ignore_label": None, "reduce_labels": False} | options
    found = class_mask(np.asarray(values), **options)
    assert found.dtype == torch.int16
    return found.tolist()


def test_class_indices_stay_what_they_are():
    assert mask([[0, 1], [2, 2]]) == [[0, 1], [2, 2]]
    assert mask([[0.0, 1.0]]) == [[0, 1]]
    assert mask([[False, True]]) == [[0, 1]]


def test_the_ignored_label_is_masked():
    assert mask([[0, 255], [2, 255]], ignore_label=255) == [[0, IGNORE], [2, IGNORE]]
    assert mask(np.array([[0, -1]]), ignore_label=-1) == [[0, IGNORE]]


def test_a_class_can_be_ignored():
    assert mask([[0, 1, 2]], ignore_label=1) == [[0, IGNORE, 2]]


def test_reduced_labels_are_ade20ks():
    """0 is "other", classes 1 to 150 become 0 to 149."""
    stored = np.array([[0, 1, 2, 150]], dtype=np.uint8)
    assert mask(stored, num_labels=150, reduce_labels=True) == [[IGNORE, 0, 1, 149]]
    both = mask([[0, 1, 255]], num_labels=150, reduce_labels=True, ignore_label=255)
    assert both == [[IGNORE, 0, IGNORE]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[0, 3, 255, 3]], {}, r"indices \[3, 255\]; expected 0 to 2, and no ignore_label is set"),
        ([[0, 3, 255]], {"ignore_label": 255}, r"indices \[3\]; expected 0 to 2 or 255 \(ignore_label\)"),
        ([[0, 1, 4, 255]], {"reduce_labels": True}, r"indices \[4, 255\]; expected 1 to 3, and no"),
        (np.array([[-1, 0]]), {}, r"indices \[-1\]; expected 0 to 2"),
    ],
)
def test_an_index_that_is_no_class(values, options, message):
    with pytest.raises(AnnotationError, match="its annotation holds the class " + message):
        mask(values, **options)


@pytest.mark.parametrize("values", [[[0.5, 1.0]], [[np.nan, 1.0]]])
def test_fractions_are_no_classes(values):
    with pytest.raises(AnnotationError, match="its annotation holds fractions"):
        mask(values)


def test_the_stored_array_is_left_alone():
    values = np.array([[0, 1, 2]], dtype=np.int64)
    mask(values, ignore_label=1)
    assert values.tolist() == [[0, 1, 2]]


# -- depth ------------------------------------------------------------------------------------------------------------
def depth(values, scale=1.0, max_depth=10.0) -> torch.Tensor:
    found = depth_map(np.asarray(values), scale=scale, max_depth=max_depth)
    assert found.dtype == torch.float32
    return found


def test_16_bit_millimetres_become_metres():
    found = depth(np.array([[1500, 10000, 1]], dtype=np.uint16), scale=0.001)
    assert found.tolist()[0] == pytest.approx([1.5, 10.0, 0.001])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_metres(kind):
    assert depth(np.array([[1.5, 0.25]], dtype=kind)).tolist() == [[1.5, 0.25]]


def test_what_is_no_measurement_is_0():
    values = np.array([[2.0, np.nan, 0.0, -1.0], [np.inf, -np.inf, 10.001, 10.0]])
    assert depth(values).tolist() == [[2, 0, 0, 0], [0, 0, 0, 10]]


def test_the_stored_depths_are_left_alone():
    values = np.array([[2.0, -1.0]], dtype=np.float32)
    depth(values)
    assert values.tolist() == [[2, -1]]
