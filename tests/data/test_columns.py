import datasets
import pytest
from samples import image_dataset, jpegs

from singer_hf.data import ImageColumnError, LabelColumnError, MissingColumnError, find_image_column, find_label_column


def with_features(**features):
    return datasets.Dataset.from_dict({name: [] for name in features}, features=datasets.Features(features))


def test_the_only_image_column_is_found():
    dataset = image_dataset(jpegs(1), labels=[0]).rename_column("image", "photo")
    assert find_image_column(dataset) == "photo"
    assert find_image_column(dataset.to_iterable_dataset()) == "photo"


def test_a_column_named_image_without_images_is_passed_over():
    dataset = with_features(image=datasets.Value("string"), photo=datasets.Image())
    assert find_image_column(dataset) == "photo"


def test_a_wanted_image_column_must_exist():
    with pytest.raises(MissingColumnError, match="no column 'img'; its columns are 'image'.*image_column"):
        find_image_column(with_features(image=datasets.Image()), wanted="img")


def test_wanted_image_column_is_taken_where_there_are_two():
    dataset = with_features(image=datasets.Image(), mask=datasets.Image())
    assert find_image_column(dataset, wanted="mask") == "mask"


def test_two_image_columns_are_ambiguous():
    dataset = with_features(photo=datasets.Image(), mask=datasets.Image())
    with pytest.raises(MissingColumnError, match="2 columns of images .*'photo', 'mask'.*image_column"):
        find_image_column(dataset)
    assert find_image_column(with_features(image=datasets.Image(), mask=datasets.Image())) == "image"


def test_no_image_column_names_the_columns():
    with pytest.raises(MissingColumnError, match="no column of type Image.*'text'"):
        find_image_column(with_features(text=datasets.Value("string")))


def test_wanted_column_without_images_is_an_error():
    dataset = with_features(image=datasets.Image(), text=datasets.Value("string"))
    with pytest.raises(ImageColumnError, match="'text'"):
        find_image_column(dataset, wanted="text")


def test_dataset_without_column_types_is_an_error():
    with pytest.raises(MissingColumnError, match="list"):
        find_image_column([{"image": None}])


@pytest.mark.parametrize("name", ["label", "labels"])
def test_integer_column_of_that_name_is_found(name):
    assert find_label_column(with_features(image=datasets.Image(), **{name: datasets.Value("int32")})) == name


def test_class_label_goes_before_a_name():
    assert find_label_column(with_features(label=datasets.Value("int64"), kind=datasets.ClassLabel(2))) == "kind"


def test_two_class_labels_are_ambiguous():
    dataset = with_features(fine=datasets.ClassLabel(2), coarse=datasets.ClassLabel(2))
    with pytest.raises(MissingColumnError, match="'fine', 'coarse'.*label_column"):
        find_label_column(dataset)
    assert find_label_column(dataset, wanted="fine") == "fine"


def test_text_labels_are_to_be_encoded():
    with pytest.raises(LabelColumnError, match=r"class_encode_column\('label'\)"):
        find_label_column(with_features(label=datasets.Value("string")))


def test_wanted_label_column_must_exist():
    with pytest.raises(MissingColumnError, match="'class'.*'label'"):
        find_label_column(with_features(label=datasets.ClassLabel(2)), wanted="class")
