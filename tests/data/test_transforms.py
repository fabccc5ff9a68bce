import numpy as np
import pytest
import torch
from PIL import Image
from samples import make_image
from torchvision.transforms import v2

from singer_hf.data import eval_transform, seeded, train_transform


def coordinates(width: int = 120, height: int = 100) -> Image.Image:
    """Red is x, green is y: a view of it shows where it was taken."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1))


@pytest.mark.parametrize("transform", [train_transform, eval_transform])
@pytest.mark.parametrize("size", [24, (24, 16), (16, 40)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_view_is_uint8_of_the_asked_size(transform, size, mode):
    view = transform(size)(make_image(0).convert(mode))
    expected = (3, size, size) if isinstance(size, int) else (3, *size)
    assert view.shape == expected and view.dtype == torch.uint8


@pytest.mark.parametrize("seed", range(8))
def test_two_sizes_see_the_same_crop_mirrored_alike(seed):
    views = []
    for size in (32, 64):
        with seeded(seed):
            views.append(train_transform(size)(coordinates()))
    small, large = views[0].float(), torch.nn.functional.avg_pool2d(views[1].float(), 2)
    assert (small - large).abs().max() <= 2  # an image linear in x and y: only rounding and the border differ


def test_seeds_give_different_crops():
    views = []
    for seed in range(2):
        with seeded(seed):
            views.append(train_transform(32)(coordinates()))
    assert not torch.equal(*views)


def test_crop_covers_at_least_min_scale():
    for seed in range(20):
        with seeded(seed):
            view = train_transform(64, min_scale=0.5, flip=0)(coordinates()).float()
        width, height = (view[channel].max() - view[channel].min() + 1 for channel in (0, 1))
        assert width * height >= 0.45 * 120 * 100


@pytest.mark.parametrize(("flip", "falling"), [(0.0, False), (1.0, True)])
def test_flip_is_its_probability(flip, falling):
    for seed in range(5):
        with seeded(seed):
            view = train_transform(32, flip=flip)(coordinates()).int()
        assert (view[0, 0, 0] > view[0, 0, -1]).item() is falling


def test_test_protocol_is_resize_256_crop_224():
    image = make_image(0, (300, 280))
    expected = v2.Compose([v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(224)])(image)
    assert torch.equal(eval_transform(224)(image), expected)


@pytest.mark.parametrize("image_size", [(97, 61), (61, 97), (640, 425), (50, 50)])
def test_square_test_protocol_resizes_as_torchvision_does(image_size):
    image = make_image(0, image_size)
    expected = v2.Compose([v2.PILToTensor(), v2.Resize(54), v2.CenterCrop(48)])(image)
    assert torch.equal(eval_transform(48)(image), expected)


@pytest.mark.parametrize("image_size", [(40, 32), (32, 40), (400, 20), (20, 400)])
def test_test_view_is_never_padded(image_size):
    white = Image.new("RGB", image_size, "white")
    assert eval_transform((20, 60))(white).min() == 255


@pytest.mark.parametrize("options", [{"min_scale": 0}, {"min_scale": 1.5}, {"flip": -0.1}, {"flip": 2}])
def test_options_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match="expected"):
        train_transform(32, **options)


@pytest.mark.parametrize("size", [0, (32, -1)])
def test_size_must_be_positive(size):
    with pytest.raises(ValueError, match="positive"):
        eval_transform(size)
