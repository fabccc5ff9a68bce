import datasets
import pytest
from datasets import ClassLabel, Features, Value

from singer_hf.data import DataError, LabelColumnError, MissingColumnError
from singer_hf.evaluation import Task
from singer_hf.evaluation.labels import read_labels, read_split_labels
from singer_hf.evaluation.splits import Split


def column(values, feature=None, name: str = "label") -> datasets.Dataset:
    features = None if feature is None else Features({name: feature})
    return datasets.Dataset.from_dict({name: values}, features=features)


def splits(train: datasets.Dataset, test: datasets.Dataset, name: str | None = "label") -> tuple[Split, Split]:
    return Split(train, "train", "image", name), Split(test, "test", "image", name)


def test_a_class_label_keeps_its_names():
    labels = read_labels(column([2, 0, 2], ClassLabel(names=["ant", "bee", "cat"])))
    assert labels.values.tolist() == [2, 0, 2] and labels.names == ("ant", "bee", "cat")


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8"])
def test_integers_are_as_many_classes_as_the_largest_says(kind):
    labels = read_labels(column([4, 0, 1], Value(kind)), "label")
    assert labels.values.tolist() == [4, 0, 1] and labels.names == ("0", "1", "2", "3", "4")


def test_more_classes_than_the_labels_show_are_fine():
    assert len(read_labels(column([0, 1]), num_labels=10).names) == 10


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_strings_are_numbered_in_their_order(kind):
    labels = read_labels(column(["bee", "ant", "bee", "cat"], Value(kind)), "label")
    assert labels.values.tolist() == [1, 0, 1, 2] and labels.names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("values", "label_map", "expected"),
    [
        (["n01", "n07", "n01"], {"n07": 0, "n01": 3}, [3, 0, 3]),
        ([10, 30, 10], {10: 1, 20: 2, 30: 4}, [1, 4, 1]),
    ],
)
def test_a_label_map_is_applied(values, label_map, expected):
    labels = read_labels(column(values), "label", num_labels=5, label_map=label_map)
    assert labels.values.tolist() == expected and len(labels.names) == 5


def test_a_map_reads_stored_numbers_of_a_class_label():
    labels = read_labels(column([0, 1], ClassLabel(names=["a", "b"])), label_map={0: 1, 1: 0}, num_labels=2)
    assert labels.values.tolist() == [1, 0]


def test_a_label_that_the_map_lacks():
    with pytest.raises(LabelColumnError, match="Here: image 1 has the label 'n99'.*label_map.*'n01'"):
        read_labels(column(["n01", "n99"]), "label", num_labels=2, label_map={"n01": 0}, what="Here")


@pytest.mark.parametrize("feature", [ClassLabel(names=["a", "b"]), Value("int64")])
def test_images_without_a_label(feature):
    with pytest.raises(LabelColumnError, match="Here: 2 of 4 images have no label .*'label'.* image 1.*filter"):
        read_labels(column([0, None, 1, None], feature), what="Here")


def test_strings_without_a_label():
    with pytest.raises(LabelColumnError, match="1 of 3 images have no label"):
        read_labels(column(["a", "b", None], Value("string")), "label")


@pytest.mark.parametrize(("values", "first", "image"), [([0, 1, 3, 5], 3, 2), ([0, -2, 1, 0], -2, 1)])
def test_labels_out_of_range(values, first, image):
    with pytest.raises(LabelColumnError, match=f"labels are out of range, e.g. {first} of image {image} .*0 to 2"):
        read_labels(column(values), num_labels=3)


def test_hidden_labels_are_said_to_be():
    with pytest.raises(LabelColumnError, match="3 labels are out of range, e.g. -1 of image 0.*hidden labels hold -1"):
        read_labels(column([-1, -1, -1], ClassLabel(names=["a", "b"])))


def test_floats_and_strings_where_integers_are_needed():
    with pytest.raises(LabelColumnError, match="expected ClassLabel or integers"):
        read_labels(column([0.0, 1.0]), "label")


def test_a_column_that_is_not_there():
    with pytest.raises(MissingColumnError, match="no column 'wnid'"):
        read_labels(column([0, 1]), "wnid")
    with pytest.raises(MissingColumnError, match="no column 'wnid'"):
        read_labels(column([0, 1]), "wnid", label_map={0: 0}, num_labels=2)


def test_labels_are_read_without_the_images():
    """An image that cannot be decoded does not matter to the labels."""
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"none", "path": None}] * 2, "label": [1, 0]},
        features=Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b"])}),
    )
    assert read_labels(data).values.tolist() == [1, 0]


# -- both splits ------------------------------------------------------------------------------------------------------
def test_strings_of_the_test_split_are_the_training_splits_classes():
    train, test = read_split_labels(
        Task("t", "classification"), *splits(column(["c", "a", "b", "a"]), column(["c", "b"]))
    )
    assert train.values.tolist() == [2, 0, 1, 0] and test.values.tolist() == [2, 1]
    assert train.names == test.names == ("a", "b", "c")


def test_a_test_string_that_is_no_training_class():
    with pytest.raises(LabelColumnError, match="pets, test split: image 1 has the label 'owl'.*no class of the train"):
        read_split_labels(Task("pets", "classification"), *splits(column(["cat", "dog"]), column(["cat", "owl"])))


def test_a_test_integer_that_is_no_training_class():
    with pytest.raises(LabelColumnError, match="pets, test split: 1 labels are out of range, e.g. 2 of image 1"):
        read_split_labels(Task("pets", "classification"), *splits(column([0, 1, 1]), column([0, 2])))


def test_a_training_label_out_of_range_names_the_training_split():
    task = Task("pets", "classification", num_labels=2)
    with pytest.raises(LabelColumnError, match="pets, train split: 1 labels are out of range"):
        read_split_labels(task, *splits(column([0, 2]), column([0, 1])))


def test_a_map_is_applied_to_both_splits():
    task = Task("t", "classification", num_labels=3, label_map={"x": 2, "y": 0})
    train, test = read_split_labels(task, *splits(column(["x", "y"]), column(["y"])))
    assert train.values.tolist() == [2, 0] and test.values.tolist() == [0]


def test_more_classes_than_the_training_strings_show_are_fine():
    task = Task("t", "classification", num_labels=5)
    _, test = read_split_labels(task, *splits(column(["b", "a"]), column(["a", "b"])))
    assert test.values.tolist() == [0, 1]


def test_class_labels_of_other_names_are_matched_by_name_or_refused():
    train = column([0, 1, 2], ClassLabel(names=["cat", "dog", "owl"]))
    test = column([0, 1], ClassLabel(names=["cat", "owl"]))
    try:
        _, labels = read_split_labels(Task("t", "classification"), *splits(train, test))
    except DataError:
        return
    assert labels.values.tolist() == [0, 2]
