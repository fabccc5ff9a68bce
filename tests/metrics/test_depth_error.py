import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_percentage_error, root_mean_squared_error

from singer_hf.measures.depth_error import depth_scores, depth_sums, valid_depth
from singer_hf.metrics import DepthError


def depths(count=4, height=7, width=5):
    true = 0.5 + 9 * torch.rand(count, height, width)
    predicted = true * (1 + 0.3 * torch.randn(true.shape))
    true[torch.rand(true.shape) < 0.2] = 0
    true[-1, 0, :3] = torch.tensor([torch.nan, -1.0, torch.inf])
    return predicted, true


def naive_scores(predicted, true, max_depth=math.inf):
    images, pooled, without = [], [], 0
    for prediction, reference in zip(predicted.double().tolist(), true.double().tolist(), strict=True):
        pairs = [
            (p, t)
            for p_row, t_row in zip(prediction, reference, strict=True)
            for p, t in zip(p_row, t_row, strict=True)
            if math.isfinite(t) and 0 < t <= max_depth
        ]
        if not pairs:
            without += 1
            continue
        squares = [(p - t) ** 2 for p, t in pairs]
        within = [p > 0 and max(p / t, t / p) < 1.25 for p, t in pairs]
        relative = [abs(p - t) / t for p, t in pairs]
        pooled += squares
        n = len(pairs)
        images.append(((sum(squares) / n) ** 0.5, sum(relative) / n, sum(within) / n))
    rmse, abs_rel, delta1 = (sum(values) / len(images) for values in zip(*images, strict=True))
    return {
        "rmse": rmse,
        "rmse_pooled": (sum(pooled) / len(pooled)) ** 0.5,
        "abs_rel": abs_rel,
        "delta1": delta1,
        "images_without_depth": without,
    }


@pytest.mark.parametrize("max_depth", [None, 5.0])
def test_scores_are_those_of_a_loop(max_depth):
    predicted, true = depths()
    true[2] = 0
    result = DepthError(max_depth=max_depth).compute(predictions=predicted, references=true)
    expected = naive_scores(predicted, true, max_depth or math.inf)
    assert expected["images_without_depth"] == 1
    assert result == pytest.approx(expected, rel=1e-6)
    assert result["rmse"] != pytest.approx(result["rmse_pooled"], rel=1e-4)


def test_one_image_agrees_with_scikit_learn():
    predicted, true = depths(count=1, height=20)
    result = DepthError().compute(predictions=predicted, references=true)
    valid = valid_depth(true)
    pair = true[valid].double().numpy(), predicted[valid].double().numpy()
    assert result["rmse"] == pytest.approx(root_mean_squared_error(*pair), rel=1e-6)
    assert result["rmse_pooled"] == pytest.approx(result["rmse"])
    assert result["abs_rel"] == pytest.approx(mean_absolute_percentage_error(*pair), rel=1e-6)


def test_agrees_with_torchmetrics():
    regression = pytest.importorskip("torchmetrics.regression")
    predicted, true = depths()
    valid = valid_depth(true)
    result = DepthError().compute(predictions=predicted, references=true)
    expected = regression.MeanSquaredError(squared=False)(predicted[valid], true[valid])
    assert result["rmse_pooled"] == pytest.approx(expected.item(), rel=1e-5)


def test_closed_form():
    true = torch.full((2, 3, 3), 2.0)
    predicted = torch.stack([torch.full((3, 3), 3.0), torch.full((3, 3), 2.4)])
    assert DepthError().compute(predictions=predicted, references=true) == pytest.approx(
        {
            "rmse": (1.0 + 0.4) / 2,
            "rmse_pooled": ((1.0 + 0.16) / 2) ** 0.5,
            "abs_rel": (0.5 + 0.2) / 2,
            "delta1": 0.5,
            "images_without_depth": 0,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(
    "predicted, within", [(1.0, 1), (1.24, 1), (1.25, 0), (0.81, 1), (0.8, 0), (0.0, 0), (-1.0, 0)]
)
def test_delta(predicted, within):
    result = DepthError().compute(predictions=[[[predicted]]], references=[[[1.0]]])
    assert result["delta1"] == within


def test_what_is_valid():
    values = torch.tensor([0.0, -1.0, torch.nan, torch.inf, -torch.inf, 1e-3, 10.0, 10.5])
    assert valid_depth(values).tolist() == [False] * 5 + [True] * 3
    assert valid_depth(values, max_depth=10).tolist() == [False] * 5 + [True] * 2 + [False]


def test_values_that_are_not_valid_do_not_matter():
    predicted, true = depths()
    invalid = ~valid_depth(true)
    other = torch.where(invalid, -7.0, true)
    metric = DepthError()
    expected = metric.compute(predictions=predicted, references=true)
    assert metric.compute(predictions=torch.where(invalid, 1e6, predicted), references=other) == expected


def test_many_heads_at_once():
    predicted, true = depths()
    heads = torch.stack([predicted, predicted + 1, predicted * 2])
    scores = depth_scores(depth_sums(heads, true))
    for index, head in enumerate(heads):
        result = DepthError().compute(predictions=head, references=true)
        assert result == pytest.approx({name: value[index].item() for name, value in scores.items()})


def test_half_precision_is_summed_in_full():
    predicted = torch.full((1, 300, 300), 3.0, dtype=torch.bfloat16)
    result = DepthError().compute(predictions=predicted, references=np.full((1, 300, 300), 1.0))
    assert result["rmse"] == 2
    assert result["abs_rel"] == 2


def test_no_depth_at_all():
    predicted, true = depths()
    with pytest.raises(ValueError, match="None of the 4 reference maps has a valid depth"):
        DepthError(max_depth=0.1).compute(predictions=predicted, references=true)


def test_bad_inputs():
    predicted, true = depths()
    metric = DepthError()
    with pytest.raises(ValueError, match=r"of one size, got \(4, 6, 5\) and \(4, 7, 5\)"):
        metric.add_batch(predictions=predicted[:, 1:], references=true)
    with pytest.raises(ValueError, match=r"a map \(H, W\), got predictions and references of shapes \(1, 7, 5\)"):
        metric.add_batch(predictions=predicted[:, None], references=true)
    predicted[0, 0, 0], predicted[1, 2, 3] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 140 predicted depths are NaN or infinite"):
        metric.add_batch(predictions=predicted, references=true)
    with pytest.raises(ValueError, match="max_depth must be positive, in metres, got -1"):
        DepthError(max_depth=-1)
