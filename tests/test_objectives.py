"""Objectives against METHOD's formulas written out naively in float64."""

import pytest
import torch
from families import tiny_model, tiny_vit
from peft import get_peft_model
from test_losses import naive_outlier_loss

from singer_hf import NullspaceLoraConfig, vision_backbone
from singer_hf.objectives import (
    DistillationStep,
    FitNetObjective,
    ReferenceSingerObjective,
    SingerObjective,
    ViTKDObjective,
    objective_class,
)
from singer_hf.objectives.sample_noise import sample_noise

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
LAYERS = [1, 3]


def pair(adapter=True, **student_sizes):
    teacher = tiny_vit(hidden_size=32, num_hidden_layers=4).double().eval()
    if adapter:
        config = NullspaceLoraConfig(r=4, layers_to_transform=LAYERS)
        teacher = get_peft_model(teacher, config, autocast_adapter_dtype=False)
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    student = tiny_vit(hidden_size=16, num_hidden_layers=3, **student_sizes).double()
    return vision_backbone(teacher), vision_backbone(student)


def step_of(objective, seeds=None):
    with torch.no_grad():
        teacher = objective.teacher.features(PIXELS, objective.teacher_features, adapters=False)
    return DistillationStep(teacher, objective.student.features(PIXELS, objective.student_layers), seeds)


def naive_gram_mse(a, b):
    total, count = 0.0, 0
    for x, y in zip(a, b, strict=True):
        for i in range(len(x)):
            for j in range(len(x)):
                cosines = [(z[i] @ z[j] / (z[i].norm() * z[j].norm())).item() for z in (x, y)]
                total += (cosines[0] - cosines[1]) ** 2
                count += 1
    return total / count


def refined_features(objective, step):
    refined = {}
    for layer in LAYERS:
        block, hidden = objective.teacher.blocks[layer], step.teacher.hidden[layer]
        down, up = block.lora_A["default"].weight.T, block.lora_B["default"].weight.T
        refined[layer] = hidden.clone()
        refined[layer][:, 1:] += hidden[:, 1:] @ down @ up
    return refined


def expected_kd(objective, step, refined):
    return sum(
        ((objective.projectors[str(t)](step.student.hidden[s]) - refined[t]) ** 2).mean().item()
        for t, s in zip(objective.teacher_layers, objective.student_layers, strict=True)
    ) / len(refined)


def expected_outlier(refined, power):
    return sum(naive_outlier_loss(hidden[:, 1:].norm(dim=-1), 0.9, power) for hidden in refined.values()) / len(
        refined
    )


def test_singer_is_the_papers_formula():
    objective = SingerObjective(
        *pair(), teacher_layers=LAYERS, kd_weight=2.0, outlier_weight=0.3, info_weight=5.0, outlier_quantile=0.9
    ).double()
    step = step_of(objective)
    terms = objective(step).terms
    refined = refined_features(objective, step)
    assert terms["loss_kd"].item() == pytest.approx(2.0 * expected_kd(objective, step, refined))
    assert terms["loss_outlier"].item() == pytest.approx(0.3 * expected_outlier(refined, 1))
    through_next = objective.teacher.blocks[2](refined[1])
    info = [
        naive_gram_mse(through_next[:, 1:], step.teacher.hidden[2][:, 1:]),
        naive_gram_mse(refined[3][:, 1:], step.teacher.hidden[3][:, 1:]),
    ]
    assert terms["loss_info"].item() == pytest.approx(5.0 * sum(info) / 2)


def test_outliers_of_singer_may_have_to_be_far_above_the_median():
    options = {"teacher_layers": LAYERS, "outlier_weight": 0.3, "outlier_quantile": 0.5}
    objective = SingerObjective(*pair(), **options, outlier_min_ratio=1.3).double()
    step, expected = step_of(objective), 0.0
    for hidden in refined_features(objective, step).values():
        norms = hidden[:, 1:].norm(dim=-1)
        expected += naive_outlier_loss(norms, 0.5, 1, least=1.3 * norms.median().item()) / len(LAYERS)
    found = objective(step).terms["loss_outlier"].item()
    assert found == pytest.approx(0.3 * expected) and found > 0
    plain = SingerObjective(objective.teacher, objective.student, **options).double()(step)
    assert plain.terms["loss_outlier"].item() != pytest.approx(found)


