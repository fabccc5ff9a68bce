import json

import pytest
import torch
from families import tiny_model
from samples import make_image
from test_normalization import timm_processor
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    DINOv3ViTImageProcessor,
    SiglipImageProcessor,
    ViTConfig,
    ViTImageProcessor,
)

from singer_hf.data import PixelNormalization, input_size, processor_for, processor_to_save

PROCESSORS = {
    "ViT": (ViTImageProcessor, (224, 224)),
    "oblong": (lambda: ViTImageProcessor(size={"height": 96, "width": 160}), (96, 160)),
    "DINOv2": (lambda: BitImageProcessor(size={"shortest_edge": 256}), (224, 224)),
    "CLIP": (CLIPImageProcessor, (224, 224)),
    "shortest edge alone": (lambda: CLIPImageProcessor(size={"shortest_edge": 96}, do_center_crop=False), (96, 96)),
    "resized square, cropped": (lambda: BitImageProcessor(size={"height": 256, "width": 256}), (224, 224)),
    "SigLIP": (SiglipImageProcessor, (224, 224)),
    "DINOv3": (DINOv3ViTImageProcessor, (224, 224)),
    "timm": (lambda: timm_processor(crop_pct=0.9), (48, 48)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_input_size_is_what_the_model_gets(name):
    make, expected = PROCESSORS[name]
    image = make_image(0, (300, 300))
    assert input_size(make()) == expected
    assert make()(image, return_tensors="pt")["pixel_values"].shape[-2:] == expected


@pytest.mark.parametrize("size", [64, (64, 64), (64, 96)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_copy_gives_the_asked_size(name, size):
    copy = processor_for(PROCESSORS[name][0](), size=size)
    expected = (size, size) if isinstance(size, int) else size
    assert input_size(copy) == expected
    assert copy(make_image(0, (300, 300)), return_tensors="pt")["pixel_values"].shape[-2:] == expected


def test_copy_keeps_its_own_format_and_the_ratio_of_resize_and_crop():
    copy = processor_for(BitImageProcessor(size={"shortest_edge": 256}), size=112).to_dict()
    assert copy["size"] == {"shortest_edge": 128} and copy["crop_size"] == {"height": 112, "width": 112}


def test_the_original_does_not_change():
    processor = ViTImageProcessor()
    before = processor.to_dict()
    processor_for(processor, size=64, normalization=PixelNormalization.imagenet())
    assert processor.to_dict() == before


@pytest.mark.parametrize("name", PROCESSORS)
def test_copy_normalizes_as_asked(name):
    copy = processor_for(PROCESSORS[name][0](), normalization=PixelNormalization((0.1, 0.2, 0.3), 0.7))
    found = PixelNormalization.from_image_processor(copy)
    assert found.image_mean == (0.1, 0.2, 0.3) and found.image_std == (0.7, 0.7, 0.7)
    black = copy(make_image(0, (300, 300)).point(lambda _: 0), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(black[0, :, 0, 0], torch.tensor([-1 / 7, -2 / 7, -3 / 7]))


def test_copy_survives_saving(tmp_path):
    copy = processor_for(BitImageProcessor(), size=64, normalization=PixelNormalization.imagenet())
    copy.save_pretrained(tmp_path)
    loaded = BitImageProcessor.from_pretrained(tmp_path)
    assert json.loads(loaded.to_json_string()) == json.loads(copy.to_json_string())
    assert input_size(loaded) == (64, 64)


def test_without_options_the_copy_is_equal():
    assert processor_for(CLIPImageProcessor()).to_dict() == CLIPImageProcessor().to_dict()


def test_unstated_size_is_an_error():
    with pytest.raises(ValueError, match="longest_edge"):
        input_size(ViTImageProcessor(size={"longest_edge": 224}))


def test_timm_can_only_rescale_by_255():
    with pytest.raises(ValueError, match="1/255"):
        processor_for(timm_processor(), normalization=PixelNormalization(0.5, 0.5, rescale=1.0))


def test_a_timm_processor_is_saved_in_the_config_of_a_timm_model(tmp_path):
    processor = processor_for(timm_processor(), size=64, normalization=PixelNormalization((0.1, 0.2, 0.3), 0.7))
    model = tiny_model("timm_augreg")
    assert processor_to_save(processor, model.config) is processor
    model.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert loaded.data_config == processor.data_config
    assert input_size(loaded) == (64, 64)


@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
def test_beside_another_model_a_timm_processor_becomes_its_equal(tmp_path, crop_pct):
    processor = timm_processor(crop_pct=crop_pct)
    saved = processor_to_save(processor, ViTConfig())
    saved.save_pretrained(tmp_path)
    image = make_image(0, (70, 90))
    expected = processor(image, return_tensors="pt")["pixel_values"]
    found = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.02  # PIL here, perhaps torchvision there: they resize a little apart
    assert found.mean(dim=(0, 2, 3)) == pytest.approx(expected.mean(dim=(0, 2, 3)), abs=0.01)
