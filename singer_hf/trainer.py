"""`DistillationTrainer`: transformers' Trainer over a [`Distiller`]. Formulas live elsewhere."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
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
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .adapter import NullspaceLoraConfig
from .arguments import DistillationArguments
from .backbones import load_vision_model
from .checkpoint import load_distillation, save_distillation
from .data import DataPipeline, EpochSampler
from .distiller import Distiller
from .objectives.build import build_objective
from .preflight import check_metric, check_processes
from .release.folder import CARD_FILE
from .release.publish import Destination, make_repository
from .release.secrets import without_tokens
from .release.training import publish_and_remove, publish_checkpoint, told, training_release
from .run_record import RecordRun, RunRecord
from .running_mean import RunningMean
from .scores import knn_accuracy

logger = logging.getLogger(__name__)


class DistillationTrainer(Trainer):
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
        FloatingPointError: a loss that is not finite, before it reaches the weights.
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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = self._model_loss(model, inputs)
        self._record(self._train_means, inputs, outputs)
        return (loss, outputs) if return_outputs else loss

    def _model_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        outputs = model(**{key: value for key, value in inputs.items() if key not in ("labels", "corrupt")})
        loss, terms = outputs["loss"], outputs["terms"]
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} = {value.item():g}" for name, value in terms.items())
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step} ({values}); the weights are those of the "
                "step before. Lower learning_rate, train in bf16 or float32 in place of fp16, or look at this step's "
                "images."
            )
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
            if self.num_corrupt_images:
                logs["corrupt_images"] = self.num_corrupt_images
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
            self._record(self._eval_means, own_inputs, own_outputs)
        if prediction_loss_only:
            return loss, None, None
        labels = inputs.get("labels")
        if labels is None:
            labels = torch.full((len(inputs["pixel_values"]),), -1, device=loss.device)  # Trainer gathers some
        return loss, (outputs["embedding"], outputs["gram_distance"]), labels

    def _own_images(self, images: int) -> int:
        """How many images of an evaluation batch are this process's own, by the rule of gather_for_metrics."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return images
        return min(images, max(0, state.remainder - self.accelerator.process_index * images))

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
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
        save_distillation(self.model, output_dir, state_dict)
        self.processing_class.save_pretrained(output_dir)
        # In place of Trainer's pickled training_args.bin: readable, and nothing to unpickle. Tokens are left out.
        with open(os.path.join(output_dir, "training_args.json"), "w", encoding="utf-8") as file:
            file.write(json.dumps(without_tokens(self.args.to_dict()), indent=2))
        self.record.save(output_dir)

    # -- the Hub ------------------------------------------------------------------------------------------------------
    # Trainer's own pushes upload whatever lies in output_dir, with a pickle of its arguments, hub_token included.
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository where it is missing, private unless `private` or `hub_private_repo` is False."""
        if not self.is_world_process_zero():
            return
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        destination = self._destination(token, private=private)
        api = destination.api()
        self.hub_model_id = destination.owned(api)
        make_repository(destination, api)
        self.push_in_progress = None

    def create_model_card(self, model_name: str | None = None, **facts: Any) -> None:
        """Writes or amends the card in `output_dir`, of the model that is saved there.

        Args:
            model_name: owner/name; default: `hub_model_id`, else the folder's name.
            facts: fields of [`singer_hf.release.CardFacts`], such as `license`, `tags`, `datasets`, `results`.
        """
        if self.is_world_process_zero():
            name = model_name or self.hub_model_id or Path(self.args.output_dir).absolute().name
            shutil.rmtree(self._release(self.args.output_dir, name, **facts))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> Any:
        """Publishes student, adapter and card in one commit; arguments as of `Trainer` and `create_model_card`.

        Returns:
            The commit, or without `blocking` its future.

        Raises:
            PublishError: nothing was published.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        destination = self._destination(token, revision, private)
        released = self._release(self.args.output_dir, self.hub_model_id, **facts)
        push = partial(publish_and_remove, released, destination, commit_message)
        return push() if blocking else destination.api().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        destination, message = self._destination(), f"Training in progress, step {self.state.global_step}"
        released = self._release(checkpoint_folder, self.hub_model_id)
        pushes = [partial(publish_and_remove, released, destination, message)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if is_last else Path(checkpoint_folder).name
            pushes.append(partial(publish_checkpoint, checkpoint_folder, destination, name, f"{message}, checkpoint"))
        api = destination.api()
        jobs = [api.run_as_future(told, push) for push in pushes]  # in one thread, one after the other
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _destination(
        self, token: str | None = None, revision: str | None = None, private: bool | None = None
    ) -> Destination:
        return Destination(
            self.hub_model_id,
            revision=revision or self.args.hub_revision or "main",
            private=self.args.hub_private_repo if private is None else private,
            exist_ok=True,
            token=token or self.args.hub_token,
        )

    def _release(self, folder: str, name: str, **facts: Any) -> Path:
        """What is pushed of a folder, in a temporary one; its card is the one in `output_dir` from then on."""
        card = Path(self.args.output_dir, CARD_FILE)
        released = training_release(folder, name, existing=card, **facts)
        shutil.copyfile(released / CARD_FILE, card)
        return released

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_distillation(self.model, resume_from_checkpoint)
        self.record.resume(resume_from_checkpoint)
        state = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME))
        counts = [entry["corrupt_images"] for entry in state.log_history if "corrupt_images" in entry]
        self.num_corrupt_images = counts[-1] if counts else 0

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
