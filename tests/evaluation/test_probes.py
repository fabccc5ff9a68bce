import math

import pytest
import torch
import torch.nn.functional as F
from head_inputs import random_heads

from singer_hf.evaluation.heads import LinearHeads
from singer_hf.evaluation.probes import ClassificationProbe, DepthProbe, SegmentationProbe
from singer_hf.evaluation.targets import IGNORE
from singer_hf.metrics import DepthError, MeanIoU, TopKAccuracy

GRID, SIZE, MAX_DEPTH = (2, 3), (8, 12), 10.0


def by_autograd(probe, heads: LinearHeads, *batch) -> LinearHeads:
    leaves = [tensor.clone().requires_grad_() for tensor in (heads.weight, heads.bias)]
    probe.losses(LinearHeads(*leaves), *batch).sum().backward()
    return LinearHeads(*(leaf.grad for leaf in leaves))


def dense(kind: str, images: int = 3, heads: int = 2, width: int = 5):
    """Probe, heads, features and targets, some of whose pixels do not count; float64."""
    features = torch.randn(images, math.prod(GRID), width, dtype=torch.float64)
    if kind == "segmentation":
        probe = SegmentationProbe(4, GRID)
        targets = torch.randint(4, (images, *SIZE), dtype=torch.int16)
        hidden = IGNORE
    else:
        probe = DepthProbe(MAX_DEPTH, GRID)
        targets = torch.rand(images, *SIZE) * 9.9 + 0.05
        hidden = 0
    targets[torch.rand(targets.shape) < 0.3] = hidden
    return probe, random_heads(heads, width, probe.num_outputs), features, targets


def papers_logits(heads: LinearHeads, g: int, features: torch.Tensor) -> torch.Tensor:
    """Features upsampled to the pixels first, then the 1×1 convolution: METHOD.md section 5 on depth."""
    maps = features.transpose(1, 2).unflatten(2, GRID)
    pixels = F.interpolate(maps, size=SIZE, mode="bilinear", align_corners=False)
    return F.conv2d(pixels, heads.weight[g].T[:, :, None, None], heads.bias[g])


def naive_loss(kind: str, logits: torch.Tensor, targets: torch.Tensor, pixels=None) -> float:
    """Mean over pixels that count of −log softmax, with loops; `pixels`: rows of positions, one an image."""
    losses = []
    logs = logits.log_softmax(1).flatten(2)
    for image, target in enumerate(targets.flatten(1).tolist()):
        places = range(len(target)) if pixels is None else pixels[image].tolist()
        for place in places:
            value = target[place]
            if kind == "segmentation":
                wanted = None if value == IGNORE else int(value)
            else:
                centres = [MAX_DEPTH * k / 255 for k in range(256)]
                wanted = min(range(256), key=lambda k: abs(centres[k] - value)) if value > 0 else None
            if wanted is not None:
                losses.append(-logs[image, wanted, place].item())
    return sum(losses) / len(losses)


# -- classification ---------------------------------------------------------------------------------------------------
def test_classification_loss_is_each_heads_mean_cross_entropy():
    heads, features = random_heads(3, 5, 4), torch.randn(6, 5, dtype=torch.float64)
    targets = torch.tensor([3, 3, 0, 3, 1, 0])
    expected = [F.cross_entropy(F.linear(features, heads.weight[g].T, heads.bias[g]), targets) for g in range(3)]
    torch.testing.assert_close(ClassificationProbe(4).losses(heads, features, targets), torch.stack(expected))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("targets", [[3, 3, 0, 3, 1, 0], [2, 2, 2, 2, 2, 2], [1]])
def test_classifications_gradients_are_autograds(count, targets):
    heads, features = random_heads(count, 5, 4), torch.randn(len(targets), 5, dtype=torch.float64)
    batch = features, torch.tensor(targets)
    probe = ClassificationProbe(4)
    found, expected = probe.gradients(heads, *batch), by_autograd(probe, heads, *batch)
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)


def test_gradients_stay_finite_where_logits_are_large():
    heads, features = random_heads(1, 5, 4, torch.float32), 1e4 * torch.randn(8, 5)
    heads.weight *= 1e4
    assert ClassificationProbe(4).gradients(heads, features, torch.arange(8) % 4).finite().all()


def test_classification_predicts_each_heads_logits():
    heads, features = random_heads(3, 5, 4), torch.randn(6, 5, dtype=torch.float64)
    found = list(ClassificationProbe(4).predictions(heads, features, torch.zeros(6)))
    torch.testing.assert_close(torch.stack(found), heads(features))


@pytest.mark.parametrize(("classes", "k"), [(4, (1,)), (5, (1, 5)), (1000, (1, 5))])
def test_top_5_is_scored_from_five_classes_on(classes, k):
    metric = ClassificationProbe(classes).metric()
    assert isinstance(metric, TopKAccuracy) and metric.k == k


