"""Cached features as the batches that heads are trained and scored on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .features import CachedFeatures
from .heads import epoch_order


@dataclass(frozen=True)
class Standardization:
    """`(x − mean) / scale`, channel by channel; both (d,)."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


class HeadData(ABC):
    """Features and targets of a set of images, of which `rows` are used.

    An epoch takes the images in an order, and each in one of its K views, that (seed, epoch) determine; in K epochs an
    image is seen in each of its views.
    """

    batches_at_once: ClassVar[int] = 1
    rows: Tensor
    num_views: int
    seed: int
    device: torch.device
    standardization: Standardization | None

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, rows: Tensor) -> HeadData:
        """The same data with these of its images; positions among all images, not among `self.rows`."""
        return replace(self, rows=rows)

    def standardized(self, standardization: Standardization) -> HeadData:
        """The same data with its features standardised."""
        return replace(self, standardization=standardization)

    def batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches of an epoch of training; the last may be smaller."""
        order = epoch_order(len(self), self.seed, epoch)
        # The first view of an image is drawn at random, so that a batch holds all of them.
        first = torch.randint(
            self.num_views, (int(self.rows.max()) + 1,), generator=torch.Generator().manual_seed(self.seed)
        )
        # A block of batches is gathered at once: small batches one by one would take as long as their step.
        for block in order.split(batch_size * self.batches_at_once):
            rows = self.rows[block]
            tensors = self._batch(rows, (first[rows] + epoch) % self.num_views, epoch)
            yield from zip(*(tensor.split(batch_size) for tensor in tensors), strict=True)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and targets of view 0, in the order of `rows`."""
        for rows in self.rows.split(batch_size) if len(self) else ():
            yield self._batch(rows, torch.zeros_like(rows), None)[:2]

    @property
    @abstractmethod
    def width(self) -> int:
        """d, channels of a feature."""

    @abstractmethod
    def statistics(self) -> Standardization:
        """Mean and deviation of every channel over all images and views; a constant channel has scale 1."""

    @abstractmethod
    def _batch(self, rows: Tensor, views: Tensor, epoch: int | None) -> tuple[Tensor, ...]:
        """Features, targets, and in training what else the loss takes."""


@dataclass(frozen=True)
class PooledData(HeadData):
    """One feature an image, all in memory.

    Args:
        features: (K, n, d), on the device where that has the memory.
        targets: (n,) classes, on the device.
        rows: images to use.
        seed: of order and views.
        device: where batches go.
        standardization: of the features, `None` for raw ones.
    """

    batches_at_once: ClassVar[int] = 64
    features: Tensor
    targets: Tensor
    rows: Tensor
    seed: int
    device: torch.device
    standardization: Standardization | None = None

    @property
    def num_views(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        return self.features.shape[2]

    def statistics(self) -> Standardization:
        found = channel_statistics(part.to(self.device) for view in self.features for part in view.split(65536))
        return Standardization(found.mean.to(self.device), found.scale.to(self.device))

    def _batch(self, rows: Tensor, views: Tensor, epoch: int | None) -> tuple[Tensor, ...]:
        place = (views * self.features.shape[1] + rows).to(self.features.device)
        features = self.features.flatten(0, 1)[place].to(self.device).float()
        if self.standardization is not None:
            features = self.standardization(features)
        return features, self.targets[rows.to(self.targets.device)].to(self.device)


@dataclass(frozen=True)
class TokenData(HeadData):
    """The patch tokens of an image, read from the cache batch by batch.

    Args:
        features: `tokens` (n, d) of an image, `target` (H, W), and `cls` (d,) where `with_cls`.
        rows, seed, device, standardization: as of [`PooledData`].
        with_cls: each token is followed by the image's CLS token: 2 d channels.
        pixels: how many pixels of an image a loss is taken at; `None`: all.
    """

    features: CachedFeatures
    rows: Tensor
    seed: int
    device: torch.device
    with_cls: bool = False
    pixels: int | None = None
    standardization: Standardization | None = None

    @property
    def num_views(self) -> int:
        return self.features.num_views

    @property
    def width(self) -> int:
        return self.features.shards[0][0]["tokens"].shape[2] * (2 if self.with_cls else 1)

    def statistics(self) -> Standardization:
        names = ("tokens", "cls") if self.with_cls else ("tokens",)
        parts = [
            channel_statistics(
                part.flatten(0, -2)
                for view in self.features.shards
                for shard in view
                for part in shard[name].split(64)
            )
            for name in names
        ]
        mean, scale = torch.cat([part.mean for part in parts]), torch.cat([part.scale for part in parts])
        return Standardization(mean.to(self.device), scale.to(self.device))

    def _batch(self, rows: Tensor, views: Tensor, epoch: int | None) -> tuple[Tensor, ...]:
        tokens = self.features.rows("tokens", rows, views).to(self.device).float()
        if self.with_cls:
            cls = self.features.rows("cls", rows, views).to(self.device).float()
            tokens = torch.cat([tokens, cls[:, None].expand_as(tokens)], dim=2)
        if self.standardization is not None:
            tokens = self.standardization(tokens)
        targets = self.features.rows("target", rows, views).to(self.device)
        if epoch is None or self.pixels is None:
            return tokens, targets
        generator = np.random.default_rng([self.seed, epoch, int(rows[0])])
        drawn = generator.integers(targets[0].numel(), size=(len(rows), self.pixels))
        return tokens, targets, torch.from_numpy(drawn).to(self.device)


def channel_statistics(parts: Iterator[Tensor]) -> Standardization:
    """Mean and deviation over the rows of all parts (·, d), in float64 sums; a constant channel has scale 1."""
    count, total, squares, shift = 0, 0.0, 0.0, None
    for part in parts:
        part = part.double()
        shift = part.mean(dim=0) if shift is None else shift  # near the mean, so that squares do not cancel
        part = part - shift
        count, total, squares = count + len(part), total + part.sum(dim=0), squares + part.square().sum(dim=0)
    mean = total / count
    scale = (squares / count - mean.square()).clamp(min=0).sqrt()
    scale = torch.where(scale > 1e-6 * scale.max().clamp(min=1e-12), scale, 1.0)
    return Standardization((mean + shift).float(), scale.float())


def held_out_rows(count: int, fraction: float, seed: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images to train on and images held out: `fraction` of all, spread evenly over classes where there are labels.

    One image of each class, drawn at random, always stays in training.

    Args:
        count: n.
        fraction: share of the n images.
        seed: of the draw.
        labels: (n,).

    Raises:
        ValueError: no class has a second image.
    """
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    classes = torch.zeros(count, dtype=torch.long) if labels is None else labels.cpu()[shuffled]
    order = classes.argsort(stable=True)
    first_of_class = classes[order].diff(prepend=torch.tensor([-1])) != 0
    candidates = shuffled[order][~first_of_class]
    if not len(candidates):
        raise ValueError(
            f"None of {count} training images can be held out to choose hyper-parameters, since each is the only one "
            "of its class: take more images."
        )
    wanted = min(max(1, round(fraction * count)), len(candidates))
    places = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * len(candidates) / wanted).long()
    held_out = candidates[places].sort().values
    kept = torch.ones(count, dtype=torch.bool)
    kept[held_out] = False
    return torch.where(kept)[0], held_out
