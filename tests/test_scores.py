import pytest
import torch

from singer_hf.scores import knn_accuracy


def test_knn_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    embeddings, labels = torch.randn(60, 5), torch.randint(0, 3, (60,))
    embeddings += 1.5 * torch.nn.functional.one_hot(labels, 5)
    right = 0
    for index in range(60):
        others = torch.arange(60) != index
        classifier = neighbors.KNeighborsClassifier(
            7,
            metric="cosine",
            algorithm="brute",
            weights=lambda distance: 2.718281828459045 ** ((1 - distance) / 0.07),
        )
        classifier.fit(embeddings[others], labels[others])
        right += classifier.predict(embeddings[index : index + 1])[0] == labels[index].item()
    assert knn_accuracy(embeddings, labels, neighbors=7, chunk=13) == pytest.approx(right / 60)


def test_a_sample_is_not_its_own_neighbour():
    embeddings = torch.eye(4)  # no one has a friend
    labels = torch.tensor([0, 1, 2, 3])
    assert knn_accuracy(embeddings, labels) == 0


def test_too_few_samples():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        knn_accuracy(torch.ones(1, 3), torch.zeros(1, dtype=torch.long))
