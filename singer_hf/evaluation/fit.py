"""From cached features to one head: the grid and the choice among it, as a protocol says."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from .head_data import HeadData, held_out_rows
from .heads import HeadConfig, LinearHeads, train_heads
from .probes import Probe
from .protocol import Protocol

logger = logging.getLogger(__name__)

_FEW = 50
"""Fewer validation images than these tell hyper-parameters apart by chance: one is 2 points."""


class DivergedError(FloatingPointError):
    """No head of the grid ended with finite numbers."""


@dataclass(frozen=True)
class Fit:
    """A head and how it came about.

    Args:
        head: one, on raw features.
        config: its hyper-parameters.
        selection: what a result says of the choice.
    """

    head: LinearHeads
    config: HeadConfig
    selection: dict[str, Any]


def fit_head(
    probe: Probe,
    train: HeadData,
    test: HeadData,
    protocol: Protocol,
    state: PartialState,
    *,
    plain: HeadData | None = None,
    labels: Tensor | None = None,
) -> Fit:
    """One head, the same in every process.

    Args:
        probe: of the task.
        train: raw features of the training images.
        test: of the test images, which only `best_epoch_on_test` looks at.
        protocol: grid and choice.
        state: of the processes, among which the grid is dealt out.
        plain: the training images as test images are seen, to hold some of them out; default: `train`.
        labels: (n,) classes of the training images, where they have one each.

    Raises:
        DivergedError: every learning rate was too high.
    """
    if protocol.selection == "best_epoch_on_test":
        return _best_epoch_on_test(probe, train, test, protocol, state)
    return _best_on_validation(probe, train, train if plain is None else plain, protocol, state, labels)


def score_heads(
    probe: Probe, heads: LinearHeads, data: HeadData, batch_size: int, **metric_options: Any
) -> list[dict[str, Any] | None]:
    """Scores of each head on `data`; `None` for a head that diverged, and in all processes but the first."""
    finite = heads.finite().tolist()
    metrics = [probe.metric(**metric_options) if good else None for good in finite]
    with torch.inference_mode():
        for features, targets in data.in_order(batch_size):
            for metric, predictions in zip(metrics, probe.predictions(heads, features, targets), strict=True):
                if metric is not None:
                    metric.add_batch(predictions=predictions, references=targets)
    return [None if metric is None else metric.compute() for metric in metrics]


def _train(
    probe: Probe, data: HeadData, protocol: Protocol, configs: list[HeadConfig], after_epoch: Any = None
) -> LinearHeads:
    return train_heads(
        configs,
        data.width,
        probe.num_outputs,
        partial(data.batches, batch_size=protocol.batch_size),
        -(-len(data) // protocol.batch_size),
        probe.gradients,
        momentum=protocol.momentum,
        device=data.device,
        after_epoch=after_epoch,
    )


def _best_on_validation(
    probe: Probe, train: HeadData, plain: HeadData, protocol: Protocol, state: PartialState, labels: Tensor | None
) -> Fit:
    standardization = train.statistics() if protocol.standardize else None
    if standardization is not None:
        train, plain = train.standardized(standardization), plain.standardized(standardization)
    kept, held_out = held_out_rows(len(train), protocol.validation_fraction, train.seed, labels)
    if len(held_out) < _FEW and state.is_main_process:
        logger.warning("Hyper-parameters are chosen on %d images alone: take the score with care.", len(held_out))
    grid = protocol.grid()
    own = grid[state.process_index :: state.num_processes]
    scores = []
    if own:
        heads = _train(probe, train.subset(kept), protocol, own)
        scores = [
            _number(score and score[probe.main_score])
            for score in score_heads(probe, heads, plain.subset(held_out), protocol.batch_size)
        ]
    found = dict(gather_object(list(zip(own, scores, strict=True))))
    if all(score is None for score in found.values()):
        raise DivergedError(
            f"All {len(grid)} heads diverged: name lower learning_rates (now {list(protocol.learning_rates)})."
        )
    best, best_score = None, None
    for config in grid:
        score = found[config]
        if score is not None and (best is None or probe.better(score, best_score)):
            best, best_score = config, score
    head = _train(probe, train, protocol, [best]) if state.is_main_process else None
    if head is not None and not head.finite().all():
        raise DivergedError(
            f"The best head of the grid (learning rate {best.learning_rate:g}) diverged when it was trained again on "
            "all images: name lower learning_rates, and look at the features of the images that were held out."
        )
    head = _shared(head, state, train.device)
    if standardization is not None:
        head = head.on_raw_features(standardization.mean, standardization.scale)
    grid_scores = [asdict(config) | {probe.main_score: found[config]} for config in grid]
    return Fit(
        head,
        best,
        {
            "rule": f"best {probe.main_score} on {protocol.validation_fraction:g} of the training images, trained "
            "again on all of them, test images scored once",
            "validation_images": len(held_out),
            "validation_score": best_score,
            "grid": grid_scores,
        },
    )


def _best_epoch_on_test(probe: Probe, train: HeadData, test: HeadData, protocol: Protocol, state: PartialState) -> Fit:
    (config,) = protocol.grid()
    standardization = train.statistics() if protocol.standardize else None
    if standardization is not None:
        train, test = train.standardized(standardization), test.standardized(standardization)
    best: dict[str, Any] = {}
    scores: list[float] = []

    def look(epoch: int, heads: LinearHeads) -> None:
        (score,) = score_heads(probe, heads, test, max(256, protocol.batch_size))
        if score is None:
            raise DivergedError(
                f"The head diverged in epoch {epoch} (learning rate {config.learning_rate:g}): name a lower "
                "learning_rates, or use the default protocol, which standardises features."
            )
        scores.append(score[probe.main_score])
        if not best or probe.better(scores[-1], best["score"]):
            best.update(score=scores[-1], epoch=epoch, head=heads.clone())

    if state.is_main_process:
        _train(probe, train, protocol, [config], after_epoch=look)
    head = _shared(best.get("head"), state, train.device)
    if standardization is not None:
        head = head.on_raw_features(standardization.mean, standardization.scale)
    return Fit(
        head,
        config,
        {
            "rule": f"best epoch on the test images by {probe.main_score}, as the paper does (optimistic)",
            "best_epoch": best.get("epoch"),
            "last_epoch_score": scores[-1] if scores else None,
        },
    )


def _number(score: float | None) -> float | None:
    """`None` for a score that is not a number, which would be neither better nor worse than any."""
    return None if score is None or score != score else score


def _shared(head: LinearHeads | None, state: PartialState, device: torch.device) -> LinearHeads:
    """The main process's head, in every process."""
    held = [None if head is None else (head.weight.cpu(), head.bias.cpu())]
    if state.num_processes > 1:
        broadcast_object_list(held)
    return LinearHeads(*(tensor.to(device) for tensor in held[0]))
