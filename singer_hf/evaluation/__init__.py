"""Linear evaluation of frozen backbones: the paper's Table 1 and any other labelled images.

FrozenBackbone ─ Extractor ─ features on disk ─ HeadData ─ fit_head ─ EvaluationResult
(model)          (images)    (cache.py)         (batches)  (heads.py)  (JSON)
"""

from . import paper_tasks  # registers the tasks
from .cache import CacheError, FeatureCache
from .evaluator import LinearEvaluator
from .extraction import Extractor
from .fit import DivergedError
from .frozen import FrozenBackbone
from .protocol import PROTOCOLS, Protocol
from .result import EvaluationResult, ResultError, find_results
from .targets import AnnotationError
from .task import GROUPS, TASKS, Task, TaskError, read_task, register_task, resolve_tasks

__all__ = [
    "GROUPS",
    "PROTOCOLS",
    "TASKS",
    "AnnotationError",
    "CacheError",
    "DivergedError",
    "EvaluationResult",
    "Extractor",
    "FeatureCache",
    "FrozenBackbone",
    "LinearEvaluator",
    "Protocol",
    "ResultError",
    "Task",
    "TaskError",
    "find_results",
    "paper_tasks",
    "read_task",
    "register_task",
    "resolve_tasks",
]
