"""Many linear heads on the same frozen features, trained as one batched problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.seeding import sample_seed


@dataclass(frozen=True)
class HeadConfig:
    """Hyper-parameters of one head.

    Args:
        learning_rate: peak of the cosine schedule, from which it falls to 0 with every step.
        weight_decay: added to the gradient of weight and bias as `weight_decay · parameter`, as in `torch.optim.SGD`.
        epochs: passes over the training images.
    """

    learning_rate: float
    weight_decay: float
    epochs: int


@dataclass
class LinearHeads:
    """G linear maps from d channels to C outputs.

    Args:
        weight: (G, d, C).
        bias: (G, C).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def zeros(cls, heads: int, width: int, outputs: int, device: torch.device | str = "cpu") -> LinearHeads:
        """All zero: the loss is convex in a linear head, so that no random start is needed."""
        return cls(torch.zeros(heads, width, outputs, device=device), torch.zeros(heads, outputs, device=device))

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, index: int | slice) -> LinearHeads:
        """Some of the heads, sharing memory with these."""
        part = slice(index, index + 1) if isinstance(index, int) else index
        return LinearHeads(self.weight[part], self.bias[part])

    def __call__(self, features: Tensor) -> Tensor:
        """(n, d) -> (G, n, C)."""
        return torch.baddbmm(self.bias[:, None], features.expand(len(self), -1, -1), self.weight)

    @property
    def num_outputs(self) -> int:
        return self.weight.shape[2]

    def finite(self) -> Tensor:
        """(G,) whether every number of a head is finite: one whose learning rate was too high is not."""
        return torch.isfinite(self.weight).all(dim=(1, 2)) & torch.isfinite(self.bias).all(dim=1)

    def clone(self) -> LinearHeads:
        return LinearHeads(self.weight.clone(), self.bias.clone())

    def restricted(self, outputs: Sequence[int]) -> LinearHeads:
        """The same heads, in which no output but these can be the greatest."""
        others = torch.ones(self.num_outputs, dtype=torch.bool)
        others[list(outputs)] = False
        heads = self.clone()
        heads.weight[:, :, others] = 0
        heads.bias[:, others] = torch.finfo(heads.bias.dtype).min
        return heads

    def on_raw_features(self, mean: Tensor, scale: Tensor) -> LinearHeads:
        """The same functions of x, where these are of `(x − mean) / scale`; mean and scale (d,)."""
        weight = self.weight / scale[:, None]
        return LinearHeads(weight, self.bias - torch.einsum("d,gdc->gc", mean, weight))


class BatchedSGD:
    """`torch.optim.SGD` with momentum for G heads at once, each with a learning rate and a weight decay of its own.

    Args:
        heads: updated in place.
        weight_decays: one a head.
        momentum: of all heads.
    """

    def __init__(self, heads: LinearHeads, weight_decays: Sequence[float], momentum: float):
        self.heads, self.momentum = heads, momentum
        self.weight_decay = heads.weight.new_tensor(weight_decays)
        self.velocity = LinearHeads(torch.zeros_like(heads.weight), torch.zeros_like(heads.bias)) if momentum else None

    def step(self, gradient: LinearHeads, learning_rates: Tensor) -> None:
        """One step of the first `len(gradient)` heads; `learning_rates` has one entry for each of these."""
        active = slice(len(gradient))
        for name, view in (("weight", (-1, 1, 1)), ("bias", (-1, 1))):
            parameter = getattr(self.heads, name)[active]
            update = getattr(gradient, name).addcmul(self.weight_decay[active].view(view), parameter)
            if self.velocity is not None:
                update = getattr(self.velocity, name)[active].mul_(self.momentum).add_(update)
            parameter.addcmul_(update, learning_rates.view(view), value=-1)


def train_heads(
    configs: Sequence[HeadConfig],
    width: int,
    outputs: int,
    batches: Callable[[int], Iterable[tuple]],
    steps_per_epoch: int,
    gradients: Callable[..., LinearHeads],
    *,
    momentum: float = 0.0,
    device: torch.device | str = "cpu",
    after_epoch: Callable[[int, LinearHeads], None] | None = None,
) -> LinearHeads:
    """Trains one head a config on the same batches, in the same order. Each learns as it would alone.

    Args:
        configs: G of them. Heads of fewer epochs leave when theirs are over.
        width: d.
        outputs: C.
        batches: epoch -> the epoch's batches, each a tuple.
        steps_per_epoch: how many these are.
        gradients: (heads, *batch) -> gradient of each head's mean loss with respect to that head.
        momentum: of SGD.
        device: where heads and batches are.
        after_epoch: called with (epoch, heads still in training), e.g. to look at held-out images.

    Returns:
        The heads, in the order of `configs`. Those that diverged hold numbers that are not finite.
    """
    order = sorted(range(len(configs)), key=lambda index: -configs[index].epochs)  # those in training come first
    ordered = [configs[index] for index in order]
    heads = LinearHeads.zeros(len(ordered), width, outputs, device)
    optimizer = BatchedSGD(heads, [config.weight_decay for config in ordered], momentum)
    peak = torch.tensor([config.learning_rate for config in ordered], dtype=torch.float64)
    steps = torch.tensor([config.epochs * steps_per_epoch for config in ordered], dtype=torch.float64)
    step = 0
    for epoch in range(max(config.epochs for config in ordered)):
        active = sum(config.epochs > epoch for config in ordered)
        now = torch.arange(step, step + steps_per_epoch, dtype=torch.float64)[:, None]
        schedule = 0.5 * peak[:active] * (1 + torch.cos(math.pi * now / steps[:active]))
        schedule = schedule.to(heads.weight)  # (steps_per_epoch, active), moved once an epoch
        for rates, batch in zip(schedule, batches(epoch), strict=True):
            optimizer.step(gradients(heads[:active], *batch), rates)
        step += steps_per_epoch
        if after_epoch is not None:
            after_epoch(epoch, heads[:active])
    back = torch.tensor(order, device=heads.weight.device).argsort()
    return LinearHeads(heads.weight[back], heads.bias[back])


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """A permutation of `count` that (seed, epoch) alone determines, on the CPU."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(sample_seed(seed, epoch, 0)))
