import pytest
import torch
import torch.nn.functional as F
from head_inputs import random_heads
from torch import nn

from singer_hf.evaluation.heads import BatchedSGD, HeadConfig, LinearHeads, epoch_order, train_heads
from singer_hf.evaluation.probes import ClassificationProbe

WIDTH, CLASSES, BATCH = 5, 3, 4


@pytest.fixture
def double_precision():
    """`LinearHeads.zeros` makes heads of torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batches_of(steps: int, dtype: torch.dtype = torch.float64):
    """epoch -> `steps` batches, other ones in each epoch, the last smaller."""

    def batches(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        sizes = [BATCH] * (steps - 1) + [BATCH - 1]
        return [
            (
                torch.randn(size, WIDTH, generator=generator, dtype=dtype),
                torch.randint(CLASSES, (size,), generator=generator),
            )
            for size in sizes
        ]

    return batches


def reference(config: HeadConfig, batches, steps: int, momentum: float, dtype=torch.float64) -> nn.Linear:
    """One head alone, by torch's own optimizer and schedule."""
    head = nn.Linear(WIDTH, CLASSES, dtype=dtype)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(
        head.parameters(), config.learning_rate, momentum=momentum, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps)
    for epoch in range(config.epochs):
        for features, targets in batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(head(features), targets).backward()
            optimizer.step()
            schedule.step()
    return head


def trained(configs, batches, steps: int, **options) -> LinearHeads:
    probe = ClassificationProbe(CLASSES)
    return train_heads(configs, WIDTH, CLASSES, batches, steps, probe.gradients, **options)


