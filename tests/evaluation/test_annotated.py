import datasets
import numpy as np
import pytest
import torch
from datasets import Features
from PIL import Image
from torchvision.transforms import v2

from singer_hf.data import CorruptImageError, MissingColumnError
from singer_hf.evaluation import AnnotationError
from singer_hf.evaluation.annotated import AnnotatedImages
from singer_hf.evaluation.protocol import protocol_for
from singer_hf.evaluation.views import annotated_views

COUNT, SIZE = 4, (24, 32)


def read_target(values):
    return torch.from_numpy(np.asarray(values).astype(np.int16))


def coded(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask of large patches, and an image whose red and green are ten times its mask."""
    mask = np.random.default_rng(seed).integers(0, 20, (3, 4)).repeat(8, 0).repeat(8, 1)
    pixels = np.stack([10 * mask, 10 * mask, np.full_like(mask, 7)], axis=-1)
    return pixels.astype(np.uint8), mask.astype(np.uint8)


def images(encoded_masks: bool = True) -> datasets.Dataset:
    pairs = [coded(seed) for seed in range(COUNT)]
    features = {"image": datasets.Image(), "note": datasets.Value("string")}
    features["annotation"] = datasets.Image() if encoded_masks else datasets.Array2D(SIZE, "uint8")
    return datasets.Dataset.from_dict(
        {
            "image": [Image.fromarray(pixels) for pixels, _ in pairs],
            "note": ["x"] * COUNT,
            "annotation": [Image.fromarray(mask) if encoded_masks else mask for _, mask in pairs],
        },
        features=Features(features),
    )


def annotated(dataset, transform=None, **options) -> AnnotatedImages:
    options = {"image_column": "image", "target_column": "annotation", "read_target": read_target} | options
    return AnnotatedImages(dataset, transform or v2.Identity(), **options)


def of_arrays(pixels: np.ndarray, kind: str) -> datasets.Dataset:
    """One image as an array, and its annotation."""
    size = [side for side in pixels.shape if side != 3][:2]
    return datasets.Dataset.from_dict(
        {"image": [pixels], "annotation": [np.zeros(size)]},
        features=Features(
            {"image": datasets.Array3D(pixels.shape, kind), "annotation": datasets.Array2D(tuple(size), "float32")}
        ),
    )


@pytest.mark.parametrize("encoded_masks", [True, False])
def test_an_item_is_an_image_and_its_annotation(encoded_masks):
    dataset = annotated(images(encoded_masks))
    assert len(dataset) == COUNT
    for index in range(COUNT):
        pixels, mask = coded(index)
        item = dataset[0, index]
        assert item["pixel_values"].dtype == torch.uint8
        assert np.array_equal(item["pixel_values"].permute(1, 2, 0), pixels)
        assert np.array_equal(item["target"], mask)
        assert type(item["pixel_values"]) is type(item["target"]) is torch.Tensor


@pytest.mark.parametrize("protocol", ["default", "paper"])
@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_image_and_annotation_are_transformed_together(protocol, kind):
    """Away from the borders of its patches, each pixel of a view still holds ten times its mask."""
    views = annotated_views((48, 48), protocol_for("paper", kind), augmented=protocol == "paper", seed=0)
    dataset, seen = annotated(images(), views.transform), set()
    for view in range(3):
        for index in range(COUNT):
            item = dataset[view, index]
            target, red = item["target"].float(), item["pixel_values"][0].float()
            assert target.shape == red.shape == (48, 48) and item["target"].dtype == torch.int16
            window = target[None, None]
            greatest = torch.nn.functional.max_pool2d(window, 7, 1, 3)[0, 0]
            least = -torch.nn.functional.max_pool2d(-window, 7, 1, 3)[0, 0]
            inside = greatest == least
            assert inside.float().mean() > 0.05
            assert (red[inside] - 10 * target[inside]).abs().max() <= 1
            seen.add(tuple(target.flatten().tolist()))
    assert len(seen) == (3 * COUNT if protocol == "paper" else COUNT)


def test_a_view_is_determined_by_seed_view_and_index():
    transform = v2.RandomCrop(8)

    def view(seed, view, index):
        item = annotated(images(), transform, seed=seed)[view, index]
        return tuple(item["pixel_values"].flatten().tolist()), tuple(item["target"].flatten().tolist())

    first = view(0, 1, 2)
    torch.rand(5)
    assert view(0, 1, 2) == first
    assert len({view(seed, v, 2) for seed in (0, 1, 2) for v in (0, 1, 2)}) > 4


def test_drawing_a_view_leaves_torchs_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    _ = annotated(images(), v2.RandomCrop(8))[0, 0]
    assert torch.equal(torch.rand(1), expected)


def test_a_square_in_the_middle():
    views = annotated_views((24, 24), protocol_for("paper", "depth"), augmented=False, seed=0)
    item = annotated(images(), views.transform)[0, 1]
    assert np.array_equal(item["target"], coded(1)[1][:, 4:28])
    assert torch.equal(item["pixel_values"][0], 10 * item["target"])


# -- arrays for images ------------------------------------------------------------------------------------------------
def test_arrays_of_floats_as_of_nyu():
    pixels = np.random.default_rng(0).random((3, 6, 8), dtype=np.float32)
    found = annotated(of_arrays(pixels, "float32"))[0, 0]["pixel_values"]
    assert found.dtype == torch.uint8
    assert np.array_equal(found, (pixels.astype(np.float64) * 255).round())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "int32"])
def test_arrays_of_integers_in_both_orders(channels_last, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 8))
    stored = pixels.transpose(1, 2, 0) if channels_last else pixels
    assert np.array_equal(annotated(of_arrays(stored.astype(kind), kind))[0, 0]["pixel_values"], pixels)


@pytest.mark.parametrize(
    ("pixels", "kind", "message"),
    [
        (np.full((3, 4, 5), 1.5), "float32", "floats outside 0 to 1; expected 0 to 1, or uint8"),
        (np.full((3, 4, 5), -0.1), "float32", "floats outside 0 to 1"),
        (np.full((3, 4, 5), np.nan), "float32", "floats outside 0 to 1"),
        (np.full((3, 4, 5), 256), "int32", "integers outside 0 to 255"),
        (np.full((3, 4, 5), -1), "int32", "integers outside 0 to 255"),
        (np.zeros((4, 5, 6)), "float32", r"shape \(4, 5, 6\); expected \(3, h, w\) or \(h, w, 3\)"),
    ],
)
def test_arrays_that_are_no_images(pixels, kind, message):
    dataset = datasets.Dataset.from_dict(
        {"image": [pixels], "annotation": [np.zeros((4, 5))]},
        features=Features(
            {"image": datasets.Array3D(pixels.shape, kind), "annotation": datasets.Array2D((4, 5), "float32")}
        ),
    )
    with pytest.raises(CorruptImageError, match="Image 0 is an array of .*" + message):
        annotated(dataset)[0, 0]


# -- bad input --------------------------------------------------------------------------------------------------------
def replaced(column: str, index: int, cell) -> datasets.Dataset:
    data = images().cast_column("image", datasets.Image(decode=False))
    rows = [data.cast_column("annotation", datasets.Image(decode=False))[i] for i in range(COUNT)]
    rows[index] = rows[index] | {column: cell}
    return datasets.Dataset.from_list(rows, features=images().features)


def test_a_missing_annotation_names_its_image():
    dataset = annotated(replaced("annotation", 2, None))
    assert dataset[0, 1]["target"].shape == SIZE
    with pytest.raises(AnnotationError, match="Image 2: it has no annotation"):
        dataset[0, 2]


def test_a_mask_of_another_size_than_its_image():
    with pytest.raises(AnnotationError, match="Image 3 has 24x32 pixels .height x width., but its annotation 32x24"):
        annotated(replaced("annotation", 3, Image.new("L", (24, 32))))[0, 3]


def test_a_mask_of_three_channels():
    with pytest.raises(AnnotationError, match="Image 1: its annotation .* has 3 channels .mode RGB.; expected one"):
        annotated(replaced("annotation", 1, Image.new("RGB", (32, 24))))[0, 1]


@pytest.mark.parametrize("cell", [None, {"bytes": b"no image", "path": None}])
def test_an_image_that_cannot_be_read(cell):
    with pytest.raises(CorruptImageError, match="Image 0 .*cannot be read"):
        annotated(replaced("image", 0, cell))[0, 0]


@pytest.mark.parametrize(("option", "other"), [("image_column", "photo"), ("target_column", "mask")])
def test_a_column_that_is_not_there_is_found_at_once(option, other):
    with pytest.raises(MissingColumnError, match=f"no column '{other}'.*Set {option}"):
        annotated(images(), **{option: other})
