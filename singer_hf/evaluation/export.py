"""From a backbone to a classifier that `pipeline("image-classification")` runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..data import DistillationDataset, input_size, processor_to_save
from .evaluator import LinearEvaluator
from .fit import fit_head
from .frozen import weights_fingerprint
from .head_data import PooledData
from .labels import read_split_labels
from .probes import ClassificationProbe
from .result import EvaluationResult
from .splits import Split
from .task import Task
from .views import Views


class ExportError(ValueError):
    """A model that no classifier can be made of."""


def export_classifier(evaluator: LinearEvaluator, task: Task, model_name: str, folder: str | Path) -> EvaluationResult:
    """Trains the head of the model's own classifier class and writes model, image processor and result to `folder`.

    The head is trained on what that class gives its classifier (behind the final norm, so that a head on raw features
    could not be put in its place), of images as the model's image processor makes them, by the default protocol. The
    accuracy is that of the model that is written.

    Args:
        evaluator: of the same model.
        task: a classification.
        model_name: Hub id or folder of the model.
        folder: for `AutoModelForImageClassification.from_pretrained`.

    Raises:
        ExportError: no such class for the model's family, weights that the class lacks, another protocol, an adapter.
    """
    start = time.perf_counter()
    protocol = evaluator.protocol_for("classification")
    if isinstance(evaluator.backbone.model, PeftModel):
        raise ExportError("A classifier is exported of a plain model, not of one with an adapter.")
    if protocol.selection != "validation" or protocol.views:
        raise ExportError(
            "A classifier is exported by the default protocol, without augmented views: its images are those that its "
            "image processor makes."
        )
    extractor, state = evaluator.extractor, evaluator.state
    before = extractor.images_extracted
    evaluator.check(task)
    train, test = evaluator.splits(task)
    labels, test_labels = read_split_labels(task, train, test)
    model = _load_classifier(model_name, evaluator.backbone.revision, labels.names).to(state.device)
    inputs = _ClassifierInputs(model, evaluator.backbone.processor)

    def data(split: Split, values: Tensor) -> PooledData:
        transform = _Processed(inputs.processor)
        dataset = DistillationDataset(split.dataset, transform, image_column=split.image_column)
        features = extractor.run(
            split,
            dataset,
            Views(transform),
            inputs,
            4 * inputs.classifier.in_features,
            feature="classifier input",
            classifier=inputs.fingerprint,
        )
        everything = features.all("pooled", state.device)
        return PooledData(everything, values.to(state.device), torch.arange(len(values)), evaluator.seed, state.device)

    probe = ClassificationProbe(len(labels.names))
    train_data, test_data = data(train, labels.values), data(test, test_labels.values)
    extracted = time.perf_counter()
    fit = fit_head(probe, train_data, test_data, protocol, state, labels=labels.values)
    scores = evaluator.score(probe, fit.head, test_data)
    with torch.no_grad():
        inputs.classifier.weight.copy_(fit.head.weight[0].T)
        inputs.classifier.bias.copy_(fit.head.bias[0])
    result = evaluator.record(
        task,
        protocol,
        splits={"train": train.description(), "test": test.description()},
        selection=fit.selection,
        hyperparameters=asdict(fit.config),
        scores=scores,
        main_score=probe.main_score,
        seconds={"features": extracted - start, "head": time.perf_counter() - extracted},
        start=start,
        images_extracted=extractor.images_extracted - before,
    )
    for name in ("layer", "pooling"):  # of the backbone's own features, which were not used
        del result.model[name]
    result.model["feature"] = f"input of the classifier of {type(model).__name__}, images as its processor makes them"
    result.model["precision"] = "float32"
    if state.is_main_process:
        processor_to_save(inputs.processor, model.config).save_pretrained(folder)
        model.save_pretrained(folder)
        evaluator.save(result, Path(folder))
    state.wait_for_everyone()
    return result


class _Processed:
    """RGB image -> float (3, H, W), as an image processor makes it."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        return self.processor(image, return_tensors="pt")["pixel_values"][0]

    def __repr__(self) -> str:
        settings = getattr(self.processor, "data_config", None) or self.processor.to_dict()
        return f"{type(self.processor).__name__}({sorted(settings.items())})"


class _ClassifierInputs:
    """What a classifier model gives its last layer: batch -> `pooled` (B, d)."""

    def __init__(self, model: PreTrainedModel, processor: Any):
        self.model, self.processor = model.eval(), processor
        head = model.classifier if hasattr(model, "classifier") else model.timm_model.get_classifier()
        if not isinstance(head, nn.Linear):
            raise ExportError(
                f"The head of {type(model).__name__} is {type(head).__name__}; expected one linear layer."
            )
        self.classifier = head
        with torch.no_grad():  # so that the fingerprint is of the rest
            head.weight.zero_()
            head.bias.zero_()
        self.fingerprint = weights_fingerprint(model)
        height, width = input_size(processor)
        try:
            self({"pixel_values": torch.zeros(1, 3, height, width)})
        except ValueError as error:
            raise ExportError(
                f"{type(model).__name__} cannot take the images that its processor makes ({height}x{width} pixels), "
                f"so that no pipeline could run it: {error}"
            ) from error

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        held: list[Tensor] = []
        handle = self.classifier.register_forward_pre_hook(lambda _, args: held.append(args[0]))
        try:
            self.model(batch["pixel_values"].to(self.model.device))
        finally:
            handle.remove()
        return {"pooled": held[0].float().cpu()}


def _load_classifier(name: str, revision: str | None, names: tuple[str, ...]) -> PreTrainedModel:
    """The family's classifier class with the model's weights and an untrained head."""
    try:
        model, info = AutoModelForImageClassification.from_pretrained(
            name,
            revision=revision,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={label: index for index, label in enumerate(names)},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype="float32",
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ExportError(
            f"transformers has no image classifier for {name}'s family, so that none can be exported: {error}"
        ) from error
    if hasattr(model.config, "label_names"):
        # TimmWrapperConfig writes these in place of id2label, and keeps those of the checkpoint (transformers 5.24).
        model.config.label_names = list(names)
    heads = ("classifier", "cls_classifier", "distillation_classifier", "timm_model.head")
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(heads) and ".pooler." not in key)
    if missing:
        raise ExportError(
            f"{name} lacks weights of {type(model).__name__}: {', '.join(missing[:5])} ({len(missing)})."
        )
    return model
