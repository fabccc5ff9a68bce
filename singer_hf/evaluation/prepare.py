"""From a task's splits to the features its heads are trained and scored on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .extraction import Extractor
from .head_data import HeadData, PooledData, TokenData
from .labels import Labels, read_split_labels
from .probes import ClassificationProbe, DepthProbe, Probe, SegmentationProbe
from .protocol import Protocol
from .splits import Split
from .task import Task
from .views import annotated_views, image_views


@dataclass(frozen=True)
class Prepared:
    """What a head of a task is made from.

    Args:
        probe: of the kind of task.
        train: training images, in augmented views where the protocol has some.
        test: test images.
        plain: training images as test images are seen, where they are needed.
        labels: of the training images of a classification.
    """

    probe: Probe
    train: HeadData
    test: HeadData
    plain: HeadData | None = None
    labels: Labels | None = None


def prepare(
    extractor: Extractor, task: Task, train: Split, test: Split, protocol: Protocol, seed: int, *, with_plain: bool
) -> Prepared:
    """Features of both splits, out of the cache or through the backbone.

    Args:
        extractor: of the backbone.
        task, train, test: what is evaluated.
        protocol: which views, and whether some are held out.
        seed: of views and order.
        with_plain: training images as test images are seen are needed beside the augmented ones, e.g. for k-NN; to
            hold some of them out they are there in any case.
    """
    augmented = protocol.views > 0
    with_plain = with_plain or protocol.selection == "validation"
    if task.kind == "classification":
        labels, test_labels = read_split_labels(task, train, test)
        features = pooled_data(extractor, train, labels.values, protocol, seed, augmented=augmented)
        plain = None if augmented else features
        if augmented and with_plain:
            plain = pooled_data(extractor, train, labels.values, protocol, seed)
        return Prepared(
            ClassificationProbe(len(labels.names)),
            train=features,
            plain=plain,
            test=pooled_data(extractor, test, test_labels.values, protocol, seed),
            labels=labels,
        )
    grid = extractor.backbone.grid
    if task.kind == "segmentation":
        probe = SegmentationProbe(task.num_labels, grid)
    else:
        probe = DepthProbe(task.max_depth, grid)
    with_plain = augmented and protocol.selection == "validation"
    return Prepared(
        probe,
        train=token_data(extractor, train, task, protocol, seed, augmented=augmented),
        plain=token_data(extractor, train, task, protocol, seed) if with_plain else None,
        test=token_data(extractor, test, task, protocol, seed),
    )


def pooled_data(
    extractor: Extractor, split: Split, labels: Tensor, protocol: Protocol, seed: int, *, augmented: bool = False
) -> PooledData:
    """One feature an image."""
    backbone = extractor.backbone
    views = image_views(backbone.input_size, protocol, augmented=augmented, seed=seed)
    cached, device = extractor.pooled(split, views), backbone.device
    features = cached.all("pooled", device if _fits(cached.nbytes("pooled"), device) else "cpu")
    return PooledData(features, labels.to(device), torch.arange(len(labels)), seed, device)


def token_data(
    extractor: Extractor, split: Split, task: Task, protocol: Protocol, seed: int, *, augmented: bool = False
) -> TokenData:
    """The patch tokens of an image, for depth with the CLS token beside each where the model has one."""
    backbone = extractor.backbone
    views = annotated_views(backbone.input_size, protocol, augmented=augmented, seed=seed)
    features = extractor.tokens(split, views, task)
    size = features.nbytes("tokens") + features.nbytes("target")
    if backbone.device.type == "cuda" and _fits(size, backbone.device):
        features = features.to(backbone.device)
    return TokenData(
        features,
        torch.arange(features.num_images),
        seed,
        backbone.device,
        with_cls=task.kind == "depth" and "cls" in backbone.backbone.prefix,
        pixels=protocol.pixels,
    )


def _fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes leave half of the GPU's free memory free; always true of a CPU."""
    return device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] / 2
