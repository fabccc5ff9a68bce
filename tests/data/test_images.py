import warnings

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile
from samples import encoded, make_image

from singer_hf.data import CorruptImageError, ImageColumnError
from singer_hf.data.images import load_rgb, to_rgb


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "YCbCr", "1"])
def test_every_mode_becomes_rgb_as_pil_converts_it(mode):
    image = make_image(0).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(to_rgb(image)), expected)


def test_palette_with_transparency_converts_without_a_warning():
    image = make_image(0).convert("P")
    image.info["transparency"] = bytes(range(200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_rgb(image).mode == "RGB"


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32"])
def test_sixteen_bit_gray_keeps_its_upper_byte(dtype):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=dtype)
    image = Image.frombytes("I;16B", (5, 1), values.tobytes()) if dtype == ">u2" else Image.fromarray(values)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_png_file_loads():
    values = np.full((4, 4), 40000, dtype=np.uint16)
    image = load_rgb(encoded(Image.fromarray(values), "PNG"), "Image 0")
    assert np.asarray(image).tolist() == np.full((4, 4, 3), 40000 >> 8).tolist()


def test_float_image_is_refused():
    with pytest.raises(CorruptImageError, match="mode F"):
        load_rgb(make_image(0).convert("F"), "Image 0")


def test_exif_orientation_is_applied_as_datasets_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    make_image(0).save(tmp_path / "turned.jpg", exif=exif)
    theirs = datasets.Image().decode_example({"path": str(tmp_path / "turned.jpg"), "bytes": None})
    ours = load_rgb({"path": str(tmp_path / "turned.jpg"), "bytes": None}, "Image 0")
    assert ours.size == (32, 40) and np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(
    ("cell", "cause"),
    [
        (encoded(make_image(0))[:-200], "truncated"),
        (encoded(make_image(0), "PNG")[:-200], ""),
        (b"no image", "cannot identify"),
        (b"", "0 bytes"),
        ({"bytes": b"", "path": None}, "0 bytes"),
        (None, "empty"),
        ({"bytes": None, "path": None}, "empty"),
        ({"bytes": None, "path": "missing.jpg"}, "missing.jpg"),
    ],
)
def test_unreadable_image_names_sample_cause_and_option(cell, cause):
    with pytest.raises(CorruptImageError, match=f"(?s)^Image 7.*{cause}.*skip_corrupt_images=True"):
        load_rgb(cell, "Image 7")


def test_truncated_jpeg_is_found_although_another_library_allows_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(CorruptImageError, match="truncated"):
        load_rgb(encoded(make_image(0))[:-200], "Image 0")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_path_is_named(tmp_path):
    (tmp_path / "half.jpg").write_bytes(encoded(make_image(0))[:-200])
    with pytest.raises(CorruptImageError, match=r"half\.jpg"):
        load_rgb({"bytes": None, "path": str(tmp_path / "half.jpg")}, "Image 0")


@pytest.mark.parametrize("cell", ["a/path.jpg", 3, {"text": "x"}])
def test_a_value_that_can_be_no_image_is_no_corrupt_image(cell):
    with pytest.raises(ImageColumnError, match="image_column"):
        load_rgb(cell, "Image 0")
