import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from singer_hf.measures.label_rank import label_rank
from singer_hf.metrics import TopKAccuracy


def test_agrees_with_scikit_learn():
    scores, labels = torch.randn(200, 13), torch.randint(0, 13, (200,))
    scores[torch.arange(200), labels] += 1
    result = TopKAccuracy(k=(1, 2, 5, 13)).compute(predictions=scores, references=labels)
    assert list(result) == ["top1_accuracy", "top2_accuracy", "top5_accuracy", "top13_accuracy"]
    for k in (1, 2, 5):
        expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=np.arange(13))
        assert result[f"top{k}_accuracy"] == pytest.approx(expected)
    assert result["top13_accuracy"] == 1


def test_agrees_with_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    scores, labels = torch.randn(200, 13), torch.randint(0, 13, (200,))
    result = TopKAccuracy(k=3).compute(predictions=scores, references=labels)
    expected = classification.MulticlassAccuracy(13, top_k=3, average="micro")(scores, labels)
    assert result == {"top3_accuracy": pytest.approx(expected.item())}


def test_equal_scores_rank_as_argmax_does():
    scores = torch.tensor([[1.0, 2, 2, 2], [0, 0, 0, 0]])
    assert torch.equal(label_rank(scores, scores.argmax(dim=1)), torch.zeros(2, dtype=torch.long))
    ranks = [label_rank(scores, torch.full((2,), label)).tolist() for label in range(4)]
    assert ranks == [[3, 0], [0, 1], [1, 2], [2, 3]]


def test_many_heads_at_once():
    scores, labels = torch.randn(4, 50, 6), torch.randint(0, 6, (50,))
    ranks = label_rank(scores, labels)
    assert torch.equal(ranks, torch.stack([label_rank(head, labels) for head in scores]))
    assert not torch.equal(ranks[0], ranks[1])


def test_half_precision_and_masked_classes():
    scores = torch.tensor([[-torch.inf, 0.5, 0.25]], dtype=torch.bfloat16)
    assert label_rank(scores, torch.tensor([2])).tolist() == [1]


def test_too_few_classes():
    with pytest.raises(ValueError, match=r"Top-5 accuracy needs at least 5 classes, the scores have 4: .*\(1, 5\)"):
        TopKAccuracy().add_batch(predictions=torch.randn(2, 4), references=[0, 1])


@pytest.mark.parametrize("k", [0, -1, (1, 0), (), (1.5,)])
def test_bad_k(k):
    with pytest.raises(ValueError, match="positive integers, got"):
        TopKAccuracy(k=k)


def test_bad_inputs():
    metric = TopKAccuracy(k=1)
    with pytest.raises(ValueError, match="Label 4 is outside 0…3"):
        metric.add_batch(predictions=torch.randn(2, 4), references=[0, 4])
    with pytest.raises(ValueError, match="Label -1 is outside 0…3"):
        metric.add_batch(predictions=torch.randn(2, 4), references=[0, -1])
    with pytest.raises(ValueError, match="class indices as labels, got torch.float64"):
        metric.add_batch(predictions=torch.randn(2, 4), references=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(2,\)"):
        metric.add_batch(predictions=[1, 0], references=[0, 1])
    with pytest.raises(ValueError, match="NaN"):
        metric.add_batch(predictions=torch.full((2, 4), torch.nan), references=[0, 1])
