import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from singer_hf.measures.iou import class_counts, iou_from_counts, segmentation_scores
from singer_hf.metrics import MeanIoU

LABELS = 6


def maps(count=5, height=12, width=9):
    """Class 5 occurs nowhere, class 4 in predictions only, class 3 in the first image only."""
    reference = torch.randint(0, 3, (count, height, width))
    reference[0, :3] = 3
    prediction = torch.where(torch.rand(reference.shape) < 0.6, reference, torch.randint(0, 5, reference.shape))
    reference[torch.rand(reference.shape) < 0.1] = 255
    return prediction, reference


def test_agrees_with_scikit_learn():
    prediction, reference = maps()
    result = MeanIoU(LABELS).compute(predictions=prediction, references=reference)
    counted = reference != 255
    true, predicted = reference[counted].numpy(), prediction[counted].numpy()
    iou = jaccard_score(true, predicted, labels=range(5), average=None)
    assert result["per_category_iou"] == [*(pytest.approx(value) for value in iou), None]
    assert result["per_category_iou"][4] == 0
    assert result["mean_iou"] == pytest.approx(iou.mean())
    assert result["overall_accuracy"] == pytest.approx(accuracy_score(true, predicted))
    recall = recall_score(true, predicted, labels=range(4), average=None)
    assert result["mean_accuracy"] == pytest.approx(recall.mean())
    assert result["per_category_accuracy"] == [*(pytest.approx(value) for value in recall), None, None]


def test_agrees_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    prediction, reference = maps()
    result = MeanIoU(LABELS).compute(predictions=prediction, references=reference)
    expected = classification.MulticlassJaccardIndex(LABELS, average="none", ignore_index=255)(prediction, reference)
    assert [value or 0 for value in result["per_category_iou"]] == pytest.approx(expected.tolist())


def test_over_the_set_not_per_image():
    predictions = [torch.tensor([[0, 0]]), torch.tensor([[1, 1, 1, 1]])]
    references = [torch.tensor([[0, 1]]), torch.tensor([[1, 1, 1, 0]])]
    result = MeanIoU(2).compute(predictions=predictions, references=references)
    # Class 0: 1 of 3 pixels; class 1: 3 of 5.
    assert result["per_category_iou"] == pytest.approx([1 / 3, 3 / 5])
    assert result["mean_iou"] == pytest.approx(7 / 15)


def naive_counts(prediction, reference, num_labels, ignore_index):
    counts = np.zeros((3, num_labels), dtype=np.int64)
    for predicted, true in zip(prediction.flatten().tolist(), reference.flatten().tolist(), strict=True):
        if true != ignore_index:
            counts[2, true] += 1
            if predicted != ignore_index:
                counts[1, predicted] += 1
                counts[0, true] += predicted == true
    return torch.from_numpy(counts)


@pytest.mark.parametrize("ignore_index", [255, 0, None])
def test_counts_are_those_of_a_loop(ignore_index):
    prediction, reference = maps()
    if ignore_index is None:
        reference = reference % 5
    if ignore_index == 0:
        reference[reference == 255] = 0
    expected = [naive_counts(*pair, LABELS, ignore_index) for pair in zip(prediction, reference, strict=True)]
    assert torch.equal(class_counts(prediction, reference, LABELS, ignore_index), torch.stack(expected))


def test_an_ignored_class_is_left_out_of_the_mean():
    reference, prediction = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[1, 0, 1, 2]])
    scores = segmentation_scores(class_counts(prediction, reference, 3, ignore_index=0))
    assert scores["per_category_iou"].isnan().tolist() == [True, False, False]
    assert scores["mean_iou"].item() == pytest.approx((1 / 2 + 1) / 2)
    assert scores["overall_accuracy"].item() == pytest.approx(2 / 3)


def test_many_heads_at_once():
    _, reference = maps()
    predictions = torch.randint(0, LABELS, (3, *reference.shape))
    counts = class_counts(predictions, reference, LABELS, 255)
    assert counts.shape == (3, 5, 3, LABELS)
    iou = iou_from_counts(counts.sum(dim=1)).nanmean(dim=-1)
    for head, value in zip(predictions, iou.tolist(), strict=True):
        result = MeanIoU(LABELS).compute(predictions=head, references=reference)
        assert result["mean_iou"] == pytest.approx(value)


def test_images_and_small_integers():
    prediction, reference = maps(count=1)
    expected = MeanIoU(LABELS).compute(predictions=prediction, references=reference)
    image = Image.fromarray(reference[0].numpy().astype(np.uint8))
    result = MeanIoU(LABELS).compute(predictions=prediction.to(torch.uint8), references=[image])
    assert result == expected


def test_rows_are_small():
    metric = MeanIoU(150)
    metric.add_batch(predictions=torch.zeros(20, 200, 200).long(), references=torch.zeros(20, 200, 200).long())
    metric.writer.write_examples_on_file()
    assert metric.buf_writer.tell() < 20 * 3 * 150 * 8 * 1.2 + 2000


@pytest.mark.parametrize("label", [6, -1, 254])
def test_labels_outside_the_range(label):
    prediction, reference = maps()
    wrong = prediction.clone()
    wrong[:, 0] = label
    with pytest.raises(ValueError, match=f"Label {label} in the predictions is neither in 0…5 nor .* 255"):
        MeanIoU(LABELS).add_batch(predictions=wrong, references=reference)
    with pytest.raises(ValueError, match=f"Label {label} in the references is neither in 0…5 nor .* 255"):
        MeanIoU(LABELS).add_batch(predictions=prediction, references=wrong)


def test_other_bad_inputs():
    prediction, reference = maps()
    metric = MeanIoU(LABELS)
    with pytest.raises(ValueError, match=r"of one size, got \(5, 12, 8\) and \(5, 12, 9\)"):
        metric.add_batch(predictions=prediction[:, :, 1:], references=reference)
    with pytest.raises(ValueError, match=r"of one size, got \(1, 12, 9\) and \(1, 9, 12\)"):
        metric.add(prediction=prediction[0], reference=reference[0].T)
    with pytest.raises(ValueError, match=r"a map \(H, W\), got predictions and references of shapes \(6, 12, 9\)"):
        metric.add_batch(predictions=torch.rand(5, 6, 12, 9), references=reference)
    with pytest.raises(ValueError, match="class indices, got torch.float32: take scores' argmax"):
        metric.add_batch(predictions=prediction.float(), references=reference)
    with pytest.raises(ValueError, match="No pixel of the references counts"):
        metric.compute(predictions=prediction, references=torch.full_like(reference, 255))
    with pytest.raises(ValueError, match="num_labels must be positive, got 0"):
        MeanIoU(0)
