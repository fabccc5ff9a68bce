"""SiNGER: the student learns from refined features (METHOD.md section 4), as in the paper and as released."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..layers import default_teacher_layers
from ..losses import check_median_ratio, gram_loss, kd_loss, outlier_loss, patch_norms
from .base import DistillationStep, Objective, ObjectiveOutput, artifact_statistics, register_objective
from .feature_loss import FeatureLoss
from .projectors import build_projector


@register_objective
class SingerObjective(Objective):
    """`L = λ_kd L_KD + λ_outlier L_outlier + λ_info L_info`, each a mean over the distilled layers.

    Paper: SiNGER, ICLR 2026 (arXiv 2509.20986). Terms: `loss_kd`, `loss_outlier`, `loss_info`, weighted.

    Args:
        teacher: backbone of a teacher with a nullspace adapter on `teacher_layers`.
        student, and the options of every objective: see [`Objective`].
        kd_weight: λ_kd, 1.0 in the paper.
        outlier_weight: λ_outlier, 0.01 in the paper.
        info_weight: λ_info, 1.0 in the paper.
        projector: a name in `PROJECTORS`.
        normalize_target, outlier_mask_ratio, prefix_share: of L_KD alone, applied to F̂: see [`FeatureLoss`].
        outlier_min_ratio: of the longest 1 − α of an image, L_outlier shortens those alone that are above so many
            times the batch's median norm, see [`outlier_loss`]; in a teacher without artifacts none. `None` in the
            paper: all of them, in any teacher. Ours.
        detach_target: whether L_KD leaves the adapter alone, which L_outlier and L_info train then. The paper trains
            it by all three, and L_KD rewards a target that is easy to learn rather than one worth learning. Ours.

    Raises:
        ValueError: α outside (0, 1), a negative weight, a distilled layer that carries no adapter, an adapter that no
            term trains.
    """

    name = "singer"
    uses_adapter = True
    uses_feature_loss = True
    outlier_power = 1

    def __init__(
        self,
        teacher,
        student,
        *,
        kd_weight: float = 1.0,
        outlier_weight: float = 0.01,
        info_weight: float = 1.0,
        projector: str = "linear",
        normalize_target: str = "none",
        outlier_mask_ratio: float | None = None,
        prefix_share: float | None = None,
        outlier_min_ratio: float | None = None,
        detach_target: bool = False,
        **common: Any,
    ):
        super().__init__(teacher, student, **common)
        check_median_ratio("outlier_min_ratio", outlier_min_ratio)
        self.feature_loss = FeatureLoss(normalize_target, outlier_mask_ratio, prefix_share)
        self.outlier_min_ratio, self.detach_target = outlier_min_ratio, detach_target
        self.weights = {"kd": kd_weight, "outlier": outlier_weight, "info": info_weight}
        for term, weight in self.weights.items():
            if weight < 0:
                raise ValueError(f"{term}_weight must not be negative, got {weight}.")
        if outlier_min_ratio is not None and not outlier_weight:
            raise ValueError("outlier_min_ratio says which patches L_outlier shortens, but outlier_weight is 0.")
        if detach_target and not (outlier_weight or info_weight):
            raise ValueError(
                "With detach_target and neither L_outlier nor L_info nothing trains the adapter: weigh one."
            )
        plain = [layer for layer in self.teacher_layers if not hasattr(teacher.blocks[layer], "refine")]
        if plain:
            raise ValueError(
                f"Teacher layers {plain} carry no nullspace adapter: use get_peft_model(teacher, "
                f"NullspaceLoraConfig(layers_to_transform={self.teacher_layers})) first."
            )
        self.projectors = nn.ModuleDict(
            {
                str(layer): build_projector(projector, student.hidden_size, teacher.hidden_size)
                for layer in self.teacher_layers
            }
        )

    @classmethod
    def default_teacher_layers(cls, num_blocks: int) -> list[int]:
        return default_teacher_layers(num_blocks)

    @classmethod
    def options(cls, args):
        return {
            "kd_weight": args.kd_weight,
            "outlier_weight": args.outlier_weight,
            "info_weight": args.info_weight,
            "projector": args.projector,
            "normalize_target": args.target_normalization,
            "outlier_mask_ratio": args.outlier_mask_ratio,
            "prefix_share": args.prefix_share,
            "outlier_min_ratio": args.outlier_min_ratio,
            "detach_target": args.detach_target,
        }

    @property
    def teacher_features(self) -> list[int]:
        following = {layer + 1 for layer in self.teacher_layers if self._compares_next_block(layer)}
        return sorted(following | set(self.teacher_layers))

    def forward(self, step: DistillationStep) -> ObjectiveOutput:
        aligner = self._aligner(step)
        refined = {layer: self.refine(layer, step.teacher.hidden[layer]) for layer in self.teacher_layers}
        targets, kd, outlier, info = [], [], [], []
        for layer, student_layer in zip(self.teacher_layers, self.student_layers, strict=True):
            student = aligner.align_student(step.student.hidden[student_layer])
            target = aligner.align_teacher(refined[layer].detach() if self.detach_target else refined[layer])
            targets.append(target)
            kd.append(self.feature_loss(self.projectors[str(layer)](student), target, aligner.num_prefix_tokens))
            norms = patch_norms(self._teacher_patches(step, refined[layer]))
            outlier.append(outlier_loss(norms, self.outlier_quantile, self.outlier_power, self.outlier_min_ratio))
            info.append(self.info_loss(layer, refined, step))
        terms = {"kd": kd, "outlier": outlier, "info": info}
        before = [self._teacher_patches(step, step.teacher.hidden[layer]) for layer in self.teacher_layers]
        after = [self._teacher_patches(step, refined[layer]) for layer in self.teacher_layers]
        return ObjectiveOutput(
            {f"loss_{name}": self.weights[name] * sum(values) / len(values) for name, values in terms.items()},
            artifact_statistics(before, self.outlier_quantile, "before")
            | artifact_statistics(after, self.outlier_quantile, "after")
            | self.feature_loss.statistics(targets, aligner.num_prefix_tokens),
        )

    def refine(self, layer: int, hidden: Tensor) -> Tensor:
        """F_l (B, N, d) -> F̂_l (B, N, d)."""
        return self.teacher.blocks[layer].refine(hidden)

    def _compares_next_block(self, layer: int) -> bool:
        return layer + 1 < self.teacher.num_blocks

    def _next_block(self, layer: int, refined: dict[int, Tensor], step: DistillationStep) -> Tensor:
        """F̂_{l+1} = block l+1 applied to F̂_l, prefix tokens included in its input."""
        return self.teacher.run_block(layer + 1, refined[layer], step.teacher.block_inputs, adapters=False)

    def info_loss(self, layer: int, refined: dict[int, Tensor], step: DistillationStep) -> Tensor:
        """L_info of one layer: Gram matrices of the next block's outputs, or of F̂ itself behind the last block."""
        if self._compares_next_block(layer):
            refined_output, output = self._next_block(layer, refined, step), step.teacher.hidden[layer + 1]
        else:
            refined_output, output = refined[layer], step.teacher.hidden[layer]
        return gram_loss(self._teacher_patches(step, refined_output), self._teacher_patches(step, output))


