"""What L_KD compares: targets whose tokens are normalised, patches that are left out; against formulas written out."""

import pytest
import torch
from runs import trainer_of
from test_objectives import LAYERS, expected_outlier, pair, refined_features, step_of

from singer_hf.losses import kd_loss
from singer_hf.objectives import FitNetObjective, SingerObjective
from singer_hf.objectives.feature_loss import FeatureLoss
from singer_hf.objectives.target_normalization import layer_norm, target_normalization


def naive(tokens):
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()


def naive_kd(objective, step, targets):
    pairs = zip(objective.teacher_layers, objective.student_layers, strict=True)
    return [
        ((objective.projectors[str(layer)](step.student.hidden[other]) - naive(targets[layer])) ** 2).mean()
        for layer, other in pairs
    ]


def test_every_token_weighs_the_same():
    tokens = torch.randn(2, 5, 64)
    tokens[0, 3] *= 100
    torch.testing.assert_close(layer_norm(tokens).norm(dim=-1), torch.full((2, 5), 8.0), rtol=1e-4, atol=0)
    assert layer_norm(tokens.bfloat16()).dtype == torch.float32


def test_singer_normalises_the_refined_target_of_the_feature_loss_alone():
    objective = SingerObjective(
        *pair(), teacher_layers=LAYERS, outlier_quantile=0.9, outlier_weight=1.0, normalize_target="layer_norm"
    ).double()
    step = step_of(objective)
    refined, terms = refined_features(objective, step), objective(step).terms
    torch.testing.assert_close(terms["loss_kd"], sum(naive_kd(objective, step, refined)) / len(LAYERS))
    assert terms["loss_outlier"].item() == pytest.approx(expected_outlier(refined, 1))


def test_fitnet_normalises_the_plain_target():
    objective = FitNetObjective(*pair(adapter=False), teacher_layers=LAYERS, normalize_target="layer_norm").double()
    step = step_of(objective)
    torch.testing.assert_close(
        objective(step).terms["loss_fitnet"], sum(naive_kd(objective, step, step.teacher.hidden))
    )


@pytest.mark.parametrize("objective", ["singer", "singer_reference", "fitnet"])
def test_a_run_with_normalised_targets(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective, target_normalization="layer_norm")
    assert trainer.model.objective.feature_loss.normalize_target is layer_norm
    assert trainer.train().training_loss > 0


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of none, layer_norm"):
        target_normalization("batch_norm")
    with pytest.raises(ValueError, match="target_normalization='batch_norm' is not known"):
        trainer_of(tmp_path, target_normalization="batch_norm")


# -- masked outliers --------------------------------------------------------------------------------------------------
def tokens_with_long_patches(*long: tuple[int, int]):
    """(2, 10, 8): two prefix tokens, one of them long too, and patches of norm about 1, `long` ones of norm 5."""
    torch.manual_seed(0)
    target = torch.nn.functional.normalize(torch.randn(2, 10, 8, dtype=torch.float64), dim=-1)
    target[:, 0] *= 100
    for place in long:
        target[place] *= 5
    return torch.randn(2, 10, 8, dtype=torch.float64, requires_grad=True), target


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_long_patches_add_nothing(normalize):
    projected, target = tokens_with_long_patches((0, 4), (1, 7), (1, 9))
    loss = FeatureLoss(normalize, mask_ratio=2.0)(projected, target, 2)
    kept = torch.ones(2, 10, 1, dtype=torch.float64)
    kept[0, 4] = kept[1, 7] = kept[1, 9] = 0
    compared = naive(target) if normalize == "layer_norm" else target
    torch.testing.assert_close(loss, (kept * (projected - compared) ** 2).mean())
    loss.backward()
    assert torch.equal(projected.grad.abs().amax(dim=-1, keepdim=True) > 0, kept > 0)


def test_the_share_of_masked_patches():
    _, target = tokens_with_long_patches((0, 4), (1, 7), (1, 9))
    _, plain = tokens_with_long_patches()
    found = FeatureLoss(mask_ratio=2.0).statistics([target, plain], 2)
    assert found["masked_share"].item() == pytest.approx(3 / 16 / 2)
    assert FeatureLoss().statistics([target], 2) == {}


