"""Targets whose tokens are normalised, against formulas written out."""

import pytest
import torch
from runs import trainer_of
from test_objectives import LAYERS, expected_outlier, pair, refined_features, step_of

from singer_hf.objectives import FitNetObjective, SingerObjective
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
