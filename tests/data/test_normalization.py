import numpy as np
import pytest
import torch
from samples import make_image
from transformers import (
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    DINOv3ViTImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from singer_hf.data import PixelNormalization


def timm_processor(**config):
    pytest.importorskip("timm")
    from transformers import TimmWrapperImageProcessor

    config = {"input_size": (3, 48, 48), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 1.0} | config
    return TimmWrapperImageProcessor(config, architecture="vit_tiny_patch16_224")


PROCESSORS = {
    "ViT": lambda: ViTImageProcessor(do_resize=False),
    "DINOv2": lambda: BitImageProcessor(
        do_resize=False, crop_size={"height": 48, "width": 48}, image_mean=[0.485, 0.456, 0.406]
    ),
    "CLIP": lambda: CLIPImageProcessor(do_resize=False, do_center_crop=False),
    "SigLIP": lambda: SiglipImageProcessor(size={"height": 48, "width": 48}),
    "BEiT": lambda: BeitImageProcessor(do_resize=False, do_center_crop=False),
    "DINOv3": lambda: DINOv3ViTImageProcessor(size={"height": 48, "width": 48}),
    "timm": timm_processor,
    "not rescaled": lambda: ViTImageProcessor(do_resize=False, do_rescale=False),
    "not normalized": lambda: ViTImageProcessor(do_resize=False, do_normalize=False),
    "other factor": lambda: ViTImageProcessor(do_resize=False, rescale_factor=1 / 127.5),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_the_image_processor(name):
    processor = PROCESSORS[name]()
    image = make_image(0, (48, 48))
    expected = processor(image, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    found = PixelNormalization.from_image_processor(processor)(pixels)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


def test_float_pixels_give_what_uint8_pixels_give():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    normalization = PixelNormalization.imagenet()
    found = normalization(pixels.double())
    assert found.dtype == torch.float32 and torch.equal(found, normalization(pixels))


def test_imagenet_values():
    black = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    expected = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(PixelNormalization.imagenet()(black).flatten(), expected)


def test_buffers_are_not_saved_but_move_with_the_module():
    normalization = PixelNormalization.imagenet()
    assert normalization.state_dict() == {}
    assert normalization.to("meta").mean.device.type == "meta"


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 1, 4, 4), (2, 4, 4, 3)])
def test_wrong_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        PixelNormalization.imagenet()(torch.zeros(shape))


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), 0.5), (None, 0.5), (0.5, (0.1, 0.2, 0.0))])
def test_impossible_statistics_are_errors(mean, std):
    with pytest.raises(ValueError, match="expected"):
        PixelNormalization(mean, std)


def test_what_is_no_image_processor_is_an_error():
    with pytest.raises(ValueError, match="expected an image processor"):
        PixelNormalization.from_image_processor(torch.nn.Identity())
