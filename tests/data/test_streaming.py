import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, IterableDatasetShard
from samples import encoded, image_dataset, jpegs, make_image, same_items
from torch.utils.data import DataLoader

from singer_hf.data import (
    CorruptImageError,
    EmptyDatasetError,
    ImageColumnError,
    LabelColumnError,
    MissingColumnError,
    StreamingDistillationDataset,
    eval_transform,
    load_images,
    train_transform,
)

TRUNCATED = encoded(make_image(0))[:-200]


def stream_of(cells, shards=1, labels=None):
    return image_dataset(cells, labels).to_iterable_dataset(num_shards=shards)


def by_seed(items) -> dict:
    return {item["sample_seed"].item(): item for item in items}


def singles(loader) -> list[dict]:
    return [{key: value[i] for key, value in batch.items()} for batch in loader for i in range(len(batch["corrupt"]))]


def test_items_are_those_of_a_stored_dataset_with_other_seeds():
    stream = stream_of(jpegs(3), labels=[2, 0, 1])
    items = list(StreamingDistillationDataset(stream, eval_transform(8), label_column="label"))
    assert items[0].keys() == {"pixel_values", "sample_seed", "labels", "corrupt"}
    assert [item["labels"].item() for item in items] == [2, 0, 1]
    assert items[0]["pixel_values"].shape == (3, 8, 8) and items[0]["sample_seed"].dtype == torch.int64


def test_teacher_view_comes_with_a_teacher_transform():
    views = StreamingDistillationDataset(stream_of(jpegs(1)), eval_transform(8), teacher_transform=eval_transform(16))
    assert next(iter(views))["teacher_pixel_values"].shape == (3, 16, 16)


def test_neither_workers_nor_shards_change_a_samples_view():
    one = StreamingDistillationDataset(stream_of(jpegs(12)), train_transform(8))
    four = StreamingDistillationDataset(stream_of(jpegs(12), shards=4), train_transform(8))
    expected, found = by_seed(one), by_seed(singles(DataLoader(four, batch_size=3, num_workers=2)))
    assert expected.keys() == found.keys() and len(expected) == 12
    assert all(same_items(expected[seed], found[seed]) for seed in expected)


def test_epoch_reaches_persistent_workers():
    views = StreamingDistillationDataset(stream_of(jpegs(6), shards=2), train_transform(8), shuffle_buffer_size=4)
    loader = DataLoader(views, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 5):
        views.set_epoch(epoch)
        assert by_seed(singles(loader)).keys() == by_seed(views).keys()
    assert views.epoch == 5


def test_epochs_differ_and_repeat():
    views = StreamingDistillationDataset(stream_of(jpegs(6)), train_transform(8), shuffle_buffer_size=6)

    def epoch(number):
        views.set_epoch(number)
        return [item["sample_seed"].item() for item in views]

    assert epoch(0) == epoch(0) != epoch(1)


@pytest.mark.parametrize("shards", [1, 3])
def test_shuffling_depends_on_seed_and_epoch(shards):
    def order(seed, epoch, buffer=12):
        stream = stream_of(jpegs(12), shards, labels=list(range(12)))
        views = StreamingDistillationDataset(
            stream, eval_transform(8), label_column="label", seed=seed, shuffle_buffer_size=buffer
        )
        views.set_epoch(epoch)
        return [item["labels"].item() for item in views]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4 and all(sorted(found) == list(range(12)) for found in orders)
    assert order(1, 1) == orders[-1]
    assert order(1, 1, buffer=0) == list(range(12))


def test_prepared_by_accelerate_it_is_dispatched_and_told_the_epoch():
    views = StreamingDistillationDataset(stream_of(jpegs(6)), train_transform(8))
    loader = Accelerator(cpu=True).prepare(DataLoader(views, batch_size=2))
    assert isinstance(loader, DataLoaderDispatcher)
    loader.set_epoch(3)
    found = by_seed(singles(loader))
    views.set_epoch(3)
    expected = by_seed(views)
    assert found.keys() == expected.keys() and all(same_items(expected[seed], found[seed]) for seed in found)


