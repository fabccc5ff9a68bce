"""From a teacher's diagnosis to advice: would SiNGER help, on which layers, with which rank, and why."""

from __future__ import annotations

from dataclasses import dataclass

from ..layers import default_teacher_layers
from ..nullspace import surrogate_layer
from .spectrum import NULL_ENERGY, effective_nullity, null_energy
from .teacher import TeacherDiagnosis


@dataclass(frozen=True)
class Recommendation:
    """Advice.

    Args:
        helps: whether there is something for SiNGER to repair.
        layers: blocks to distill.
        rank: r of the adapter.
        sentence: the diagnosis in one plain sentence.
        layers_reason, rank_reason: why these.
    """

    helps: bool
    layers: list[int]
    rank: int
    sentence: str
    layers_reason: str
    rank_reason: str


def recommend(diagnosis: TeacherDiagnosis) -> Recommendation:
    """Advice from a diagnosis alone, whatever else was asked to be looked at.

    Layers: the last block, whose features the student is used by, and of the blocks with artifacts the one nearest to
    three quarters of the depth, where the paper distills. Rank: see [`null_rank`].
    """
    layers, layers_reason = _layers(diagnosis)
    rank, rank_reason = null_rank(diagnosis, layers)
    return Recommendation(
        helps=bool(diagnosis.artifact_layers),
        layers=layers,
        rank=rank,
        sentence=_sentence(diagnosis, layers, rank),
        layers_reason=layers_reason,
        rank_reason=rank_reason,
    )


def null_rank(diagnosis: TeacherDiagnosis, layers: list[int]) -> tuple[int, str]:
    """The rank that refinements at these layers may have, and why.

    The smallest effective nullity of the surrogates that they must not disturb, so that all r directions are null in
    all of them.
    """
    num_blocks = len(diagnosis.layers)
    nullities = {
        layer: effective_nullity(diagnosis.spectra[surrogate_layer(layer, num_blocks)].values) for layer in layers
    }
    tightest = min(nullities, key=nullities.get)
    rank = max(1, nullities[tightest])
    block = surrogate_layer(tightest, num_blocks)
    energy = null_energy(diagnosis.spectra[block].values, rank)
    rank_reason = (
        f"In the feed-forward part of block {block}, the {nullities[tightest]} smallest of "
        f"{len(diagnosis.spectra[block].values)} singular values hold at most {NULL_ENERGY:.2%} of the energy that as "
        f"many directions with the median singular value would; with rank {rank} it is {energy:.3%}."
    )
    if nullities[tightest] == 0:
        rank_reason += " There is no null direction by that measure: expect the next block to notice a refinement."
    return rank, rank_reason


def looked_at_sentence(
    diagnosis: TeacherDiagnosis, layers: list[int], rank: int, advice: Recommendation
) -> str | None:
    """Says that other layers or another rank than the advised ones were looked at, and whether they have artifacts."""
    if (layers, rank) == (advice.layers, advice.rank):
        return None
    with_artifacts = [layer for layer in layers if layer in diagnosis.artifact_layers]
    if not with_artifacts:
        found = "which has no artifacts" if len(layers) == 1 else "none of which has artifacts"
    elif with_artifacts == layers:
        found = "which has artifacts" if len(layers) == 1 else "all of which have artifacts"
    else:
        found = (
            f"of which only {named_blocks(with_artifacts)} {'have' if len(with_artifacts) > 1 else 'has'} artifacts"
        )
    return f"Looked at closely, since options or adapters name them: {named_blocks(layers)} with rank {rank}, {found}."


def _layers(diagnosis: TeacherDiagnosis) -> tuple[list[int], str]:
    num_blocks = len(diagnosis.layers)
    usual = default_teacher_layers(num_blocks)
    with_artifacts = [layer for layer in diagnosis.artifact_layers if layer != num_blocks - 1]
    if not with_artifacts:
        return (
            usual,
            "No block before the last has artifacts: the paper's choice, three quarters of the depth and last.",
        )
    nearest = min(with_artifacts, key=lambda layer: (abs(layer - usual[0]), layer))
    where = (
        "and lies at three quarters of the depth, where the paper distills"
        if nearest == usual[0]
        else f"and is the nearest such block to {usual[0]}, three quarters of the depth, where the paper distills"
    )
    reason = (
        f"Block {num_blocks - 1} is the last, whose features the student is used by; block {nearest} has artifacts "
        f"{where}."
    )
    return [nearest, num_blocks - 1], reason


def _sentence(diagnosis: TeacherDiagnosis, layers: list[int], rank: int) -> str:
    num_blocks = len(diagnosis.layers)
    artifacts = diagnosis.artifact_layers
    if artifacts:
        worst = max((diagnosis.layers[layer] for layer in artifacts), key=lambda layer: layer.traits.loss_share)
        here = worst.outliers
        return (
            f"This teacher has artifacts in {named_blocks(artifacts)} of {num_blocks}: in block {worst.layer}, "
            f"{here.share:.1%} of the patches have {here.ratio:.1f} times the median norm and make up "
            f"{worst.traits.loss_share:.0%} of a plain feature loss, so SiNGER would help: distill "
            f"{named_blocks(layers)} with rank {rank}."
        )
    tails = [layer for layer in diagnosis.layers if layer.outliers.verdict == "heavy tail"]
    if tails:
        worst = max(tails, key=lambda layer: layer.traits.loss_share)
        return (
            f"This teacher has no artifacts by the stated rule, but the patch norms of "
            f"{named_blocks([layer.layer for layer in tails])} have a heavy tail (in block {worst.layer}, "
            f"{worst.outliers.share:.1%} of the patches make up {worst.traits.loss_share:.0%} of a plain feature "
            "loss): SiNGER may help a little."
        )
    highest = max(layer.peak_to_median for layer in diagnosis.layers)
    return (
        f"This teacher has no artifacts (the largest patch norm of an image is at most {highest:.1f} times its "
        f"median, on average, in any of its {num_blocks} blocks): a plain feature loss is not dominated by outliers, "
        "and SiNGER would have little to repair."
    )


def named_blocks(layers: list[int]) -> str:
    """[2, 3, 4, 7] -> "blocks 2 to 4 and 7"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(layer) for layer in run]
    words = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"block{'s' if len(layers) > 1 else ''} {words}"