def test_an_image_full_of_artifacts_does_not_hide_them():
    projected, target = tokens_with_long_patches(*((0, place) for place in range(2, 8)))
    target = torch.cat([target, *[target[1:]] * 3])  # of five images, one with six long patches among eight
    FeatureLoss(mask_ratio=2.0)(projected[[0, 1, 1, 1, 1]], target, 2).backward()
    assert not projected.grad[0, 2:8].any() and projected.grad[0, 8:].any()


def test_without_long_patches_the_loss_is_the_papers_to_the_bit():
    projected, target = tokens_with_long_patches()
    loss, plain = FeatureLoss(mask_ratio=2.0)(projected, target, 2), kd_loss(projected, target)
    assert torch.equal(loss, plain)
    assert torch.equal(*(torch.autograd.grad(each, projected)[0] for each in (loss, plain)))


@pytest.mark.parametrize("mask", [None, 2.0])
def test_prefix_tokens_have_their_share_of_the_loss(mask):
    projected, target = tokens_with_long_patches((0, 4))
    kept = torch.ones(2, 10, 1, dtype=torch.float64)
    if mask:
        kept[0, 4] = 0
    error = kept * (projected - target) ** 2
    loss = FeatureLoss(mask_ratio=mask, prefix_share=0.3)(projected, target, 2)
    torch.testing.assert_close(loss, 0.3 * error[:, :2].mean() + 0.7 * error[:, 2:].mean())
    own_share = FeatureLoss(mask_ratio=mask, prefix_share=2 / 10)(projected, target, 2)
    torch.testing.assert_close(own_share, FeatureLoss(mask_ratio=mask)(projected, target, 2))
    with pytest.raises(ValueError, match="share no prefix token"):
        FeatureLoss(prefix_share=0.3)(projected, target, 0)


@pytest.mark.parametrize("objective", ["singer", "singer_reference", "fitnet"])
def test_a_run_with_a_share_for_prefix_tokens(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective, prefix_share=0.5)
    assert trainer.model.objective.feature_loss.prefix_share == 0.5
    assert trainer.train().training_loss > 0


def test_singer_masks_by_the_refined_norms_and_the_adapter_learns_nothing_there():
    options = {"teacher_layers": LAYERS, "outlier_quantile": 0.9, "outlier_weight": 0.0, "info_weight": 0.0}
    objective = SingerObjective(*pair(), **options, outlier_mask_ratio=1.2).double()
    step = step_of(objective)
    refined, prefix = refined_features(objective, step), step.teacher.layout.num_prefix_tokens
    expected, masked = [], 0
    for layer, other in zip(objective.teacher_layers, objective.student_layers, strict=True):
        norms = refined[layer].norm(dim=-1)
        kept = norms <= 1.2 * norms[:, prefix:].median()
        kept[:, :prefix] = True
        masked += (~kept).sum().item()
        error = (objective.projectors[str(layer)](step.student.hidden[other]) - refined[layer]) ** 2
        expected.append((kept[..., None] * error).mean())
    assert masked > 0
    expected = sum(expected) / len(expected)
    terms = objective(step).terms
    torch.testing.assert_close(terms["loss_kd"], expected)
    adapter = [p for name, p in objective.teacher.model.named_parameters() if "lora_" in name]
    for ours, theirs in zip(
        torch.autograd.grad(terms["loss_kd"], adapter, retain_graph=True),
        torch.autograd.grad(expected, adapter),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("objective", ["singer", "singer_reference", "fitnet"])
def test_a_run_with_masked_outliers(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective, outlier_mask_ratio=1.01)
    assert trainer.model.objective.feature_loss.mask_ratio == 1.01
    assert trainer.train().training_loss > 0
    assert 0 < trainer.state.log_history[0]["masked_share"] < 0.6


def test_options_that_cannot_be_meant(tmp_path):
    with pytest.raises(ValueError, match=r"outlier_mask_ratio is a multiple .* above 1, got 1"):
        trainer_of(tmp_path, outlier_mask_ratio=1.0)
    with pytest.raises(ValueError, match="prefix_share must lie strictly between 0 and 1, got 1"):
        trainer_of(tmp_path, prefix_share=1.0)
    for option in ({"outlier_mask_ratio": 2.0}, {"target_normalization": "layer_norm"}, {"prefix_share": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is an option of singer.* objective is vitkd"):
            trainer_of(tmp_path, objective="vitkd", **option)
