import io
import tarfile

import datasets
import pytest
from samples import image_dataset, jpegs, make_image

from singer_hf.data import DataSourceError, find_image_column, find_label_column, load_images


def write_parquet(path, numbers):
    image_dataset([jpegs(9)[number] for number in numbers], labels=[number % 2 for number in numbers]).to_parquet(path)


def count(dataset) -> int:
    return sum(1 for _ in dataset)


@pytest.fixture
def parquet(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1, 2])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [3, 4])
    write_parquet(tmp_path / "valid-00000-of-00001.parquet", [5])
    return tmp_path


@pytest.fixture
def flat_folder(tmp_path):
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.jpg")
    return tmp_path


@pytest.fixture
def class_folder(tmp_path):
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            for number in range(3 if split == "train" else 1):
                make_image(number).save(folder / f"{number}.JPEG")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_images(flat_folder, streaming):
    dataset = load_images(flat_folder, split="train", streaming=streaming)
    assert isinstance(dataset, datasets.IterableDataset) is streaming
    assert find_image_column(dataset) == "image" and count(dataset) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_classes_has_labels(class_folder, streaming):
    dataset = load_images(class_folder, split="test", streaming=streaming)
    assert dataset.features[find_label_column(dataset)].names == ["cat", "dog"] and count(dataset) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_glob_of_parquet_files_is_the_named_split(parquet, streaming):
    dataset = load_images(parquet / "train-*.parquet", split="train", streaming=streaming)
    assert find_label_column(dataset) == "label" and count(dataset) == 5


def test_one_parquet_file(parquet):
    assert count(load_images(str(parquet / "valid-00000-of-00001.parquet"), split="validation")) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_parquet_files_has_its_splits(parquet, streaming):
    assert count(load_images(parquet, split="train", streaming=streaming)) == 5
    assert count(load_images(parquet, split="validation", streaming=streaming)) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("pattern", ["", "*.tar"])
def test_webdataset(tmp_path, streaming, pattern):
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as file:
            for number, content in enumerate(jpegs(3)):
                entry = tarfile.TarInfo(f"{shard}{number}.jpg")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    dataset = load_images(tmp_path / pattern, split="train", streaming=streaming)
    assert find_image_column(dataset) == "jpg" and count(dataset) == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_dataset(tmp_path, streaming):
    image_dataset(jpegs(3)).save_to_disk(tmp_path / "saved")
    assert count(load_images(tmp_path / "saved", split="train", streaming=streaming)) == 3


def test_saved_dataset_dict_has_its_splits(tmp_path):
    both = datasets.DatasetDict(train=image_dataset(jpegs(3)), test=image_dataset(jpegs(1)))
    both.save_to_disk(tmp_path / "saved")
    assert count(load_images(tmp_path / "saved", split="test")) == 1
    with pytest.raises(DataSourceError, match="'valid'; it has 'train', 'test'"):
        load_images(tmp_path / "saved", split="valid")


def test_saved_split_is_not_taken_for_another(parquet, tmp_path):
    load_images(parquet, split="train").save_to_disk(tmp_path / "saved")
    assert count(load_images(tmp_path / "saved", split="train")) == 5
    with pytest.raises(DataSourceError, match="'validation'; it has 'train'"):
        load_images(tmp_path / "saved", split="validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_unknown_split_names_those_there_are(parquet, streaming):
    with pytest.raises(DataSourceError, match="'test'; it has 'train', 'validation'"):
        load_images(parquet, split="test", streaming=streaming)


def test_split_expressions_work_on_stored_data_alone(parquet):
    assert count(load_images(parquet, split="train[:2]+validation")) == 3
    assert count(load_images(parquet / "train-*.parquet", split="train[:2]")) == 2
    with pytest.raises(DataSourceError, match="max_samples"):
        load_images(parquet, split="train[:2]", streaming=True)


def test_max_samples_are_spread_evenly(class_folder):
    dataset = load_images(class_folder, split="train", max_samples=2)
    assert dataset["label"][:] == [0, 1]
    assert count(load_images(class_folder, split="train", max_samples=100)) == 6


def test_max_samples_of_a_stream_are_the_first(parquet):
    assert count(load_images(parquet, split="train", streaming=True, max_samples=2)) == 2


def test_max_samples_must_be_positive(parquet):
    with pytest.raises(ValueError, match="max_samples is 0"):
        load_images(parquet, split="train", max_samples=0)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere.parquet", "~/nowhere/images"])
def test_missing_path_is_not_sought_on_the_hub(path):
    with pytest.raises(DataSourceError, match=r"No such file or folder.*nowhere"):
        load_images(path, split="train")


def test_glob_without_a_match(tmp_path):
    with pytest.raises(DataSourceError, match=r"No file matches.*\*\.parquet"):
        load_images(tmp_path / "*.parquet", split="train")


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_parquet_file(tmp_path, streaming):
    image_dataset([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataSourceError, match="empty"):
        load_images(tmp_path / "train.parquet", split="train", streaming=streaming)


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataSourceError, match="holds no images"):
        load_images(tmp_path, split="train")


def test_files_of_several_kinds(parquet):
    make_image(0).save(parquet / "photo.jpg")
    with pytest.raises(DataSourceError, match=r"\.jpg.*\.parquet"):
        load_images(parquet / "*", split="train")


def test_revision_is_for_the_hub(parquet):
    with pytest.raises(DataSourceError, match="Hub datasets only"):
        load_images(parquet, split="train", revision="main")


def test_hub_id_is_asked_of_the_hub_as_given(parquet, monkeypatch):
    asked = {}

    def builder(name, config_name, *, revision, cache_dir):
        asked.update(name=name, config_name=config_name, revision=revision)
        return local

    local = datasets.load_dataset_builder("parquet", data_dir=str(parquet))
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    dataset = load_images("owner/name", split="train", revision="v1", config_name="small")
    assert count(dataset) == 5
    assert asked == {"name": "owner/name", "config_name": "small", "revision": "v1"}


def test_hub_id_that_cannot_be_opened_says_why(monkeypatch):
    def builder(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    with pytest.raises(DataSourceError, match="no local path.*DatasetNotFoundError.*doesn't exist"):
        load_images("owner/name", split="train")


def test_tiny_imagenet_splits(tiny_imagenet):
    stream = load_images(tiny_imagenet, split="validation", streaming=True)
    assert len(stream.features[find_label_column(stream)].names) == 200
