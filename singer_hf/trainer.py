"""`DistillationTrainer`: transformers' Trainer over a [`Distiller`]. Formulas live elsewhere."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    set_seed,
)

from .adapter import NullspaceLoraConfig
from .arguments import DistillationArguments
from .backbones import load_vision_model
from .checkpoints.counters import load_counters, save_counters
from .checkpoints.durable import DurableCheckpoints
from .checkpoints.folder import load_distillation, save_distillation
from .checkpoints.stream_resume import StreamResume
from .data import DataPipeline, EpochSampler
from .data.workers import worker_advice
from .distiller import Distiller
from .faults.nonfinite import NonFiniteSteps, poisoned
from .faults.out_of_memory import memory_advice
from .faults.stop_signals import StoppableTrainer, StopSignals
from .objectives.build import build_objective
from .preflight import check_metric, check_processes
from .pushes import ReleasePushes
from .records.run_record import RecordRun, RunRecord
from .records.secrets import without_tokens
from .running_mean import RunningMean
from .scores import knn_accuracy
from .sharded_teacher import shard_teacher

logger = logging.getLogger(__name__)


class DistillationTrainer(StoppableTrainer, DurableCheckpoints, StreamResume, ReleasePushes, Trainer):
    """Distills a ViT teacher into a ViT student.

    Paper: SiNGER (ICLR 2026, arXiv 2509.20986). `trainer.model` is a [`Distiller`]; `trainer.student` is the plain
    student that is saved, with its image processor, at the root of every checkpoint.

    Args:
        model: the student, or its Hub id or folder.
        teacher_model: the teacher, or its Hub id or folder; a `PeftModel` continues with the adapter it carries.
        args: recipe and objective.
        train_dataset: a `datasets.Dataset`, a streamed `datasets.IterableDataset`, or a map-style torch dataset, with
            images in `args.image_column`. Images are augmented by (seed, epoch, sample) alone.
        eval_dataset: held-out images. Scored by `eval_gram_distance` (no labels needed), the loss terms, and with
            `args.label_column` by `eval_knn_accuracy`; any of them can be `metric_for_best_model`.
        processing_class: the student's image processor; default: the one in its repository, else the teacher's.
        teacher_processing_class: the teacher's; default: the one in its repository.
        peft_config: the adapter; default: `NullspaceLoraConfig(layers_to_transform=args.teacher_layers)`.
        record: the run's record, `run.json`, where a script has begun one with options of its own.
        compute_metrics, callbacks, optimizers: as in `Trainer`; `compute_metrics` replaces the scores above and gets
            `(embeddings (n, d_S), gram distances (n,), …)` as predictions.

    Raises:
        ValueError: whatever can be known before the first step: layers, ranks, columns, empty data, unknown families.
        FloatingPointError: a loss or gradient that is not finite, before it reaches the weights.
        RunStopped: SIGTERM or SIGINT came while training; the checkpoint is written.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        teacher_model: nn.Module | str,
        args: DistillationArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        peft_config: NullspaceLoraConfig | None = None,
        record: RunRecord | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        args = DistillationArguments("distillation_output") if args is None else args
        check_processes(args)
        if optimizers[0] is not None and args.adapter_learning_rate is not None:
            raise ValueError(
                "adapter_learning_rate is for the optimizer that Trainer makes: give the one in `optimizers` a group "
                "of parameters with that rate instead."
            )
        if compute_metrics is None:
            check_metric(args, eval_dataset)
        set_seed(args.seed)  # before projectors and adapter draw their weights
        if isinstance(model, str):
            model = load_vision_model(model, image_size=args.image_size)
        if isinstance(teacher_model, str):
            teacher_model = load_vision_model(teacher_model, image_size=args.image_size)
        student, teacher = model, teacher_model
        self.data = DataPipeline.of_models(
            student,
            teacher,
            args,
            student_processor=processing_class,
            teacher_processor=teacher_processing_class,
        )
        objective, teacher = build_objective(teacher, student, args, peft_config)
        distiller = Distiller(
            teacher,
            student,
            objective,
            teacher_normalization=self.data.teacher_normalization,
            student_normalization=self.data.student_normalization,
        )
        self.untrained = distiller.freeze_unused(self.data.student_size, self.data.teacher_size)
        """Parameters of the student that the objective never reaches, and that keep their initial values."""
        if args.shard_teacher:
            shard_teacher(distiller, args.device.type)

        self.record = RunRecord(args) if record is None else record
        """What `run.json` says."""
        self.record.describe(args.objective, teacher, student, train_dataset, eval_dataset)
        self._samplers: list[EpochSampler] = []
        self._train_means, self._eval_means = RunningMean(), RunningMean()
        self.num_corrupt_images = 0
        super().__init__(
            model=distiller,
            args=args,
            train_dataset=self.data.training(train_dataset),
            eval_dataset=self.data.evaluation(eval_dataset),
            processing_class=self.data.student_processor,
            compute_metrics=compute_metrics or self._scores,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.label_names = ["labels"]
        self.add_callback(_SetEpoch(self._samplers))
        self.add_callback(RecordRun(self.record))
        self.stop_signals = StopSignals(self.accelerator)
        self.add_callback(self.stop_signals)
        self.nonfinite = NonFiniteSteps(args, self.accelerator)

    @property
    def student(self) -> PreTrainedModel:
        """The plain student."""
        return self.model.student

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher; a `PeftModel` where the objective trains an adapter."""
        return self.model.teacher

    # -- data ---------------------------------------------------------------------------------------------------------
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, torch.utils.data.IterableDataset):
            return None
        sampler = EpochSampler(len(dataset), seed=dataset.seed)
        self._samplers.append(sampler)
        return sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if not isinstance(eval_dataset, str):  # the name of one of several
            eval_dataset = self.data.evaluation(eval_dataset)
        with self._every_image():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with self._every_image():
            return super().get_test_dataloader(self.data.evaluation(test_dataset))

    @contextmanager
    def _every_image(self) -> Iterator[None]:
        """dataloader_drop_last is meant for training; Trainer would drop evaluation images too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    # -- training -----------------------------------------------------------------------------------------------------
    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.decay_all_parameters:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        created, rate = self.optimizer is None, self.args.adapter_learning_rate
        optimizer = super().create_optimizer(model)
        if not created or rate is None:
            return optimizer
        trained = (self.model if model is None else model).teacher.parameters()
        adapter = {id(parameter) for parameter in trained if parameter.requires_grad}
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in adapter]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in adapter]
                optimizer.add_param_group(group | {"params": own, "lr": rate})
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint):
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise ValueError(
                f"The optimizer of {checkpoint} does not fit this run's: {error}. Was adapter_learning_rate given "
                "there and is not here, or the other way round? Its training_args.json says."
            ) from error

    def train(self, *args, **kwargs):
        with worker_advice(), memory_advice(self.args):
            return super().train(*args, **kwargs)

    def training_step(self, *args, **kwargs) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        # Trainer sums these up for its log, where a step that is skipped must leave no NaN behind.
        return loss.nan_to_num(0.0, 0.0, 0.0)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = self._outputs(model, inputs)
        self.nonfinite.add(inputs, outputs)
        loss = poisoned(outputs["loss"])
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        """Trainer calls it before each optimizer step: the place to leave one out."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        for inputs, outputs in self.nonfinite.close(model, norm, self.state.global_step):
            self._record(self._train_means, inputs, outputs)
        return norm

    @staticmethod
    def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
        return model(**{key: value for key, value in inputs.items() if key not in ("labels", "corrupt")})

    def _model_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        outputs = self._outputs(model, inputs)
        loss, terms = outputs["loss"], outputs["terms"]
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} = {value.item():g}" for name, value in terms.items())
            raise FloatingPointError(f"The loss of held-out images is {loss.item()} ({values}).")
        return loss, outputs

    @staticmethod
    def _record(means: RunningMean, inputs: dict[str, Tensor], outputs: dict[str, Any]) -> None:
        means.add({**outputs["terms"], **outputs["statistics"]}, weight=len(inputs["pixel_values"]))
        if "corrupt" in inputs:
            means.count("corrupt_images", inputs["corrupt"].sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_runtime" in logs:  # entries of training, which every process writes
            means, counts = self._train_means.pop(self.accelerator)
            self.num_corrupt_images += int(counts.get("corrupt_images", 0))
            if "loss" in logs:
                logs |= means
                if self.nonfinite.skipped_since_log():  # which Trainer's own mean counts as 0
                    logs["loss"] = sum(value for name, value in means.items() if name.startswith("loss_"))
            if self.num_corrupt_images:
                logs["corrupt_images"] = self.num_corrupt_images
            if self.nonfinite.skipped:
                logs["nonfinite_steps"] = self.nonfinite.skipped
        super().log(logs, start_time)

    # -- evaluation ---------------------------------------------------------------------------------------------------
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        images = len(inputs["pixel_values"])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self._model_loss(model, inputs)
            # The last batch is filled up with images that other processes score: its terms are those of its own. With
            # none of its own the process still records, at no weight, since all have to meet in RunningMean.pop.
            own, own_outputs = self._own_images(images), outputs
            own_inputs = {name: value[:own] for name, value in inputs.items()}
            if 0 < own < images:
                own_outputs = self._model_loss(model, own_inputs)[1]
            elif self.args.shard_teacher and self._is_filled_up():
                self._model_loss(model, inputs)  # all processes run it, since each holds a part of the teacher
            self._record(self._eval_means, own_inputs, own_outputs)
        if prediction_loss_only:
            return loss, None, None
        labels = inputs.get("labels")
        if labels is None:
            labels = torch.full((len(inputs["pixel_values"]),), -1, device=loss.device)  # Trainer gathers some
        return loss, (outputs["embedding"], outputs["gram_distance"]), labels

    def _is_filled_up(self) -> bool:
        state = self.accelerator.gradient_state
        return state.end_of_dataloader and state.remainder > 0

    def _own_images(self, images: int) -> int:
        """How many images of an evaluation batch are this process's own, by the rule of gather_for_metrics."""
        if not self._is_filled_up():
            return images
        remainder = self.accelerator.gradient_state.remainder
        return min(images, max(0, remainder - self.accelerator.process_index * images))

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        with memory_advice(self.args, evaluation=True):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means, counts = self._eval_means.pop(self.accelerator)
        # Trainer's own mean counts images that fill up the last batch.
        means["loss"] = sum(value for name, value in means.items() if name.startswith("loss_"))
        if counts.get("corrupt_images"):
            means["corrupt_images"] = int(counts["corrupt_images"])
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def _scores(self, prediction: EvalPrediction) -> dict[str, float]:
        embeddings, distances = prediction.predictions
        scores = {"gram_distance": float(np.mean(distances))}
        if self.args.label_column is not None:
            labels = torch.as_tensor(prediction.label_ids)
            if labels.min() < 0:
                raise ValueError(
                    f"{int((labels < 0).sum())} of {len(labels)} held-out labels are negative, but k-NN accuracy "
                    "needs the class of every image: filter them out, or leave label_column out."
                )
            embeddings = torch.as_tensor(embeddings)
            scores["knn_accuracy"] = knn_accuracy(embeddings, labels, neighbors=self.args.knn_neighbors)
        return scores

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        output_dir = self.args.output_dir if output_dir is None else output_dir
        if not self.args.should_save:
            return
        save_distillation(self.model, output_dir, state_dict, manifest=not self.is_saving_checkpoint)
        self.processing_class.save_pretrained(output_dir)
        # In place of Trainer's pickled training_args.bin: readable, and nothing to unpickle. Tokens are left out.
        with open(os.path.join(output_dir, "training_args.json"), "w", encoding="utf-8") as file:
            file.write(json.dumps(without_tokens(self.args.to_dict()), indent=2))
        self.record.save(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # which every process calls
        corrupt = self.num_corrupt_images + self._train_means.counted("corrupt_images", self.accelerator)
        if self.args.should_save:
            save_counters(output_dir, {"corrupt_images": corrupt, "nonfinite_steps": self.nonfinite.skipped})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_distillation(self.model, resume_from_checkpoint)
        self.record.resume(resume_from_checkpoint)
        counters = load_counters(resume_from_checkpoint)
        self.num_corrupt_images, self.nonfinite.skipped = counters["corrupt_images"], counters["nonfinite_steps"]

    def _load_best_model(self) -> None:
        logger.info("Loading the best checkpoint %s", self.state.best_model_checkpoint)
        load_distillation(self.model, self.state.best_model_checkpoint)


class _SetEpoch(TrainerCallback):
    """Tells samplers the epoch; accelerate's own set_epoch stops at wrapped batch samplers."""

    def __init__(self, samplers: list[EpochSampler]):
        self.samplers = samplers

    def on_epoch_begin(self, args, state, control, **kwargs):
        for sampler in self.samplers:
            sampler.set_epoch(int(state.epoch or 0))
