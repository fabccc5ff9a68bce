"""A released model's card, from what its run and evaluations recorded: no number that none of their files holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import AutoConfig

from ..backbones.loading import without_pooler
from ..evaluation.result import EvaluationResult
from .amend import sealed
from .diagnosis import CardDiagnosis
from .emissions import Emissions
from .escape import Markdown, code, escaped
from .export import ExportedModel
from .license import License
from .onnx import OnnxExport
from .record import Run, is_hub_id, shown_name
from .results import eval_results, head_note, own_results, results_table

_METHODS = {
    "singer": "[SiNGER](https://arxiv.org/abs/2509.20986)",
    "singer_reference": "[SiNGER](https://arxiv.org/abs/2509.20986) as its released code computes it",
    "fitnet": "FitNet (plain feature distillation)",
    "vitkd": "ViTKD",
}


@dataclass(frozen=True)
class Picture:
    """A picture in the repository: its path there, and what it shows."""

    path: str
    caption: str


@dataclass(frozen=True)
class CardFacts:
    """All that a card is made of.

    Args:
        repo_id: owner/name, where it is published.
        run: its record.
        model: the student or classifier that was exported; `None` for the adapter's card.
        adapter: configuration of the adapter that was exported.
        license: and where it comes from.
        teacher_id: Hub id of the teacher; default: the recorded one, where it came from the Hub.
        results: of the released model, of its teacher, of baselines.
        diagnosis, emissions, onnx: where there are some.
        pictures: in the repository.
        widget: example images in the repository.
        datasets: Hub ids of the training images; default: the recorded one.
        tags: beside those that follow from the run.
        training_data, evaluation_note, limits_note: plain sentences of the author.
    """

    repo_id: str
    run: Run
    license: License
    model: ExportedModel | None = None
    adapter: dict[str, Any] | None = None
    teacher_id: str | None = None
    results: Sequence[EvaluationResult] = ()
    diagnosis: CardDiagnosis | None = None
    emissions: Emissions | None = None
    onnx: OnnxExport | None = None
    pictures: Sequence[Picture] = ()
    widget: Sequence[Picture] = ()
    datasets: Sequence[str] = ()
    tags: Sequence[str] = ()
    training_data: str | None = None
    evaluation_note: str | None = None
    limits_note: str | None = None
    teacher: tuple[str | None, str | None] = field(init=False)
    """Hub id and revision of the teacher."""

    def __post_init__(self):
        if not is_hub_id(self.repo_id):
            raise ValueError(f"{self.repo_id!r} cannot be a repository's name.")
        if (self.model is None) is (self.adapter is None):
            raise ValueError("A card is of a model or of an adapter: give one of them.")
        recorded = self.run.hub_model("teacher") or (None, None)
        teacher = recorded if self.teacher_id in (None, recorded[0]) else (self.teacher_id, None)
        object.__setattr__(self, "teacher", teacher)


def model_card(facts: CardFacts) -> ModelCard:
    """The card, sealed for a later amendment.

    Raises:
        ResultsError: results of other weights than the released ones, or that contradict each other.
    """
    data = ModelCardData(**_metadata(facts), ignore_metadata_errors=False)
    body = _environment().get_template("model_card.md.jinja").render(_context(facts))
    return sealed(ModelCard(f"---\n{data.to_yaml()}\n---\n{body}"))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("singer_hf.release", "templates"),
        finalize=escaped,  # whatever a template shows, but for what a filter or this module has made Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    environment.filters["join_cells"] = lambda values: Markdown(" | ".join(escaped(value) for value in values))
    return environment


def _metadata(facts: CardFacts) -> dict[str, Any]:
    run, model = facts.run, facts.model
    is_adapter = model is None
    student = None if is_adapter else run.hub_model("student")
    base = [name for name in (student and student[0], facts.teacher[0]) if name]
    family = run.content["teacher"]["model_type"] if is_adapter else model.model_type
    tags = ["singer", "knowledge-distillation", "vision-transformer", family, *facts.tags]
    results = [] if is_adapter else eval_results(own_results(facts.results, model.fingerprint), model.is_classifier)
    metadata: dict[str, Any] = {
        "license": facts.license.id,
        "license_name": facts.license.name,
        "license_link": facts.license.link,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "image-classification" if model and model.is_classifier else "image-feature-extraction",
        # The Hub's relations are finetune, adapter, quantized and merge. A student from scratch is none of them.
        "base_model": base or None,
        "base_model_relation": "adapter" if is_adapter and base else None,
        "datasets": list(facts.datasets) or ([run.hub_dataset] if run.hub_dataset else None),
        "tags": tags,
        "metrics": list(dict.fromkeys(result.metric_type for result in results)) or None,
        "widget": [{"src": picture.path, "example_title": picture.caption} for picture in facts.widget] or None,
        "co2_eq_emissions": facts.emissions.metadata() if facts.emissions else None,
    }
    if results:
        metadata |= {"model_name": facts.repo_id.split("/")[-1], "eval_results": results}
    return metadata


def _context(facts: CardFacts) -> dict[str, Any]:
    run, model = facts.run, facts.model
    teacher_id, teacher_revision = facts.teacher
    student = run.hub_model("student")
    table = head = None
    if model is not None:
        name = facts.repo_id.split("/")[-1]
        head = head_note(facts.results, model.fingerprint) if model.is_classifier else None
        table = results_table(facts.results, model.fingerprint, run.content["teacher"]["name"], name)
    return {
        "kind": "adapter" if model is None else "student",
        "title": facts.repo_id.split("/")[-1],
        "repo_id": Markdown(facts.repo_id),  # which is_hub_id has looked at
        "model": model,
        "method": Markdown(_METHODS.get(run.objective, code(run.objective))),
        "objective": run.objective,
        "teacher_link": _teacher_link(facts),
        "teacher_revision": teacher_revision,
        "teacher_parameters": run.content["teacher"]["parameters"],
        "student_origin": student[0] if student else None,
        "data_note": facts.training_data or _data_note(run),
        "steps": run.steps,
        "images": run.images,
        "seconds": None if run.seconds is None else _duration(run.seconds),
        "hardware": run.hardware(),
        "emissions": facts.emissions
        and {"grams": f"{facts.emissions.grams:.3g}", "energy": f"{facts.emissions.energy:.3g}"},
        "recipe": run.recipe(),
        "full_recipe": run.full_recipe(),
        "versions": run.versions,
        "table": table,
        "head": head,
        "seeds": sorted({result.seed for result in facts.results}),
        "evaluation_note": facts.evaluation_note,
        "limits_note": facts.limits_note,
        "diagnosis": facts.diagnosis,
        "pictures": facts.pictures,
        "onnx": facts.onnx,
        "teacher_license": facts.license.sources.get("teacher"),
        "license": facts.license.id,
        "license_reason": facts.license.reason,
        **(_adapter_code(facts, teacher_id) if model is None else _model_code(model)),
    }


def _model_code(model: ExportedModel) -> dict[str, Markdown]:
    options = ", ".join(f"{name}={value!r}" for name, value in model.load_options.items())
    tokens = " + ".join((*_counted(model.prefix), "patches"))
    if len(model.feature_shape) == 4:
        tokens = "(image, width, rows, columns) of patches"
    return {
        "load_options": Markdown(f", {options}" if options else ""),
        "pipeline_options": Markdown(model.load_options),
        "feature_shape": Markdown(model.feature_shape),
        "tokens": Markdown(tokens),
    }


def _counted(prefix: Sequence[str]) -> list[str]:
    names = {"cls": "CLS", "distillation": "distillation token", "register": "registers"}
    counts = {role: list(prefix).count(role) for role in dict.fromkeys(prefix)}
    return [
        names.get(role, role) if count == 1 else f"{count} {names.get(role, role)}" for role, count in counts.items()
    ]


def _adapter_code(facts: CardFacts, teacher_id: str | None) -> dict[str, Markdown]:
    made_for = (facts.adapter.get("auto_mapping") or {}).get("base_model_class") or "AutoModel"
    if not made_for.isidentifier():
        raise ValueError(f"The adapter's configuration names {made_for!r} as the class that it is for.")
    no_pooler = {}
    if made_for.endswith("Model"):  # a class without a head, which is what may have a pooler
        no_pooler = without_pooler(AutoConfig.for_model(facts.run.content["teacher"]["model_type"]))
    options = "".join(f", {name}={value!r}" for name, value in no_pooler.items())
    return {
        "teacher_code": Markdown(json.dumps(teacher_id or "path/to/the/teacher")),
        "teacher_auto_class": Markdown(made_for),
        "teacher_load_options": Markdown(options),
    }


def _teacher_link(facts: CardFacts) -> Markdown:
    teacher_id = facts.teacher[0]
    if teacher_id is not None and is_hub_id(teacher_id):
        return Markdown(f"[{code(teacher_id)}](https://huggingface.co/{teacher_id})")
    name = shown_name(facts.run.content["teacher"]["name"], from_hub=False)
    return Markdown(f"{code(name)} (a model that is not on the Hub)")


def _data_note(run: Run) -> str:
    data = run.content.get("train_data") or {}
    name = run.hub_dataset or data.get("name")
    count = "a stream" if data.get("images") is None else f"{data['images']:,} images"
    parts = [count, f"of {shown_name(name)}" if name else "of a dataset whose name was not recorded"]
    if data.get("split"):
        parts.append(f"(split {data['split']})")
    return " ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
