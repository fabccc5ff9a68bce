"""What a report says, section by section: text from the numbers, the paper's tables, and the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..losses import patch_norms
from ..plots import NormPanel, patch_norms_figure
from . import tables
from .images import ImageSample
from .pictures import (
    layers_figure,
    norm_distribution_figure,
    norm_maps_figure,
    places_figure,
    similarity_maps_figure,
    spectra_figure,
)
from .pictures.similarity_maps import marked_places
from .report import Picture, Section
from .run import CLOSED_FORM, CLOSED_FORM_FREE, INITIAL, Diagnosis, surrogate_blocks


def report_sections(diagnosis: Diagnosis, result: dict[str, Any]) -> list[Section]:
    """The whole report.

    Args:
        diagnosis: with its models and images, for the pictures.
        result: its `summary()`, for the tables.
    """
    sections = [_teacher(diagnosis, result), _advice(diagnosis, result), _refinements(diagnosis, result)]
    if diagnosis.students:
        sections.append(_students(diagnosis, result))
    sections.append(_similarity(diagnosis))
    if result["perturbations"]:
        sections.append(_perturbations(result))
    return sections


def _teacher(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    found = diagnosis.teacher
    closely = _closely(diagnosis)
    rule = found.rule
    text = [
        f"A patch is an outlier where its norm reaches τ, the larger of {rule.min_ratio:g} times the layer's median "
        f"and {rule.k:g} robust standard deviations of ln‖F‖ above it, and {rule.min_ratio:g} times the median of its "
        "own image. Outliers are called artifacts where they are "
        f"at least {rule.min_share:.1%} of the patches and a population of their own: a mode behind a valley, or far "
        "beyond the reach of the others.",
    ]
    pictures = [
        Picture(
            "layers",
            layers_figure(found),
            "Left: patch norms of every block. Right: how large a part the outliers are of the patches, and of the "
            "gradient and the loss of a plain feature loss.",
        ),
        Picture(
            "norm_distribution",
            norm_distribution_figure(found, closely),
            "Patch norms of some blocks, on logarithmic axes; outliers in orange, beyond the threshold τ.",
        ),
        Picture(
            "norm_maps",
            _norm_maps(diagnosis, closely),
            "Patch norms relative to each block's median, on the images of the sample that have most outliers.",
        ),
    ]
    all_tables = [tables.layer_table(result)]
    if any(layer.outliers.verdict != "none" for layer in found.layers):
        pictures.append(
            Picture("places", places_figure(found, closely), "How often the patch at each place is an outlier.")
        )
        all_tables.append(tables.traits_table(result))
    all_tables.append(tables.table_7(result))
    return Section("The teacher", text, all_tables, pictures)


def _advice(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    advice = diagnosis.recommendation
    text = [
        f"Layers {', '.join(map(str, advice.layers))}: {advice.layers_reason}",
        f"Rank {advice.rank}: {advice.rank_reason}",
    ]
    if result["looked_at"] is not None:
        text.append(result["looked_at"])
    picture = Picture(
        "spectra",
        spectra_figure(diagnosis.teacher, surrogate_blocks(diagnosis), diagnosis.rank),
        "Singular values of the linear surrogates of the blocks that refinements must not disturb, and how much "
        "energy the smallest ones hold together.",
    )
    return Section("Layers and rank", text, (), [picture])


def _refinements(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    trained = _trained(diagnosis)
    text = [
        f"{INITIAL}: what an adapter of the paper's initialisation starts as."
        + (" Trained: " + ", ".join(trained) + "." if trained else " No trained adapter was given."),
    ]
    if CLOSED_FORM in diagnosis.refinements:
        text.append(
            "Closed form: no training; a linear map within the null basis that takes away what outliers carry there "
            "and leaves what the others do. All directions: the same without the null basis, so free to disturb the "
            "next block."
        )
        text += closed_form_sentences(result)
    pictures = [
        Picture(f"norms_{number}", _figure_6(diagnosis, name), f"Patch norms before and after refinement: {name}.")
        for number, name in enumerate(_drawn(diagnosis))
    ]
    return Section(
        "What refinement does",
        text,
        [tables.effect_table(result), tables.table_3(result), tables.table_5b(result), tables.table_5a(result)],
        pictures,
    )


_JUDGEMENTS = {
    ("artifacts", "artifacts"): "it does not help enough: the layer still has artifacts",
    ("artifacts", "heavy tail"): "the artifacts are no population of their own any more, but a heavy tail is left",
    ("artifacts", "none"): "the artifacts are gone",
    ("heavy tail", "artifacts"): "it makes things worse: the heavy tail has become artifacts",
    ("heavy tail", "heavy tail"): "the layer had no artifacts but a heavy tail, and still has it",
    ("heavy tail", "none"): "the layer had no artifacts but a heavy tail, which is gone",
    ("none", "artifacts"): "it makes things worse: the layer had no artifacts and now has",
    ("none", "heavy tail"): "it makes things worse: the layer had no artifacts and now has a heavy tail",
    ("none", "none"): "the layer had no artifacts, so there was nothing to repair",
}
"""(verdict before, after) -> what the closed form did."""


def closed_form_sentences(result: dict[str, Any]) -> list[str]:
    """Whether the closed form helps, layer by layer, in words; from the recorded result."""
    sentences = []
    for layer in result["refinements"].get(CLOSED_FORM, []):
        before, after = (layer["mean_norm_of_outliers"][key] for key in ("before", "after"))
        if before is None:
            continue
        judgement = _JUDGEMENTS[layer["verdict_before"], layer["outliers_after"]["verdict"]]
        sentence = (
            f"Block {layer['layer']}: within the null basis of rank {layer['rank']} the closed form takes "
            f"{1 - after / before:.0%} off the mean norm of outliers; {judgement}."
        )
        compared = []
        for name in result["refinements"]:
            other = _of_layer(result, name, layer["layer"])
            if name not in (INITIAL, CLOSED_FORM) and other is not None:
                taken = 1 - other["mean_norm_of_outliers"]["after"] / before
                compared.append(f"{name} takes {taken:.0%} off ({other['cosine_of_others']:.3f})")
        if compared:
            sentence += (
                f" For comparison, with the cosine of other patches to what they were in brackets "
                f"({layer['cosine_of_others']:.3f} for the closed form): {'; '.join(compared)}."
            )
        sentences.append(sentence)
    return sentences


def _students(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    text = []
    for name, layers in result["students"].items():
        last = layers[-1]
        share = last["remaining_loss_on_outliers"]
        remaining = (
            ""
            if share is None
            else f"; {share:.0%} of what is left of its loss against {last['trained_to']} falls on the teacher's "
            "outliers"
        )
        verdict = last["outliers"]["verdict"]
        norms = "no artifacts of its own" if verdict == "none" else f"{verdict} of its own"
        text.append(
            f"{name}: {norms} in its last block (largest over median norm {last['peak_to_median']:.2f}){remaining}."
        )
    return Section("Students", text, [tables.table_2(result)])


def _similarity(diagnosis: Diagnosis) -> Section:
    layer = diagnosis.layers[-1]
    picture = Picture("similarity_maps", _similarity_maps(diagnosis, layer), "Cosine similarity to the marked patch.")
    text = [
        f"Features of block {layer} of the teacher and of its counterparts; the marked patch is the one nearest to "
        "the centre that is no outlier. Clean features show the object; artifacts show as spots unlike what is around "
        "them."
    ]
    return Section("What a patch is similar to (Figures 2 and 4)", text, (), [picture])


def _perturbations(result: dict[str, Any]) -> Section:
    text = []
    for layer, of in result["perturbations"].items():
        order = sorted(of, key=lambda basis: of[basis]["update_l2"])
        text.append(
            f"Block {int(layer) + 1}: what it adds to the stream changes least under perturbations in the basis "
            f'"{order[0]}" ({of[order[0]]["update_l2"]:.3f} of a typical update), most in "{order[-1]}" '
            f"({of[order[-1]]['update_l2']:.3f})."
        )
    return Section("Which directions a block notices", text, [tables.table_8(result)])


# -- pictures of the sample -------------------------------------------------------------------------------------------
def _closely(diagnosis: Diagnosis) -> list[int]:
    """At most four blocks to look at: those in question, and of the others the one where outliers weigh most."""
    weights = {layer.layer: layer.traits.loss_share if layer.traits else 0.0 for layer in diagnosis.teacher.layers}
    others = sorted(set(weights) - set(diagnosis.layers), key=lambda layer: -weights[layer])
    chosen = [*diagnosis.layers[-3:], *others[:1]]
    return sorted(chosen)


@torch.no_grad()
def _feature_batches(
    diagnosis: Diagnosis, layers: list[int], sample: ImageSample
) -> Iterator[dict[int, torch.Tensor]]:
    """Layer -> patches (batch, n, d) of the teacher, batch by batch."""
    backbone = diagnosis.backbone
    weight = next(backbone.model.parameters())
    for pixels in sample.teacher_pixels.split(16):
        features = backbone.features(pixels.to(weight), layers, adapters=False)
        prefix = backbone.num_prefix_tokens
        yield {layer: hidden[:, prefix:].float().cpu() for layer, hidden in features.hidden.items()}


def _features(diagnosis: Diagnosis, layers: list[int], sample: ImageSample) -> dict[int, torch.Tensor]:
    """Layer -> patches (images, n, d) of the teacher, of a few images."""
    batches = list(_feature_batches(diagnosis, layers, sample))
    return {layer: torch.cat([batch[layer] for batch in batches]) for layer in layers}


def _norm_maps(diagnosis: Diagnosis, layers: list[int]):
    shown = diagnosis.sample.select(diagnosis.shown)
    features = _features(diagnosis, layers, shown)
    return norm_maps_figure(
        shown.pictures(),
        {f"block {layer}": patch_norms(patches) for layer, patches in features.items()},
        {f"block {layer}": diagnosis.teacher.layers[layer].norms.median for layer in layers},
        diagnosis.teacher.layout.grid,
    )


def _trained(diagnosis: Diagnosis) -> list[str]:
    return [name for name in diagnosis.refinements if name not in (INITIAL, CLOSED_FORM, CLOSED_FORM_FREE)]


def _drawn(diagnosis: Diagnosis) -> list[str]:
    """Refinements to draw: the trained ones, else the closed form in all directions, else an adapter's start."""
    if trained := _trained(diagnosis):
        return trained
    return [CLOSED_FORM_FREE if CLOSED_FORM_FREE in diagnosis.refinements else INITIAL]


