"""Metrics of distilled students as `evaluate.Metric`s, without the network.

The functions behind them lie in modules that do not import evaluate: `singer_hf.measures` and `singer_hf.losses`.
"""

from .depth_error import DepthError
from .gram_distance import GramDistance
from .linear_cka import LinearCKA
from .mean_iou import MeanIoU
from .top_k_accuracy import TopKAccuracy

__all__ = ["DepthError", "GramDistance", "LinearCKA", "MeanIoU", "TopKAccuracy"]