CONFIGS = [
    HeadConfig(0.5, 0.0, 2),
    HeadConfig(0.1, 1e-2, 5),
    HeadConfig(1.0, 0.3, 1),
    HeadConfig(0.5, 1e-6, 5),
    HeadConfig(0.02, 0.1, 3),
]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_each_head_is_what_torchs_sgd_and_cosine_schedule_make_of_it_alone(momentum, double_precision):
    batches, steps = batches_of(3), 3
    heads = trained(CONFIGS, batches, steps, momentum=momentum)
    for index, config in enumerate(CONFIGS):
        alone = reference(config, batches, steps, momentum)
        torch.testing.assert_close(heads.weight[index].T, alone.weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(heads.bias[index], alone.bias, rtol=1e-10, atol=1e-12)


def test_one_step_of_batched_sgd_is_torchs(double_precision):
    heads, gradient = random_heads(3, 4, 2), random_heads(3, 4, 2)
    start, rates, decays = heads.clone(), torch.tensor([0.1, 0.5, 2.0]), [0.0, 0.1, 1e-3]
    optimizer = BatchedSGD(heads, decays, momentum=0.7)
    for _ in range(3):
        optimizer.step(gradient, rates)
    for g in range(3):
        parameters = [nn.Parameter(start.weight[g].clone()), nn.Parameter(start.bias[g].clone())]
        sgd = torch.optim.SGD(parameters, rates[g].item(), momentum=0.7, weight_decay=decays[g])
        parameters[0].grad, parameters[1].grad = gradient.weight[g], gradient.bias[g]
        for _ in range(3):
            sgd.step()
        torch.testing.assert_close(heads.weight[g], parameters[0].data)
        torch.testing.assert_close(heads.bias[g], parameters[1].data)


def test_a_step_of_the_first_heads_leaves_the_others(double_precision):
    heads, gradient = random_heads(3, 4, 2), random_heads(2, 4, 2)
    before = heads.clone()
    BatchedSGD(heads, [0.1] * 3, momentum=0.9).step(gradient, torch.ones(2))
    assert torch.equal(heads.weight[2], before.weight[2]) and torch.equal(heads.bias[2], before.bias[2])
    assert not torch.equal(heads.weight[:2], before.weight[:2])


def test_a_head_does_not_depend_on_the_others_or_their_order(double_precision):
    batches = batches_of(2)
    together = trained(CONFIGS, batches, 2, momentum=0.9)
    backwards = trained(CONFIGS[::-1], batches, 2, momentum=0.9)
    torch.testing.assert_close(backwards.weight.flip(0), together.weight)
    for index, config in enumerate(CONFIGS):
        torch.testing.assert_close(trained([config], batches, 2, momentum=0.9).weight[0], together.weight[index])


def test_a_diverging_head_is_reported_and_leaves_the_others_as_they_are():
    batches, good = batches_of(40, torch.float32), HeadConfig(0.1, 0.0, 3)
    # A step multiplies the second head by 1 − 50 · 1, which leaves float32 within the first of three epochs.
    heads = trained([good, HeadConfig(50.0, 1.0, 3), good], batches, 40)
    assert heads.finite().tolist() == [True, False, True]
    alone = trained([good], batches, 40)
    torch.testing.assert_close(heads.weight[0], alone.weight[0])
    torch.testing.assert_close(heads.weight[2], alone.weight[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_one_number_that_is_not_finite_marks_its_head_alone(name, value):
    heads = random_heads(3, 4, 2)
    getattr(heads, name)[1].view(-1)[-1] = value
    assert heads.finite().tolist() == [True, False, True]


def test_after_each_epoch_the_heads_still_in_training_are_shown(double_precision):
    seen = []
    batches = batches_of(2)
    heads = trained(CONFIGS, batches, 2, after_epoch=lambda epoch, active: seen.append((epoch, active.clone())))
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4]
    assert [len(active) for _, active in seen] == [5, 4, 3, 2, 2]  # of epochs 2, 5, 1, 5, 3
    torch.testing.assert_close(seen[-1][1].weight, heads.weight[[1, 3]])


def test_batches_that_are_fewer_or_more_than_the_schedules_are_refused():
    for wrong in (2, 4):
        with pytest.raises(ValueError, match="zip"):
            trained([CONFIGS[0]], batches_of(3, torch.float32), wrong)


def test_heads_are_linear_layers():
    heads, features = random_heads(3, 4, 2), torch.randn(7, 4, dtype=torch.float64)
    expected = torch.stack([F.linear(features, heads.weight[g].T, heads.bias[g]) for g in range(3)])
    torch.testing.assert_close(heads(features), expected)
    torch.testing.assert_close(heads[1](features)[0], expected[1])
    torch.testing.assert_close(heads[1:](features), expected[1:])


def test_a_clone_has_memory_of_its_own_and_a_part_has_not():
    heads = random_heads(2, 4, 2)
    clone, part = heads.clone(), heads[1]
    heads.weight.zero_()
    assert clone.weight.abs().sum() > 0 and part.weight.abs().sum() == 0


def test_heads_on_raw_features_are_the_same_functions():
    heads, raw = random_heads(3, 4, 2), torch.randn(7, 4, dtype=torch.float64) * 5 + 3
    mean, scale = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1
    torch.testing.assert_close(heads.on_raw_features(mean, scale)(raw), heads((raw - mean) / scale))


def test_restricted_heads_choose_the_best_among_what_is_left():
    heads, features = random_heads(2, 4, 6), 100 * torch.randn(50, 4, dtype=torch.float64)
    allowed = [5, 1, 2]
    logits, restricted = heads(features), heads.restricted(allowed)(features)
    torch.testing.assert_close(restricted[..., allowed], logits[..., allowed])
    expected = torch.tensor(allowed)[logits[..., allowed].argmax(-1)]
    assert torch.equal(restricted.argmax(-1), expected)
    assert not torch.equal(logits.argmax(-1), expected)
    assert torch.isfinite(restricted).all()


def test_restricting_leaves_the_heads_themselves():
    heads = random_heads(2, 4, 6)
    before = heads.clone()
    heads.restricted([0])
    assert torch.equal(heads.weight, before.weight) and torch.equal(heads.bias, before.bias)


def test_the_order_of_an_epoch_is_a_permutation_that_seed_and_epoch_determine():
    orders = {(seed, epoch): epoch_order(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == 4
    torch.rand(3)  # whatever else is drawn
    assert epoch_order(100, 1, 0).tolist() == orders[1, 0]