def _figure_6(diagnosis: Diagnosis, name: str):
    of = diagnosis.refinements[name]
    layers = sorted(of)[-2:]
    count = min(diagnosis.options.sample_images, len(diagnosis.sample))
    # The shown images first: maps are of the first rows.
    order = diagnosis.shown[:3] + [index for index in range(count) if index not in diagnosis.shown[:3]]
    sample = diagnosis.sample.select(order)
    parts = {layer: ([], []) for layer in layers}
    for features in _feature_batches(diagnosis, layers, sample):
        for layer, patches in features.items():
            parts[layer][0].append(patch_norms(patches))
            parts[layer][1].append(patch_norms(of[layer](patches)))
    panels, masks = [], []
    for layer in layers:
        before, after = map(torch.cat, parts[layer])
        panels.append(NormPanel(f"block {layer}", before, after, diagnosis.teacher.layout.grid))
        masks.append(diagnosis.teacher.is_outlier(layer, before))
    return patch_norms_figure(panels, sample.pictures()[:3], outliers=masks, title=f"Refinement: {name}")


@torch.no_grad()
def _similarity_maps(diagnosis: Diagnosis, layer: int):
    shown, grid = diagnosis.sample.select(diagnosis.shown), diagnosis.teacher.layout.grid
    patches = _features(diagnosis, [layer], shown)[layer]
    columns = {f"teacher\nblock {layer}": (patches, grid)}
    for name in _drawn(diagnosis)[:2]:
        if layer in diagnosis.refinements[name]:
            columns[f"refined\n{name}"] = (diagnosis.refinements[name][layer](patches), grid)
    for name, backbone in diagnosis.students.items():
        pixels = diagnosis.student_samples[name].student_pixels
        last, weight = backbone.num_blocks - 1, next(backbone.model.parameters())
        features = backbone.features(pixels.to(weight), [last])
        own = features.hidden[last][:, backbone.num_prefix_tokens :].float().cpu()
        columns[f"student\n{name}"] = (own, features.layout.grid)
    marked = marked_places(diagnosis.teacher.is_outlier(layer, patch_norms(patches)), grid)
    return similarity_maps_figure(shown.pictures(), columns, marked)


def _of_layer(result: dict[str, Any], name: str, layer: int) -> dict[str, Any] | None:
    return next((entry for entry in result["refinements"].get(name, []) if entry["layer"] == layer), None)
