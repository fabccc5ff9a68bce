"""What a report says, section by section: text from the numbers, the paper's tables, and the pictures."""

from __future__ import annotations

from typing import Any

import torch

from ..losses import patch_norms
from ..plots import NormPanel, patch_norms_figure
from . import tables
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
        sections.append(Section("Which directions a block notices", tables=[tables.table_8(result)]))
    return sections


def _teacher(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    found = diagnosis.teacher
    closely = _closely(diagnosis)
    rule = found.rule
    text = [
        f"A patch is an outlier where its norm reaches τ, the larger of {rule.min_ratio:g} times the layer's median "
        f"and {rule.k:g} robust standard deviations of ln‖F‖ above it. Outliers are called artifacts where they are "
        f"at least {rule.min_share:.1%} of the patches and a population of their own: a mode behind a valley, or far "
        "beyond the reach of the others.",
    ]
    pictures = [
        Picture(
            "layers",
            layers_figure(found),
            "Left: patch norms of every block. Right: how large a part of the patches, of the gradient and of the loss "
            "of a plain feature loss the outliers are.",
        ),
        Picture(
            "norm_distribution",
            norm_distribution_figure(found, closely),
            "Patch norms of some blocks, on logarithmic axes; outliers in orange, beyond the threshold τ.",
        ),
        Picture(
            "norm_maps", _norm_maps(diagnosis, closely), "Patch norms on images, relative to each block's median."
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
    if diagnosis.rank != advice.rank:
        text.append(f"What follows uses rank {diagnosis.rank}, the adapter's or the one asked for.")
    picture = Picture(
        "spectra",
        spectra_figure(diagnosis.teacher, surrogate_blocks(diagnosis), diagnosis.rank),
        "Singular values of the linear surrogates of the blocks that refinements must not disturb, and how much energy "
        "the smallest ones hold together.",
    )
    return Section("Layers and rank", text, (), [picture])


def _refinements(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    trained = [name for name in diagnosis.refinements if name not in (INITIAL, CLOSED_FORM, CLOSED_FORM_FREE)]
    text = [
        f"{INITIAL}: what an adapter starts as."
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
        for number, name in enumerate(_drawn(diagnosis, trained))
    ]
    return Section(
        "What refinement does",
        text,
        [tables.effect_table(result), tables.table_3(result), tables.table_5b(result), tables.table_5a(result)],
        pictures,
    )


def closed_form_sentences(result: dict[str, Any]) -> list[str]:
    """Whether the closed form helps, layer by layer, in words; from the recorded result."""
    sentences = []
    for layer in result["refinements"].get(CLOSED_FORM, []):
        before, after = (layer["mean_norm_of_outliers"][key] for key in ("before", "after"))
        if before is None:
            continue
        reduction = 1 - after / before
        gone = layer["outliers_after"]["verdict"] != "artifacts"
        judgement = "the artifacts are gone" if gone else "it does not help enough: the layer still has artifacts"
        sentence = (
            f"Block {layer['layer']}: within the null basis of rank {layer['rank']} the closed form takes "
            f"{reduction:.0%} off the mean norm of outliers; {judgement}."
        )
        free = _of_layer(result, CLOSED_FORM_FREE, layer["layer"])
        if free is not None:
            taken = 1 - free["mean_norm_of_outliers"]["after"] / free["mean_norm_of_outliers"]["before"]
            sentence += f" In all directions it takes {taken:.0%} off"
            following = free["cosine_next_block"] or free["cosine"]
            where = "behind the next block" if free["cosine_next_block"] else "with the unrefined features"
            sentence += f", at a cosine of {following['mean']:.3f} {where}."
        sentences.append(sentence)
    return sentences


def _students(diagnosis: Diagnosis, result: dict[str, Any]) -> Section:
    return Section("Students", (), [tables.table_2(result)])


def _similarity(diagnosis: Diagnosis) -> Section:
    layer = diagnosis.layers[-1]
    picture = Picture("similarity_maps", _similarity_maps(diagnosis, layer), "Cosine similarity to the marked patch.")
    text = [
        f"Features of block {layer} of the teacher and of its counterparts; the marked patch is the one nearest to the "
        "centre that is no outlier. Clean features show the object; artifacts show as spots like nothing around them."
    ]
    return Section("What a patch is similar to (Figures 2 and 4)", text, (), [picture])


# -- pictures of the sample -------------------------------------------------------------------------------------------
def _closely(diagnosis: Diagnosis) -> list[int]:
    """At most four blocks to look at: those in question, and of the others the one where outliers weigh most."""
    weights = {layer.layer: layer.traits.loss_share if layer.traits else 0.0 for layer in diagnosis.teacher.layers}
    others = sorted(set(weights) - set(diagnosis.layers), key=lambda layer: -weights[layer])
    chosen = [*diagnosis.layers[-3:], *others[:1]]
    return sorted(chosen)


def _shown(diagnosis: Diagnosis) -> list[int]:
    """Images of the sample to show: its first."""
    return list(range(min(diagnosis.options.shown_images, len(diagnosis.sample))))


@torch.no_grad()
def _features(diagnosis: Diagnosis, layers: list[int], images: int) -> dict[int, torch.Tensor]:
    """Layer -> patches (images, n, d) of the first images of the sample."""
    backbone = diagnosis.backbone
    weight = next(backbone.model.parameters())
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for pixels in diagnosis.sample.teacher_pixels[:images].split(16):
        features = backbone.features(pixels.to(weight), layers, adapters=False)
        for layer, hidden in features.hidden.items():
            parts[layer].append(hidden[:, backbone.num_prefix_tokens :].float().cpu())
    return {layer: torch.cat(part) for layer, part in parts.items()}


def _norm_maps(diagnosis: Diagnosis, layers: list[int]):
    shown = _shown(diagnosis)
    features = _features(diagnosis, layers, len(shown))
    return norm_maps_figure(
        diagnosis.sample.pictures()[shown].numpy(),
        {f"block {layer}": patch_norms(patches) for layer, patches in features.items()},
        {f"block {layer}": diagnosis.teacher.layers[layer].norms.median for layer in layers},
        diagnosis.teacher.layout.grid,
    )


def _drawn(diagnosis: Diagnosis, trained: list[str]) -> list[str]:
    """Refinements to draw before and after: the trained ones, else the closed form in all directions, else the start."""
    if trained:
        return trained
    return [CLOSED_FORM_FREE if CLOSED_FORM_FREE in diagnosis.refinements else INITIAL]


def _figure_6(diagnosis: Diagnosis, name: str):
    of = diagnosis.refinements[name]
    layers = sorted(of)[-2:]
    count = min(diagnosis.options.sample_images, len(diagnosis.sample))
    features = _features(diagnosis, layers, count)
    panels, masks = [], []
    for layer in layers:
        before = patch_norms(features[layer])
        panels.append(
            NormPanel(f"block {layer}", before, patch_norms(of[layer](features[layer])), diagnosis.teacher.layout.grid)
        )
        masks.append(before >= diagnosis.teacher.threshold(layer))
    shown = _shown(diagnosis)[:3]
    return patch_norms_figure(panels, diagnosis.sample.pictures()[shown].numpy(), outliers=masks, title=name)


@torch.no_grad()
def _similarity_maps(diagnosis: Diagnosis, layer: int):
    shown, grid = _shown(diagnosis), diagnosis.teacher.layout.grid
    patches = _features(diagnosis, [layer], len(shown))[layer]
    columns = {f"teacher, block {layer}": (patches, grid)}
    for name, of in diagnosis.refinements.items():
        if name != INITIAL and layer in of and len(columns) < 4:
            columns[f"refined: {name}"] = (of[layer](patches), grid)
    for name, backbone in diagnosis.students.items():
        pixels = diagnosis.student_samples[name].student_pixels[: len(shown)]
        last, weight = backbone.num_blocks - 1, next(backbone.model.parameters())
        features = backbone.features(pixels.to(weight), [last])
        own = features.hidden[last][:, backbone.num_prefix_tokens :].float().cpu()
        columns[f"student: {name}"] = (own, features.layout.grid)
    marked = marked_places(patch_norms(patches), grid, diagnosis.teacher.threshold(layer))
    return similarity_maps_figure(diagnosis.sample.pictures()[shown].numpy(), columns, marked)


def _of_layer(result: dict[str, Any], name: str, layer: int) -> dict[str, Any] | None:
    return next((entry for entry in result["refinements"].get(name, []) if entry["layer"] == layer), None)
