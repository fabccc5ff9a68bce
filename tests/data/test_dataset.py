import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from samples import encoded, image_dataset, jpegs, make_image, same_items
from torch.utils.data import DataLoader

from singer_hf.data import (
    CorruptImageError,
    DataError,
    DistillationDataset,
    EmptyDatasetError,
    EpochSampler,
    ImageColumnError,
    LabelColumnError,
    MissingColumnError,
    eval_transform,
    find_image_column,
    load_images,
    sample_seed,
    train_transform,
)

TRUNCATED = encoded(make_image(0))[:-200]


@pytest.fixture
def views():
    return DistillationDataset(image_dataset(jpegs(8)), train_transform(16))


def batches(dataset, epochs, **options):
    sampler = EpochSampler(len(dataset), shuffle=False)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, **options)
    found = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


# -- items ------------------------------------------------------------------------------------------------------------
def test_item_holds_the_students_view_its_seed_and_no_more(views):
    item = views[(2, 3)]
    assert item.keys() == {"pixel_values", "sample_seed", "corrupt"}
    assert item["pixel_values"].shape == (3, 16, 16) and item["pixel_values"].dtype == torch.uint8
    assert item["sample_seed"].dtype == torch.int64 and item["sample_seed"] == sample_seed(0, 2, 3)
    assert item["corrupt"].dtype == torch.bool and not item["corrupt"]


def test_labels_come_with_a_label_column():
    dataset = image_dataset(jpegs(3), labels=[2, 0, 1])
    views = DistillationDataset(dataset, eval_transform(16), label_column="label")
    assert [views[index]["labels"].item() for index in range(3)] == [2, 0, 1]
    assert views[0]["labels"].dtype == torch.int64


def test_teacher_transform_gives_the_same_crop_at_the_teachers_size():
    dataset = image_dataset([encoded(make_image(0, (200, 160)), "PNG")])
    views = DistillationDataset(dataset, train_transform(32), teacher_transform=train_transform(64), seed=3)
    for epoch in range(5):
        item = views[(epoch, 0)]
        assert item["teacher_pixel_values"].shape == (3, 64, 64)
        reduced = torch.nn.functional.avg_pool2d(item["teacher_pixel_values"].float(), 2)
        assert (item["pixel_values"].float() - reduced).abs().mean() < 4


def test_plain_index_is_epoch_zero(views):
    assert same_items(views[3], views[(0, 3)])


def test_epochs_differ_and_repeat(views):
    first, second = views[(0, 3)], views[(1, 3)]
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    assert same_items(views[(0, 3)], first)


def test_seed_changes_the_augmentation(views):
    other = DistillationDataset(image_dataset(jpegs(8)), train_transform(16), seed=1)
    assert not torch.equal(views[0]["pixel_values"], other[0]["pixel_values"])