@pytest.mark.parametrize("kind", [SingerObjective, ReferenceSingerObjective])
def test_a_detached_target_changes_the_adapters_gradient_alone(kind):
    options = {"teacher_layers": LAYERS, "outlier_weight": 0.3, "info_weight": 5.0, "outlier_quantile": 0.9}
    plain = kind(*pair(), **options).double()
    detached = kind(plain.teacher, plain.student, **options, detach_target=True).double()
    detached.load_state_dict(plain.state_dict())
    adapter = [p for name, p in plain.teacher.model.named_parameters() if "lora_" in name]
    others = list(plain.student.blocks[0].parameters())
    terms, changed = plain(step_of(plain)).terms, detached(step_of(plain)).terms
    torch.testing.assert_close(changed, terms)
    without_kd = terms["loss_outlier"] + terms["loss_info"]
    expected = torch.autograd.grad(without_kd, adapter, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(sum(changed.values()), adapter, retain_graph=True), expected)
    torch.testing.assert_close(
        torch.autograd.grad(sum(changed.values()), others), torch.autograd.grad(sum(terms.values()), others)
    )


def test_singer_reference_is_the_released_formula():
    objective = ReferenceSingerObjective(
        *pair(), teacher_layers=LAYERS, outlier_weight=1.0, outlier_quantile=0.9
    ).double()
    step = step_of(objective)
    terms = objective(step).terms
    refined = refined_features(objective, step)
    assert terms["loss_outlier"].item() == pytest.approx(expected_outlier(refined, 2))
    through_next = objective.teacher.blocks[2](refined[1])
    info = [
        ((through_next - step.teacher.hidden[2]) ** 2).mean().item(),
        naive_gram_mse(refined[3][:, 1:], refined[1][:, 1:]),
    ]
    assert terms["loss_info"].item() == pytest.approx(sum(info) / 2)


def test_a_last_distilled_layer_that_is_not_the_last_block_looks_at_its_next_block():
    teacher, student = pair()
    objective = SingerObjective(teacher, student, teacher_layers=[1])
    assert objective.teacher_features == [1, 2]
    assert SingerObjective(teacher, student, teacher_layers=[3]).teacher_features == [3]


def test_at_the_start_the_refinement_is_invisible_to_the_surrogate():
    teacher = tiny_vit(hidden_size=32, num_hidden_layers=2, intermediate_size=24).double()  # W̃ has a null space
    model = get_peft_model(teacher, NullspaceLoraConfig(r=8, layers_to_transform=[0]), autocast_adapter_dtype=False)
    backbone = vision_backbone(model)
    hidden = torch.randn(1, 17, 32).double()
    change = backbone.blocks[0].refine(hidden) - hidden
    weights = backbone.feed_forward(1)
    assert change.norm() > 0.1 * hidden.norm()
    assert (change @ weights.w_in @ weights.w_out).norm() < 1e-6 * hidden.norm()


def test_gradients_reach_student_projectors_and_adapter_but_not_the_teacher():
    teacher, student = pair()
    objective = SingerObjective(teacher, student, teacher_layers=LAYERS, outlier_quantile=0.9).double()
    objective(step_of(objective)).loss.backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert all(p.grad is not None for p in student.blocks.parameters())
    for name, parameter in teacher.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name)


def test_fitnet_is_the_sum_over_layers_of_unrefined_features():
    objective = FitNetObjective(*pair(adapter=False), teacher_layers=LAYERS).double()
    step = step_of(objective)
    expected = expected_kd(objective, step, {layer: step.teacher.hidden[layer] for layer in LAYERS}) * 2
    assert objective(step).terms["loss_fitnet"].item() == pytest.approx(expected)