def test_without_dispatching_two_processes_share_the_stream():
    seen = []
    for rank in range(2):
        views = StreamingDistillationDataset(stream_of(jpegs(8)), eval_transform(8))
        seen.append(by_seed(IterableDatasetShard(views, batch_size=2, num_processes=2, process_index=rank)).keys())
    assert len(seen[0]) == len(seen[1]) == 4 and len(seen[0] | seen[1]) == 8


@pytest.mark.parametrize("cell", [TRUNCATED, b"", None], ids=["truncated", "zero bytes", "None"])
def test_corrupt_image_stops_the_stream_or_is_left_out(cell):
    stream = stream_of([*jpegs(2), cell, encoded(make_image(7))])
    with pytest.raises(CorruptImageError, match=r"(?s)Image 2 .*skip_corrupt_images=True"):
        list(StreamingDistillationDataset(stream, eval_transform(8)))
    items = list(StreamingDistillationDataset(stream, eval_transform(8), skip_corrupt_images=True))
    assert [item["corrupt"].item() for item in items] == [False, False, True]


def test_error_of_a_worker_arrives_with_its_class_and_message():
    loader = DataLoader(StreamingDistillationDataset(stream_of([TRUNCATED]), eval_transform(8)), num_workers=1)
    with pytest.raises(CorruptImageError, match=r"(?s)truncated.*skip_corrupt_images=True"):
        next(iter(loader))


def test_nothing_readable_is_an_error():
    views = StreamingDistillationDataset(stream_of([b"", TRUNCATED]), eval_transform(8), skip_corrupt_images=True)
    with pytest.raises(CorruptImageError, match="None of 2 images"):
        list(views)


def test_empty_stream_is_an_error():
    stream = stream_of(jpegs(1)).filter(lambda row: False)
    with pytest.raises(EmptyDatasetError, match="empty"):
        list(StreamingDistillationDataset(stream, eval_transform(8)))


def test_wrong_columns_are_found_before_the_first_sample():
    stream = datasets.Dataset.from_dict({"image": ["a.jpg"], "label": ["cat"]}).to_iterable_dataset()
    with pytest.raises(MissingColumnError, match="'image', 'label'"):
        StreamingDistillationDataset(stream, eval_transform(8), image_column="img")
    with pytest.raises(ImageColumnError, match="image_column"):
        StreamingDistillationDataset(stream, eval_transform(8))
    stream = stream_of(jpegs(1)).map(lambda row: {"name": "cat"}, features=None)
    with pytest.raises((MissingColumnError, LabelColumnError), match="name|label_column"):
        list(StreamingDistillationDataset(stream, eval_transform(8), label_column="name"))


def test_stream_that_does_not_know_its_columns():
    def rows():
        for cell in jpegs(3):
            yield {"image": cell}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.features is None
    assert len(list(StreamingDistillationDataset(stream, train_transform(8), shuffle_buffer_size=2))) == 3
    with pytest.raises(MissingColumnError, match="'img'.*'image'"):
        list(StreamingDistillationDataset(stream, train_transform(8), image_column="img"))


def test_decoded_images_are_known_by_their_pixels():
    def rows():
        for number in range(3):
            yield {"image": make_image(number)}

    stream = datasets.IterableDataset.from_generator(rows)
    assert len(by_seed(StreamingDistillationDataset(stream, train_transform(8)))) == 3


def test_map_style_dataset_is_refused():
    with pytest.raises(TypeError, match="DistillationDataset"):
        StreamingDistillationDataset(image_dataset(jpegs(1)), eval_transform(8))


def test_image_files_stream_by_path(tmp_path):
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.png")
    views = StreamingDistillationDataset(load_images(tmp_path, split="train", streaming=True), train_transform(8))
    assert len(by_seed(views)) == 3


def test_tiny_imagenet(tiny_imagenet):
    stream = load_images(tiny_imagenet, split="train", streaming=True)
    views = StreamingDistillationDataset(stream, train_transform(32), shuffle_buffer_size=64)
    batch = next(iter(DataLoader(views, batch_size=16, num_workers=2)))
    assert batch["pixel_values"].shape == (16, 3, 32, 32) and len(set(batch["sample_seed"].tolist())) == 16
