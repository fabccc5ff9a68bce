import pytest
import torch

from singer_hf import vision_backbone
from singer_hf.diagnosis import Refinement, diagnose_teacher, measure_refinements

LOOSE = {"abs": 1e-5, "rel": 2e-4}


@pytest.fixture
def measured(artifact_teacher, images):
    backbone = vision_backbone(artifact_teacher)
    found = diagnose_teacher(backbone, images.split(16))
    torch.manual_seed(1)
    refinement = Refinement(0.1 * torch.randn(32, 4), 0.1 * torch.randn(4, 32))
    effects = measure_refinements(backbone, {"mine": {2: refinement, 3: refinement}}, found, images.split(10))
    return backbone, found, refinement, effects["mine"]


def test_tables_3_and_5b_are_those_of_all_features_at_once(measured, images):
    backbone, found, refinement, effects = measured
    with torch.no_grad():
        features = backbone.features(images, [2, 3])
        hidden = features.hidden[2]
        refined = torch.cat([hidden[:, :1], hidden[:, 1:] + hidden[:, 1:] @ refinement.down @ refinement.up], dim=1)
        after = backbone.run_block(3, refined)[:, 1:].double()
    before, refined = hidden[:, 1:].double(), refined[:, 1:].double()
    result = effects[2].summary()
    cosine = torch.nn.functional.cosine_similarity(before, refined, dim=-1)
    assert result["cosine"]["mean"] == pytest.approx(cosine.mean().item(), **LOOSE)
    assert result["cosine"]["std"] == pytest.approx(cosine.mean(dim=1).std().item(), **LOOSE)
    next_cosine = torch.nn.functional.cosine_similarity(features.hidden[3][:, 1:].double(), after, dim=-1)
    assert result["cosine_next_block"]["mean"] == pytest.approx(next_cosine.mean().item(), **LOOSE)

    def gram(x):
        unit = x / x.norm(dim=-1, keepdim=True)
        return unit @ unit.mT

    distance = (gram(before) - gram(refined)).flatten(1).norm(dim=1)
    assert result["gram_distance"]["mean"] == pytest.approx(distance.mean().item(), **LOOSE)
    assert result["gram_distance"]["median"] == pytest.approx(distance.sort().values[31].item(), rel=0.003)
    assert result["gram_distance"]["std"] == pytest.approx(distance.std().item(), **LOOSE)


def test_figure_6_in_numbers(measured, images):
    backbone, found, refinement, effects = measured
    with torch.no_grad():
        before = backbone.features(images, [2]).hidden[2][:, 1:]
    norms, refined = before.norm(dim=-1), refinement(before).norm(dim=-1)
    outliers = found.is_outlier(2, norms)
    result = effects[2].summary()
    assert result["mean_norm_of_outliers"]["before"] == pytest.approx(norms[outliers].mean().item(), **LOOSE)
    assert result["mean_norm_of_outliers"]["after"] == pytest.approx(refined[outliers].mean().item(), **LOOSE)
    share = result["share_of_outliers"]
    assert share["before"] == outliers.float().mean().item()
    assert share["after"] == found.is_outlier(2, refined).float().mean().item()
    assert result["loss_share_of_outliers"]["after"] == pytest.approx(
        (refined[outliers].square().sum() / refined.square().sum()).item(), **LOOSE
    )


def test_no_block_follows_the_last(measured):
    _, _, _, effects = measured
    result = effects[3].summary()
    assert result["cosine_next_block"] is None and result["gram_distance_next_block"] is None


def test_a_refinement_that_does_nothing_changes_nothing(artifact_teacher, images):
    backbone = vision_backbone(artifact_teacher)
    found = diagnose_teacher(backbone, images.split(16))
    nothing = Refinement(torch.randn(32, 4), torch.zeros(4, 32))
    effect = measure_refinements(backbone, {"none": {2: nothing}}, found, images.split(16))["none"][2]
    assert effect.cosine.mean == pytest.approx(1, abs=1e-6) and effect.gram.mean == pytest.approx(0, abs=1e-5)
    assert torch.equal(effect.norms.counts, effect.norms_after.counts)