# -- dense tasks ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_dense_losses_are_the_papers_with_its_order_of_upsampling(kind):
    probe, heads, features, targets = dense(kind)
    expected = [naive_loss(kind, papers_logits(heads, g, features), targets) for g in range(len(heads))]
    assert probe.losses(heads, features, targets).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_losses_at_sampled_pixels_are_those_of_the_whole_map_there(kind):
    probe, heads, features, targets = dense(kind)
    pixels = torch.randint(math.prod(SIZE), (len(features), 20))
    expected = [naive_loss(kind, papers_logits(heads, g, features), targets, pixels) for g in range(len(heads))]
    assert probe.losses(heads, features, targets, pixels).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_all_pixels_in_any_order_are_the_whole_map(kind):
    probe, heads, features, targets = dense(kind)
    pixels = torch.stack([torch.randperm(math.prod(SIZE)) for _ in features])
    expected = probe.losses(heads, features, targets)
    torch.testing.assert_close(probe.losses(heads, features, targets, pixels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_dense_gradients_are_each_heads_own(kind):
    probe, heads, features, targets = dense(kind)
    together = probe.gradients(heads, features, targets)
    for g in range(len(heads)):
        leaves = LinearHeads(heads.weight[g : g + 1].clone().requires_grad_(), heads.bias[g : g + 1].clone())
        probe.losses(leaves, features, targets)[0].backward()
        torch.testing.assert_close(together.weight[g], leaves.weight.grad[0])


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_masked_pixels_contribute_nothing(kind):
    """An image without one pixel that counts does not change the mean of the others, whatever its features."""
    probe, heads, features, targets = dense(kind)
    hidden = IGNORE if kind == "segmentation" else 0
    more = torch.cat([features, 1e3 * torch.randn_like(features[:1])])
    masked = torch.cat([targets, torch.full_like(targets[:1], hidden)])
    torch.testing.assert_close(probe.losses(heads, more, masked), probe.losses(heads, features, targets))
    found, expected = probe.gradients(heads, more, masked), probe.gradients(heads, features, targets)
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_a_batch_without_a_pixel_that_counts_has_loss_and_gradient_0(kind, sampled):
    probe, heads, features, targets = dense(kind)
    targets.fill_(IGNORE if kind == "segmentation" else 0)
    batch = features, targets, *([torch.zeros(len(features), 7, dtype=torch.int64)] if sampled else [])
    assert probe.losses(heads, *batch).tolist() == [0, 0]
    gradient = probe.gradients(heads, *batch)
    assert not gradient.weight.any() and not gradient.bias.any()


def test_a_diverged_dense_head_leaves_the_others_gradients():
    probe, heads, features, targets = dense("segmentation")
    expected = probe.gradients(heads, features, targets)
    heads.weight[1] = float("nan")
    found = probe.gradients(heads, features, targets)
    torch.testing.assert_close(found.weight[0], expected.weight[0])


def test_segmentation_predicts_the_class_of_the_greatest_logit():
    probe, heads, features, targets = dense("segmentation")
    for g, found in enumerate(probe.predictions(heads, features, targets)):
        assert torch.equal(found, papers_logits(heads, g, features).argmax(1))


def test_depth_is_the_soft_argmax_of_256_bins_from_0_to_the_maximum():
    probe, heads, features, targets = dense("depth", images=1)
    assert probe.num_outputs == 256
    for g, found in enumerate(
        probe.predictions(heads.__class__(heads.weight.float(), heads.bias.float()), features.float(), targets)
    ):
        logits = papers_logits(heads, g, features)[0]
        for row in range(SIZE[0]):
            for column in range(SIZE[1]):
                weights = [
                    math.exp((v - logits[:, row, column].max().item()) / 0.03) for v in logits[:, row, column].tolist()
                ]
                expected = sum(w * MAX_DEPTH * k / 255 for k, w in enumerate(weights)) / sum(weights)
                assert found[0, row, column].item() == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(("depth", "wanted"), [(0.0001, 0), (10.0, 255), (5.0, 128), (10 / 255 * 7.4, 7)])
def test_a_depth_belongs_to_the_nearest_bin(depth, wanted):
    probe = DepthProbe(MAX_DEPTH, (1, 1))
    heads = LinearHeads(torch.zeros(1, 1, 256), torch.zeros(1, 256))
    gradient = probe.gradients(heads, torch.zeros(1, 1, 1), torch.full((1, 1, 1), depth))
    assert gradient.bias[0].argmin().item() == wanted  # softmax − onehot is negative at the wanted bin alone


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
@pytest.mark.parametrize("chunk", [1, 2 * 4 * 96, 2 * 256 * 96])
def test_predictions_in_chunks_are_those_of_all_at_once(kind, chunk, monkeypatch):
    probe, heads, features, targets = dense(kind, images=5)
    heads = LinearHeads(heads.weight.float(), heads.bias.float())
    at_once = torch.stack(list(probe.predictions(heads, features.float(), targets)))
    monkeypatch.setattr(probe, "chunk", chunk)
    torch.testing.assert_close(torch.stack(list(probe.predictions(heads, features.float(), targets))), at_once)
    assert at_once.shape == (2, 5, *SIZE)


def test_dense_metrics_know_what_does_not_count():
    iou = SegmentationProbe(4, GRID).metric()
    assert isinstance(iou, MeanIoU) and (iou.num_labels, iou.ignore_index) == (4, IGNORE)
    depth = DepthProbe(7.0, GRID).metric()
    assert isinstance(depth, DepthError) and depth.max_depth == 7.0


# -- the choice -------------------------------------------------------------------------------------------------------
def test_greater_accuracies_and_smaller_errors_are_better():
    for probe in (ClassificationProbe(2), SegmentationProbe(2, GRID)):
        assert probe.better(0.6, 0.5) and not probe.better(0.5, 0.6)
    assert DepthProbe(10.0, GRID).better(0.5, 0.6) and not DepthProbe(10.0, GRID).better(0.6, 0.5)


@pytest.mark.parametrize("probe", [ClassificationProbe(2), DepthProbe(10.0, GRID)])
def test_what_equals_or_is_no_number_is_not_better(probe):
    assert not probe.better(0.5, 0.5)
    assert not probe.better(float("nan"), 0.5)