def test_loading_leaves_the_default_generator_alone(views):
    state = torch.get_rng_state()
    views[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_iteration_ends(views):
    assert len(list(views)) == 8


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_workers_change_nothing_in_any_epoch(views, options):
    expected = batches(views, epochs=(0, 1))
    found = batches(views, epochs=(0, 1), **options)
    assert not torch.equal(expected[0][0]["pixel_values"], expected[1][0]["pixel_values"])
    for batch, reference in zip(sum(found, []), sum(expected, []), strict=True):
        assert same_items(batch, reference)


@pytest.mark.parametrize("kind", ["pil", "bytes", "format", "transform", "binary column", "struct column"])
def test_kinds_of_dataset_agree(kind):
    content = jpegs(4)
    stored = image_dataset(content)
    if kind == "pil":
        dataset = [{"image": stored[index]["image"]} for index in range(4)]
    elif kind == "bytes":
        dataset = [{"image": cell} for cell in content]
    elif kind == "format":
        dataset = stored.with_format("torch")
    elif kind == "transform":
        dataset = stored.with_transform(lambda rows: {"image": [image.convert("RGB") for image in rows["image"]]})
    elif kind == "binary column":
        dataset = datasets.Dataset.from_dict({"image": content})
    else:
        dataset = datasets.Dataset.from_dict({"image": [{"bytes": cell, "path": "x.jpg"} for cell in content]})
    expected = DistillationDataset(stored, train_transform(16))
    views = DistillationDataset(dataset, train_transform(16))
    assert all(same_items(views[(1, index)], expected[(1, index)]) for index in range(4))


def test_other_columns_are_not_decoded():
    dataset = image_dataset(jpegs(2)).add_column("broken", [{"bytes": b"x", "path": None}] * 2)
    dataset = dataset.cast_column("broken", datasets.Image())
    assert len(list(DistillationDataset(dataset, eval_transform(8)))) == 2


# -- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("as_list", [False, True])
def test_missing_column_names_those_there_are_and_the_option(as_list):
    dataset = image_dataset(jpegs(2), labels=[0, 1])
    dataset = list(dataset) if as_list else dataset
    with pytest.raises(MissingColumnError, match="'img'.*'image', 'label'.*image_column"):
        DistillationDataset(dataset, eval_transform(8), image_column="img")
    with pytest.raises(MissingColumnError, match="'class'.*'image', 'label'.*label_column"):
        DistillationDataset(dataset, eval_transform(8), label_column="class")


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("value", ["a.jpg", 3, [1, 2]])
def test_column_that_is_no_image_is_refused_at_once(value, as_list):
    rows = [{"image": value}]
    with pytest.raises(ImageColumnError, match=r"(?s)'image'.*image_column"):
        DistillationDataset(rows if as_list else datasets.Dataset.from_list(rows), eval_transform(8))


def test_items_must_be_dicts():
    with pytest.raises(ImageColumnError, match="tuple"):
        DistillationDataset([(make_image(0), 1)], eval_transform(8))


@pytest.mark.parametrize("dataset", [[], datasets.Dataset.from_dict({"image": []})])
def test_empty_dataset_is_an_error(dataset):
    with pytest.raises(EmptyDatasetError, match="empty"):
        DistillationDataset(dataset, eval_transform(8))


def test_dataset_dict_names_its_splits():
    both = datasets.DatasetDict(train=image_dataset(jpegs(1)), test=image_dataset(jpegs(1)))
    with pytest.raises(TypeError, match="'train', 'test'"):
        DistillationDataset(both, eval_transform(8))


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("label", ["cat", 1.5, True])
def test_labels_must_be_integers(label, as_list):
    rows = [{"image": jpegs(1)[0], "label": label}]
    with pytest.raises(LabelColumnError, match="class_encode_column"):
        DistillationDataset(
            rows if as_list else datasets.Dataset.from_list(rows), eval_transform(8), label_column="label"
        )


def test_missing_label_is_an_error():
    dataset = datasets.Dataset.from_list([{"image": jpegs(1)[0], "label": value} for value in (0, None)])
    views = DistillationDataset(dataset, eval_transform(8), label_column="label")
    with pytest.raises(LabelColumnError, match="None"):
        views[1]


@pytest.mark.parametrize("label", [np.int64(4), torch.tensor(4)])
def test_numpy_and_torch_integers_are_labels(label):
    rows = [{"image": make_image(0), "label": label}]
    assert DistillationDataset(rows, eval_transform(8), label_column="label")[0]["labels"] == 4


# -- corrupt images ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cell", [TRUNCATED, b"", None, b"no image"], ids=["truncated", "zero bytes", "None", "text"])
def test_corrupt_image_names_index_and_option(cell):
    views = DistillationDataset(image_dataset([*jpegs(2), cell]), eval_transform(8))
    views[1]
    with pytest.raises(CorruptImageError, match=r"(?s)Image 2 .*cannot be read.*skip_corrupt_images=True"):
        views[2]


@pytest.mark.parametrize("cell", [TRUNCATED, b"", None, b"no image"], ids=["truncated", "zero bytes", "None", "text"])
def test_skipped_image_is_replaced_by_the_next_readable_one(cell):
    good = jpegs(3)
    dataset = image_dataset([good[0], cell, cell, good[1], cell], labels=[0, 1, 2, 3, 4])
    views = DistillationDataset(dataset, eval_transform(8), label_column="label", skip_corrupt_images=True)
    items = list(views)
    assert [item["labels"].item() for item in items] == [0, 3, 3, 3, 0]
    assert [item["corrupt"].item() for item in items] == [False, True, True, False, True]
    assert torch.equal(items[1]["pixel_values"], items[3]["pixel_values"])
    assert items[1]["sample_seed"] == sample_seed(0, 0, 1)


@pytest.mark.parametrize("as_list", [False, True])
def test_nothing_readable_is_an_error_not_an_endless_loop(as_list):
    dataset = image_dataset([b"", None, TRUNCATED])
    dataset = [{"image": cell} for cell in (b"", None, TRUNCATED)] if as_list else dataset
    views = DistillationDataset(dataset, eval_transform(8), skip_corrupt_images=True)
    with pytest.raises(CorruptImageError, match="None of the 3 images"):
        views[0]


def test_dataset_that_decodes_by_itself_may_fail_to(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(TRUNCATED)
    make_image(0).save(tmp_path / "good.jpg")

    class Decoding:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": Image.open(tmp_path / ("bad.jpg", "good.jpg")[index]).convert("RGB")}

    with pytest.raises(CorruptImageError, match="Image 0 .*truncated"):
        DistillationDataset(Decoding(), eval_transform(8))[0]
    assert DistillationDataset(Decoding(), eval_transform(8), skip_corrupt_images=True)[0]["corrupt"]


@pytest.mark.parametrize("error", DataError.__subclasses__())
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error("what, where, why")))
    assert type(copy) is error and str(copy) == "what, where, why"


def test_error_of_a_worker_arrives_with_its_class_and_message():
    loader = DataLoader(DistillationDataset(image_dataset([TRUNCATED]), eval_transform(8)), num_workers=1)
    with pytest.raises(CorruptImageError, match=r"(?s)Image 0 .*truncated.*skip_corrupt_images=True"):
        next(iter(loader))


# -- real images ------------------------------------------------------------------------------------------------------
def test_tiny_imagenet(tiny_imagenet):
    dataset = load_images(tiny_imagenet / "valid-00000-of-*.parquet", split="valid", max_samples=50)
    column = find_image_column(dataset)
    views = DistillationDataset(dataset, eval_transform(56), image_column=column, label_column="label")
    items = list(views)
    assert len(items) == 50 and len({item["labels"].item() for item in items}) > 20
    assert 90 < torch.stack([item["pixel_values"] for item in items]).float().mean() < 140
