"""What a linear head predicts and how it is scored, one class a kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import DepthError, MeanIoU, TopKAccuracy
from ..metrics.base import StatisticsMetric
from .heads import LinearHeads
from .targets import IGNORE


class Probe(ABC):
    """Loss and score of a kind of task.

    Batches are (features, targets), on the device of the heads.
    """

    main_score: ClassVar[str]
    """The score that chooses among heads and stands in tables."""
    greater_is_better: ClassVar[bool] = True

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """C, outputs of a head."""

    @abstractmethod
    def losses(self, heads: LinearHeads, *batch: Tensor) -> Tensor:
        """(G,): the mean loss of each head on a batch."""

    def gradients(self, heads: LinearHeads, *batch: Tensor) -> LinearHeads:
        """Of the losses: what is the gradient of head g's loss with respect to head g."""
        leaves = [tensor.detach().requires_grad_() for tensor in (heads.weight, heads.bias)]
        return LinearHeads(*torch.autograd.grad(self.losses(LinearHeads(*leaves), *batch).sum(), leaves))

    @abstractmethod
    def predictions(self, heads: LinearHeads, features: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """What the metric takes, for one head after the other; of the targets only the size is read."""

    @abstractmethod
    def metric(self, **options: Any) -> StatisticsMetric:
        """A new metric of predictions; `options` are evaluate's, for several processes."""

    def better(self, score: float, other: float) -> bool:
        """Whether a main score is better than another; one that is not a number never is."""
        return score > other if self.greater_is_better else score < other


class ClassificationProbe(Probe):
    """Cross-entropy on one feature an image; top-1 and, from five classes on, top-5 accuracy.

    Features are (B, d), targets (B,).

    Args:
        num_labels: C.
    """

    main_score = "top1_accuracy"

    def __init__(self, num_labels: int):
        self.num_labels = num_labels

    @property
    def num_outputs(self) -> int:
        return self.num_labels

    def losses(self, heads: LinearHeads, features: Tensor, targets: Tensor) -> Tensor:
        logits = heads(features).flatten(0, 1)
        losses = F.cross_entropy(logits, targets.repeat(len(heads)), reduction="none")
        return losses.unflatten(0, (len(heads), -1)).mean(dim=1)

    def gradients(self, heads: LinearHeads, features: Tensor, targets: Tensor) -> LinearHeads:
        # softmax(logits) − onehot(target), without the passes over all logits that autograd makes besides.
        errors = heads(features).softmax(dim=2)
        place = targets[None, :, None].expand(len(heads), -1, -1)
        errors.scatter_add_(2, place, errors.new_full((), -1.0).expand_as(place))
        share = 1 / len(features)
        ones = features.new_full((1, len(features)), share)
        return LinearHeads((features * share).T @ errors, (ones @ errors)[:, 0])

    def predictions(self, heads: LinearHeads, features: Tensor, targets: Tensor) -> Iterator[Tensor]:
        for index in range(len(heads)):
            yield heads[index](features)[0]

    def metric(self, **options: Any) -> TopKAccuracy:
        return TopKAccuracy((1, 5) if self.num_labels >= 5 else (1,), **options)


class DenseProbe(Probe):
    """What segmentation and depth share: a 1×1 convolution on tokens, then bilinear upsampling to the pixels.

    Both maps are linear and the weights of the interpolation sum to one, so that the convolution may come first, at
    the tokens; also where the paper upsamples before it (depth). Features are (B, n, d), targets (B, H, W).

    Args:
        grid: patches (rows, columns) of an image.
    """

    chunk = 2**26
    """Logits held at once, in heads × images × outputs × pixels."""

    def __init__(self, grid: tuple[int, int]):
        self.grid = grid

    @abstractmethod
    def _pixel_losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, G, C, P) and targets (B, P) -> losses (B, G, P), and which pixels count, bool (B, P)."""

    @abstractmethod
    def _decoded(self, logits: Tensor) -> Tensor:
        """Logits (B, C, H, W) of one head -> prediction (B, H, W)."""

    def losses(self, heads: LinearHeads, features: Tensor, targets: Tensor, pixels: Tensor | None = None) -> Tensor:
        """`pixels` (B, P), row · W + column: the loss is taken at these alone; drawn at random, it is unbiased."""
        sums, count = self._loss_sums(heads, features, targets, pixels)
        return sums / count.clamp(min=1)

    def gradients(
        self, heads: LinearHeads, features: Tensor, targets: Tensor, pixels: Tensor | None = None
    ) -> LinearHeads:
        # Image by image where need be: the logits of all pixels of a batch are many gigabytes.
        per_image = len(heads) * self.num_outputs * (targets[0].numel() if pixels is None else pixels.shape[1])
        images = max(1, self.chunk // per_image)
        leaves = [tensor.detach().requires_grad_() for tensor in (heads.weight, heads.bias)]
        total, gradients = 0, [torch.zeros_like(leaf) for leaf in leaves]
        for start in range(0, len(features), images):
            part = slice(start, start + images)
            sums, count = self._loss_sums(
                LinearHeads(*leaves), features[part], targets[part], None if pixels is None else pixels[part]
            )
            for gradient, own in zip(gradients, torch.autograd.grad(sums.sum(), leaves), strict=True):
                gradient += own
            total = total + count
        return LinearHeads(*(gradient / total.clamp(min=1) for gradient in gradients))

    def _loss_sums(
        self, heads: LinearHeads, features: Tensor, targets: Tensor, pixels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sum (G,) of the losses of the pixels that count, and how many these are."""
        maps = self._maps(heads, features)
        if pixels is None:
            logits, targets = self._upsampled(maps, targets.shape[1:]).flatten(2), targets.flatten(1)
        else:
            logits, targets = _at_pixels(maps, pixels, targets.shape[1:]), targets.flatten(1).gather(1, pixels)
        losses, counts = self._pixel_losses(logits.unflatten(1, (len(heads), -1)), targets)
        return (losses * counts[:, None]).sum(dim=(0, 2)), counts.sum()

    def predictions(self, heads: LinearHeads, features: Tensor, targets: Tensor) -> Iterator[Tensor]:
        height, width = targets.shape[1:]
        images = max(1, self.chunk // (self.num_outputs * height * width))
        for index in range(len(heads)):
            maps = self._maps(heads[index], features)
            yield torch.cat([self._decoded(self._upsampled(part, (height, width))) for part in maps.split(images)])

    def _maps(self, heads: LinearHeads, features: Tensor) -> Tensor:
        """(B, n, d) -> (B, G·C, rows, columns)."""
        weight = heads.weight.transpose(1, 2).flatten(0, 1)
        return F.linear(features, weight, heads.bias.flatten()).transpose(1, 2).unflatten(2, self.grid)

    @staticmethod
    def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class SegmentationProbe(DenseProbe):
    """Cross-entropy of pixels; mean IoU over the whole set at the input's resolution.

    Targets hold classes, and `IGNORE` where pixels count for nothing.

    Args:
        num_labels: C.
        grid: as of [`DenseProbe`].
    """

    main_score = "mean_iou"

    def __init__(self, num_labels: int, grid: tuple[int, int]):
        super().__init__(grid)
        self.num_labels = num_labels

    @property
    def num_outputs(self) -> int:
        return self.num_labels

    def _pixel_losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = targets.long()[:, None].expand(-1, logits.shape[1], -1)
        return _cross_entropy(logits, wanted), targets != IGNORE

    def _decoded(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def metric(self, **options: Any) -> MeanIoU:
        return MeanIoU(self.num_labels, ignore_index=IGNORE, **options)


class DepthProbe(DenseProbe):
    """Cross-entropy over 256 depth bins; depth as the soft-argmax of the logits; RMSE in metres.

    METHOD.md section 5: bins over 0 to `max_depth`, softmax of logits / 0.03 at evaluation. Bin k of the released code
    stands for the depth k / 255 · max_depth, and a pixel belongs to the nearest. Pixels of depth 0 count for nothing.

    Args:
        max_depth: metres.
        grid: as of [`DenseProbe`].
    """

    main_score = "rmse"
    greater_is_better = False
    bins = 256
    temperature = 0.03

    def __init__(self, max_depth: float, grid: tuple[int, int]):
        super().__init__(grid)
        self.max_depth = max_depth

    @property
    def num_outputs(self) -> int:
        return self.bins

    def _pixel_losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = (targets / self.max_depth * (self.bins - 1)).round().long()[:, None].expand(-1, logits.shape[1], -1)
        return _cross_entropy(logits, wanted), targets > 0

    def _decoded(self, logits: Tensor) -> Tensor:
        depths = torch.linspace(0, self.max_depth, self.bins, device=logits.device)
        return torch.einsum("bchw,c->bhw", (logits / self.temperature).softmax(dim=1), depths)

    def metric(self, **options: Any) -> DepthError:
        return DepthError(self.max_depth, **options)


def _at_pixels(maps: Tensor, pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, rows, columns), upsampled to `size` = (H, W), at pixels (B, P) alone: (B, C, P)."""
    height, width = size
    # Centres of the pixels in grid_sample's coordinates, in which an image goes from -1 to 1.
    points = torch.stack([(pixels % width * 2 + 1) / width - 1, (pixels // width * 2 + 1) / height - 1], dim=-1)
    points = points[:, :, None].to(maps)
    return F.grid_sample(maps, points, mode="bilinear", padding_mode="border", align_corners=False)[..., 0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (B, G, C, P), classes (B, G, P), some of them `IGNORE` -> losses (B, G, P), 0 for those."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), ignore_index=IGNORE, reduction="none")
    return losses.unflatten(0, logits.shape[:2])