@register_objective
class ReferenceSingerObjective(SingerObjective):
    """SiNGER as the released code computes it (METHOD.md section 7).

    L_outlier squares the excess norm; L_info is the plain MSE of the next block's outputs (prefix tokens included),
    and for the last distilled layer, whichever block that is, the Gram matrix of F̂ against that of the F̂ one
    distilled layer before. Layers are matched, and the adapter initialised, by the released code's rules.

    Raises:
        ValueError: fewer than two layers.
    """

    name = "singer_reference"
    outlier_power = 2
    default_layer_matching = "reference"
    default_init_lora_weights = "reference"

    def __init__(self, teacher, student, **kwargs):
        super().__init__(teacher, student, **kwargs)
        if len(self.teacher_layers) < 2:
            raise ValueError(
                f"singer_reference needs at least two teacher layers, got {self.teacher_layers}: its information loss "
                "compares the last one with the one before."
            )

    def _compares_next_block(self, layer: int) -> bool:
        return layer != self.teacher_layers[-1]

    def info_loss(self, layer: int, refined: dict[int, Tensor], step: DistillationStep) -> Tensor:
        if self._compares_next_block(layer):
            return kd_loss(self._next_block(layer, refined, step), step.teacher.hidden[layer + 1])
        previous = refined[self.teacher_layers[-2]]
        return gram_loss(self._teacher_patches(step, refined[layer]), self._teacher_patches(step, previous))