def test_vitkd_is_the_official_formula():
    objective = ViTKDObjective(*pair(adapter=False), teacher_layers=[0, 1, 3], mask_ratio=0.25).double()
    with torch.no_grad():
        objective.mask_token.normal_()
    assert objective.student_layers == [0, 1, 2]
    seeds = torch.tensor([5, 6])
    step = step_of(objective, seeds)
    terms = objective(step).terms
    student, teacher = step.student.hidden, step.teacher.hidden
    mimicking = sum(
        ((objective.mimicking[str(layer)](student[layer]) - teacher[layer])[:, 1:] ** 2).sum().item()
        for layer in (0, 1)
    )
    assert terms["loss_mimicking"].item() == pytest.approx(3e-5 * mimicking / 2)
    generation = 0.0
    for image, noise in enumerate(sample_noise(seeds, 16)):
        kept = noise.argsort()[:12].tolist()  # 1 − 0.25 of 16 patches
        tokens = objective.align(student[2][image, 1:]).clone()
        masked = [i for i in range(16) if i not in kept]
        tokens[masked] = objective.mask_token[0, 0]
        generated = objective.generation(tokens.T.reshape(1, 32, 4, 4)).reshape(32, 16).T
        generation += ((generated - teacher[3][image, 1:])[masked] ** 2).sum().item()
    assert terms["loss_generation"].item() == pytest.approx(3e-6 / 0.25 * generation / 2)


def test_an_identity_projector_needs_equal_widths():
    teacher, student = pair(adapter=False)
    with pytest.raises(ValueError, match=r"as wide as the teacher, got 16 and 32: use projector='linear'"):
        FitNetObjective(teacher, student, teacher_layers=[3], projector="identity")
    same = FitNetObjective(teacher, teacher, teacher_layers=[3], projector="identity")
    assert not list(same.parameters())
    assert same(step_of(same)).loss.item() == 0


def test_other_grids_and_prefixes_are_aligned():
    """A DINOv2 teacher with registers at 4x4 patches, a ViT student at 8x8."""
    teacher = vision_backbone(tiny_model("dinov2_with_registers").double().eval())
    student = vision_backbone(tiny_vit(hidden_size=16, patch_size=4).double())
    for objective in (
        FitNetObjective(teacher, student, teacher_layers=[1, 2]),
        ViTKDObjective(teacher, student, teacher_layers=[0, 1, 2]),
    ):
        loss = objective.double()(step_of(objective)).loss
        assert torch.isfinite(loss)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, 1.5])
def test_impossible_quantiles(quantile):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        SingerObjective(*pair(), teacher_layers=LAYERS, outlier_quantile=quantile)


def test_a_teacher_without_adapter_is_refused():
    with pytest.raises(ValueError, match=r"layers \[1, 3\] carry no nullspace adapter: use get_peft_model"):
        SingerObjective(*pair(adapter=False), teacher_layers=LAYERS)


def test_the_reference_needs_two_layers():
    with pytest.raises(ValueError, match="at least two teacher layers"):
        ReferenceSingerObjective(*pair(), teacher_layers=[1])


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="outlier_weight must not be negative"):
        SingerObjective(*pair(), teacher_layers=LAYERS, outlier_weight=-1.0)


def test_unknown_objectives_are_named():
    with pytest.raises(ValueError, match="expected one of fitnet, singer, singer_reference, vitkd"):
        objective_class("kd")


def test_statistics_show_the_refinement():
    objective = SingerObjective(*pair(), teacher_layers=LAYERS).double()
    statistics = objective(step_of(objective)).statistics
    assert set(statistics) == {
        f"{name}_{when}" for name in ("outlier_norm_share", "peak_to_median") for when in ("before", "after")
    }
    assert statistics["peak_to_median_before"] != statistics["peak_to_median_after"]
    assert not any(value.requires_grad for value in statistics.values())


def test_sample_noise_is_a_function_of_the_seed_alone():
    seeds = torch.tensor([3, 2**62, 17])
    noise = sample_noise(seeds, 10_000)
    assert torch.equal(noise[1], sample_noise(seeds[1:2], 10_000)[0])
    assert not torch.equal(noise[0], noise[2])
    assert noise.min() >= 0 and noise.max() < 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.003)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.05
