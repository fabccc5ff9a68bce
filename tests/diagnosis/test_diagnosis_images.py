import datasets
import pytest
import torch
from families import crop_processor, vit_processor
from images import image_dataset, with_corrupt_image
from PIL import Image

from singer_hf.data import CorruptImageError, MissingColumnError
from singer_hf.diagnosis import ImageBatches, ModelInput


def takes(size=32, **kwargs):
    return ModelInput.of_processor(vit_processor(size, **kwargs))


def test_batches_hold_every_image_in_order_normalised():
    data = image_dataset(10)
    batches = ImageBatches(data, takes(), batch_size=4)
    parts = list(batches)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts), torch.cat(list(batches)))  # every pass is the same
    sample = batches.sample(7)
    assert len(sample) == 7 and torch.equal(sample.teacher_pixels, torch.cat(parts)[[0, 1, 2, 4, 5, 7, 8]])
    assert sample.pictures().shape == (7, 32, 32, 3)
    restored = (sample.teacher_pixels.permute(0, 2, 3, 1) * 0.5 + 0.5) * 255
    assert torch.allclose(restored, torch.as_tensor(sample.pictures()).float(), atol=0.01)


def test_images_of_differing_sizes_come_out_alike():
    images = [Image.new("RGB", size) for size in ((40, 40), (64, 30), (17, 90))]
    data = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    assert next(iter(ImageBatches(data, takes()))).shape == (3, 3, 32, 32)


def test_a_student_of_another_size_gets_its_own_view():
    student = ModelInput.of_processor(crop_processor(48))
    batches = ImageBatches(image_dataset(5), takes(), student, batch_size=5)
    ((own, other),) = batches.pairs()
    assert own.shape == (5, 3, 32, 32) and other.shape == (5, 3, 48, 48)
    sample = batches.sample(5).select([2, 0])
    assert torch.equal(sample.student_pixels[0], other[2]) and torch.equal(sample.teacher_pixels[1], own[0])


def test_a_stream_gives_what_the_stored_images_give():
    data = image_dataset(9)
    stored = torch.cat(list(ImageBatches(data, takes(), batch_size=4)))
    streamed = torch.cat(list(ImageBatches(data.to_iterable_dataset(), takes(), batch_size=4)))
    assert torch.equal(stored, streamed)


def test_another_size_than_the_processors():
    assert ModelInput.of_processor(vit_processor(32), image_size=48).size == (48, 48)


def test_corrupt_images_stop_the_pass_or_are_left_out():
    data = with_corrupt_image(image_dataset(6), 2)
    with pytest.raises(CorruptImageError, match="Image 2"):
        list(ImageBatches(data, takes()))
    assert len(torch.cat(list(ImageBatches(data, takes(), skip_corrupt_images=True)))) == 5


def test_data_without_images():
    with pytest.raises(MissingColumnError, match="no column of type Image"):
        ImageBatches(datasets.Dataset.from_dict({"label": [1, 2]}), takes())
