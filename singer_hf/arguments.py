"""Training arguments: Trainer's own, with the paper's recipe as defaults, and the objectives' options."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Optional, Union

from transformers import TrainingArguments

from .data.training_stream import STREAM_SPLITS
from .faults.nonfinite import POLICIES
from .layers import LAYER_MATCHINGS
from .losses import check_median_ratio
from .objectives import objective_class
from .objectives.base import check_quantile
from .objectives.feature_loss import check_prefix_share
from .objectives.projectors import PROJECTORS
from .objectives.target_normalization import TARGET_NORMALIZATIONS

NORMALIZATIONS = ("own", "imagenet")
# Options of some objectives, with the values that leave them out.
_OF_FEATURE_LOSS = {"target_normalization": "none", "outlier_mask_ratio": None, "prefix_share": None}
_OF_ADAPTER = {"adapter_learning_rate": None, "outlier_min_ratio": None, "detach_target": False}


@dataclass
class DistillationArguments(TrainingArguments):
    """`TrainingArguments` for [`DistillationTrainer`].

    Defaults that differ from Trainer's are the paper's recipe (METHOD.md section 5): AdamW at 1e-3, weight decay 1e-4
    on all parameters, no clipping, 100 epochs of which 5 % warm up, cosine to 1e-4 of the peak. The paper's batch is
    512 in all processes together.

    Raises:
        ValueError: an option outside its range or registry; the message says what was expected.
    """

    # -- the paper's recipe -------------------------------------------------------------------------------------------
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW (paper: 1e-3)."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay (paper: 1e-4)."})
    decay_all_parameters: bool = field(
        default=True,
        metadata={"help": "Decay biases and norms too, as the paper does. False: Trainer's own choice, without them."},
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 clips nothing (paper)."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Epochs (paper: 100)."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up steps, or below 1 their share of all steps (paper: 5 of 100 epochs)."}
    )
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Schedule (paper: cosine to 1e-4 of the peak)."}
    )
    lr_scheduler_kwargs: Optional[Union[dict[str, Any], str]] = field(
        default=None,
        metadata={"help": "Options of the schedule; default with cosine_with_min_lr: {'min_lr_rate': 1e-4} (paper)."},
    )

    # -- objective ----------------------------------------------------------------------------------------------------
    objective: str = field(
        default="singer", metadata={"help": "What is minimised: singer, singer_reference, fitnet or vitkd."}
    )
    teacher_layers: Optional[list[int]] = field(
        default=None,
        metadata={"help": "Distilled teacher blocks, 0-based. Default: the objective's, for singer 17 and 23 of 24."},
    )
    student_layers: Optional[list[int]] = field(
        default=None,
        metadata={
            "help": "The student block of each, in the order of teacher_layers. Default: matched by relative depth."
        },
    )
    layer_matching: Optional[str] = field(
        default=None,
        metadata={"help": "Rule of that matching, paper or reference. Default: the objective's own."},
    )
    kd_weight: float = field(default=1.0, metadata={"help": "singer: λ_kd (paper: 1.0)."})
    outlier_weight: float = field(default=0.01, metadata={"help": "singer: λ_outlier (paper: 0.01)."})
    info_weight: float = field(default=1.0, metadata={"help": "singer: λ_info (paper: 1.0)."})
    outlier_quantile: float = field(
        default=0.97,
        metadata={"help": "α: patches above this quantile of their image's norms are outliers (paper: 0.97)."},
    )
    adapter_learning_rate: Optional[float] = field(
        default=None,
        metadata={
            "help": "singer: peak learning rate of the adapter, on the same schedule, e.g. a twentieth of the "
            "student's. Default: learning_rate (paper)."
        },
    )
    projector: str = field(
        default="linear", metadata={"help": "Student to teacher width: linear (paper), or identity at equal widths."}
    )
    target_normalization: str = field(
        default="none",
        metadata={
            "help": "singer, fitnet: none (paper), or layer_norm: the student learns each token with mean 0 and "
            "variance 1 over its channels."
        },
    )
    outlier_mask_ratio: Optional[float] = field(
        default=None,
        metadata={
            "help": "singer, fitnet: patches of the target above so many times the batch's median norm are left out "
            "of the feature loss, e.g. 2.0; `masked_share` in the log says how many. Default: none are (paper)."
        },
    )
    prefix_share: Optional[float] = field(
        default=None,
        metadata={
            "help": "singer, fitnet: share of the feature loss that prefix tokens (CLS, and registers where both "
            "models have them) have together, e.g. 0.5. Default: their share of the tokens (paper)."
        },
    )
    outlier_min_ratio: Optional[float] = field(
        default=None,
        metadata={
            "help": "singer: of the patches above the quantile, L_outlier shortens those alone that are above so many "
            "times the batch's median norm, e.g. 2.0; in a teacher without artifacts none. Default: all (paper)."
        },
    )
    detach_target: bool = field(
        default=False,
        metadata={
            "help": "singer: L_KD does not train the adapter, L_outlier and L_info alone do. False in the paper."
        },
    )
    vitkd_mimicking_weight: float = field(default=3e-5, metadata={"help": "vitkd: α (official: 3e-5)."})
    vitkd_generation_weight: float = field(default=3e-6, metadata={"help": "vitkd: β (official: 3e-6)."})
    vitkd_mask_ratio: float = field(default=0.5, metadata={"help": "vitkd: λ, share of masked patches (0.5)."})

    # -- images -------------------------------------------------------------------------------------------------------
    image_column: Optional[str] = field(
        default=None, metadata={"help": "Column of the images. Default: image, else the only column of images."}
    )
    label_column: Optional[str] = field(
        default=None, metadata={"help": "Column of integer labels in the evaluation split, for its k-NN accuracy."}
    )
    image_size: Optional[int] = field(
        default=None,
        metadata={"help": "Side of both models' square input. Default: each model's own image processor's size."},
    )
    normalization: str = field(
        default="own",
        metadata={
            "help": "own: each model sees pixels normalised as its image processor says; imagenet: ImageNet's mean "
            "and deviation for both, as the released code does. The student is saved with what it was trained with."
        },
    )
    min_crop_scale: float = field(default=0.08, metadata={"help": "Least area of RandomResizedCrop (0.08)."})
    flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip (0.5)."})
    skip_corrupt_images: bool = field(
        default=False, metadata={"help": "Skip and count images that cannot be decoded; else the first one stops."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Streamed data: images in the shuffle buffer (0: no shuffling)."}
    )
    stream_split: str = field(
        default="samples",
        metadata={
            "help": "Streamed data: samples: every worker reads all of it and decodes its own images, in an order "
            "that (seed, epoch) alone determines; shards: each worker reads files of its own, where reading is slow; "
            "processes × workers must divide their number."
        },
    )
    data_retries: int = field(
        default=5, metadata={"help": "Streamed data: times in a row that a failing source is opened again (5)."}
    )
    data_timeout: float = field(
        default=600.0,
        metadata={"help": "Streamed data: seconds without an answer that count as a failure; 0: wait for ever (600)."},
    )
    knn_neighbors: int = field(default=20, metadata={"help": "k of the evaluation's k-NN accuracy."})

    shard_teacher: bool = field(
        default=False,
        metadata={"help": "Deal the frozen teacher's blocks over all processes, for one that no device holds whole."},
    )

    # -- faults -------------------------------------------------------------------------------------------------------
    nonfinite: str = field(
        default="stop",
        metadata={
            "help": "A step whose loss or gradient is not finite: stop the run, or skip it; its images are written to "
            "output_dir/nonfinite and the weights stay as they were in either case."
        },
    )
    max_nonfinite_steps: int = field(default=10, metadata={"help": "nonfinite=skip: the next one stops the run (10)."})
    resume_fallback: bool = field(
        default=False,
        metadata={"help": "Where the checkpoint to resume is damaged, take the newest one that is whole."},
    )

    # -- what Trainer's defaults get wrong here -----------------------------------------------------------------------
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: Trainer would drop the image column."}
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Drop the last, smaller training batch, so that every step is a mean over as many images."},
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log entries."})

    def __post_init__(self):
        self.warmup_steps = float(self.warmup_steps)
        if self.lr_scheduler_kwargs is None and str(self.lr_scheduler_type) == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr_rate": 1e-4}
        # Trainer's filter replaces a NaN loss in the log by the mean of earlier ones; here a NaN stops the run.
        self.logging_nan_inf_filter = False
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # Trainer takes only names that end in "loss" as lower-is-better, which forgets eval_loss_kd and distances.
            name = self.metric_for_best_model
            self.greater_is_better = not any(part in name for part in ("loss", "distance", "outlier", "peak"))
        if self.ddp_find_unused_parameters is None:
            # Trainer would search for them at every step; the Distiller has frozen what its objective never reaches.
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no accelerator to pin for, as torch would warn
        self._validate()

    def _validate(self) -> None:
        kind = objective_class(self.objective)
        check_quantile(self.outlier_quantile)
        for name in ("outlier_mask_ratio", "outlier_min_ratio"):
            check_median_ratio(name, getattr(self, name))
        if not kind.uses_feature_loss:
            for name, default in _OF_FEATURE_LOSS.items():
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name} is an option of singer and fitnet, but the objective is {self.objective}."
                    )
        check_prefix_share(self.prefix_share)
        if not kind.uses_adapter:
            for name, default in _OF_ADAPTER.items():
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name} is an option of singer, but the objective {self.objective} has no adapter."
                    )
        if self.adapter_learning_rate is not None and self.adapter_learning_rate < 0:
            raise ValueError(f"adapter_learning_rate must not be negative, got {self.adapter_learning_rate}.")
        _one_of("projector", self.projector, PROJECTORS)
        _one_of("target_normalization", self.target_normalization, TARGET_NORMALIZATIONS)
        _one_of("normalization", self.normalization, NORMALIZATIONS)
        _one_of("stream_split", self.stream_split, STREAM_SPLITS)
        _one_of("nonfinite", self.nonfinite, POLICIES)
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):  # which JSON does not know either
                raise ValueError(f"{each.name} must be a finite number, got {value}.")
        for name in ("data_retries", "data_timeout", "max_nonfinite_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint would write a checkpoint in the middle of a step: leave it False. SIGTERM and "
                "SIGINT end a run with a checkpoint anyway."
            )
        if self.layer_matching is not None:
            _one_of("layer_matching", self.layer_matching, LAYER_MATCHINGS)
        weights = ("kd_weight", "outlier_weight", "info_weight", "vitkd_mimicking_weight", "vitkd_generation_weight")
        for name in weights:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale must lie in (0, 1], got {self.min_crop_scale}.")
        if not 0 < self.vitkd_mask_ratio < 1:
            raise ValueError(f"vitkd_mask_ratio must lie strictly between 0 and 1, got {self.vitkd_mask_ratio}.")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must lie in [0, 1], got {self.flip_probability}.")
        for name in ("knn_neighbors", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.shuffle_buffer_size < 0:
            raise ValueError(f"shuffle_buffer_size must not be negative, got {self.shuffle_buffer_size}.")
        for name in ("teacher_layers", "student_layers"):
            if getattr(self, name) == []:
                raise ValueError(f"{name} is empty: name at least one block, or leave it out for the default.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the image column: leave it False.")


def _one_of(option: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"{option}={value!r} is not known: expected one of {', '.join(known)}.")
