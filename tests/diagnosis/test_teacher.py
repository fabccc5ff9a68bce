import pytest
import torch
from artifact_models import pixels, with_artifacts
from families import FAMILIES, tiny_model, tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis import diagnose_teacher
from singer_hf.diagnosis.spectrum import surrogate_spectrum

LOOSE = {"abs": 1e-5, "rel": 1e-4}


def features(model, images):
    backbone = vision_backbone(model)
    with torch.no_grad():
        hidden = backbone.features(images, range(backbone.num_blocks)).hidden
    return [hidden[layer][:, backbone.num_prefix_tokens :] for layer in range(backbone.num_blocks)]


def test_artifacts_are_found_in_their_blocks_and_none_without_them(artifact_teacher, images):
    found = diagnose_teacher(vision_backbone(artifact_teacher), images.split(16))
    assert found.artifact_layers == [2, 3]
    torch.manual_seed(0)
    clean = diagnose_teacher(vision_backbone(tiny_vit(hidden_size=32, num_hidden_layers=4).eval()), images.split(16))
    assert clean.artifact_layers == [] and all(layer.outliers.count == 0 for layer in clean.layers)


def test_every_number_is_the_one_computed_from_all_features_at_once(artifact_teacher, images):
    backbone = vision_backbone(artifact_teacher)
    layer = diagnose_teacher(backbone, images.split(7)).layers[2]
    patches = features(artifact_teacher, images)[2]
    norms = patches.norm(dim=-1)
    outliers = norms >= layer.outliers.threshold
    assert layer.outliers.count == outliers.sum() > 10
    assert layer.outliers.share == outliers.float().mean()
    assert layer.norms.mean == pytest.approx(norms.mean().item(), **LOOSE)
    assert layer.norms.median == pytest.approx(norms.median().item(), rel=0.003)
    assert layer.peak_to_median == pytest.approx(
        (norms.amax(dim=1) / norms.median(dim=1).values).mean().item(), **LOOSE
    )
    traits = layer.traits
    assert traits.gradient_share == pytest.approx((norms[outliers].sum() / norms.sum()).item(), **LOOSE)
    assert traits.loss_share == pytest.approx((norms[outliers].square().sum() / norms.square().sum()).item(), **LOOSE)
    border = torch.ones(4, 4, dtype=torch.bool)
    border[1:3, 1:3] = False
    assert traits.border_share == pytest.approx(
        border.flatten().expand_as(outliers)[outliers].float().mean().item(), **LOOSE
    )
    assert traits.border_expected == pytest.approx(0.75)
    assert traits.places == outliers.sum(dim=0).view(4, 4).tolist()
    variance = images.unfold(2, 8, 8).unfold(3, 8, 8).var(dim=(-2, -1), correction=0).mean(dim=1).flatten(1)
    rank = (variance[:, :, None] > variance[:, None]).sum(dim=2) + 0.5
    assert traits.variance_rank == pytest.approx((rank[outliers] / 16).mean().item(), **LOOSE)
    assert traits.background_share == pytest.approx((rank[outliers] / 16 < 0.25).float().mean().item(), **LOOSE)
    into_next, from_own = surrogate_spectrum(backbone, 3).leading_input, surrogate_spectrum(backbone, 2).leading_output
    for name, direction in (("input_cosine", into_next), ("output_cosine", from_own)):
        cosine = torch.nn.functional.cosine_similarity(patches.double(), direction, dim=-1).abs()
        assert getattr(traits, name) == pytest.approx(cosine[outliers].mean().item(), **LOOSE)
        assert getattr(traits, f"{name}_others") == pytest.approx(cosine[~outliers].mean().item(), **LOOSE)


def test_batch_sizes_and_order_do_not_matter(artifact_teacher, images):
    backbone = vision_backbone(artifact_teacher)
    whole = diagnose_teacher(backbone, [images]).summary()
    parts = diagnose_teacher(backbone, images.flip(0).split(5)).summary()
    for one, other in zip(whole["layers"], parts["layers"], strict=True):
        assert one["outliers"]["count"] == other["outliers"]["count"]
        assert one["outliers"]["threshold"] == other["outliers"]["threshold"]
        if one["traits"]:
            assert one["traits"]["places"] == other["traits"]["places"]
            assert one["traits"]["loss_share"] == pytest.approx(other["traits"]["loss_share"], **LOOSE)
    assert whole["norm_gain"]["all_blocks"]["fc1"]["mean"] == pytest.approx(
        parts["norm_gain"]["all_blocks"]["fc1"]["mean"], **LOOSE
    )


def test_what_is_kept_does_not_grow_with_the_batches(artifact_teacher, images, monkeypatch):
    """Statistics' tensors after one and after ten batches: as many bytes, and no more of them."""
    from singer_hf.diagnosis import teacher as module

    kept = []

    class Recorded(module._LayerStatistics):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(module, "_LayerStatistics", Recorded)

    def size(batches):
        kept.clear()
        diagnose_teacher(vision_backbone(artifact_teacher), batches)
        return [tensor_sizes(layer) for layer in kept]

    assert size([images]) == size([images] * 10)


def tensor_sizes(value):
    """Bytes of every tensor and list held by an object, in nested attributes."""
    if isinstance(value, torch.Tensor):
        return [value.untyped_storage().nbytes()]
    if isinstance(value, dict):
        return [size for item in value.values() for size in tensor_sizes(item)]
    if isinstance(value, list | tuple):
        return [64 * len(value), *(size for item in value for size in tensor_sizes(item))]
    return tensor_sizes(vars(value)) if hasattr(value, "__dict__") else []


def test_planted_output_directions_are_the_leading_right_singular_vector(artifact_teacher, images):
    traits = diagnose_teacher(vision_backbone(artifact_teacher), images.split(16)).layers[2].traits
    assert traits.output_cosine > 0.9 > 0.5 > traits.output_cosine_others


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_diagnosed(family):
    model = tiny_model(family).eval()
    backbone = vision_backbone(model)
    found = diagnose_teacher(backbone, pixels(63).split(21))
    assert len(found.layers) == 3 and found.images == 63 and found.layout.num_patches == 16
    expected = features(model, pixels(63))
    for layer, patches in zip(found.layers, expected, strict=True):
        assert layer.norms.count == 63 * 16
        assert layer.norms.mean == pytest.approx(patches.norm(dim=-1).mean().item(), **LOOSE)
    assert all(table["fc1"]["mean"] > 0 for table in found.gains)
    assert found.summary()["spectra"][0]["singular_values"].shape == (32,)


def test_fewer_images_than_the_rule_needs(artifact_teacher, images):
    with pytest.raises(ValueError, match="20 images of 16 patches .* give at least 63 images"):
        diagnose_teacher(vision_backbone(artifact_teacher), [images[:20]])
    with pytest.raises(ValueError, match="no images"):
        diagnose_teacher(vision_backbone(artifact_teacher), [])


def test_images_of_differing_sizes(artifact_teacher, images):
    with pytest.raises(ValueError, match="Image 64 and those after it have 5x5 patches, the images before 4x4"):
        diagnose_teacher(vision_backbone(artifact_teacher), [images, pixels(4, size=40)])


def test_features_that_are_not_finite_name_block_and_image(images):
    model = tiny_vit().eval()
    broken = images.clone()
    broken[9, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"Block 0 gives NaN or infinite features for image 9 .*float32"):
        diagnose_teacher(vision_backbone(model), broken.split(4))


def test_a_model_in_training_mode(images):
    with pytest.raises(ValueError, match="ViTModel is in training mode"):
        diagnose_teacher(vision_backbone(tiny_vit().train()), [images])


def test_a_model_without_one_token_a_patch(images):
    backbone = vision_backbone(tiny_vit().eval())
    embed = backbone.embed
    backbone.embed = lambda pixels: (embed(pixels)[0][:, :-3], {})
    with pytest.raises(ValueError, match="expected .images, 1 prefix tokens . 16 patches, width"):
        diagnose_teacher(backbone, [images])


def test_an_adapter_in_the_model_is_left_out(artifact_teacher, images):
    from peft import get_peft_model

    from singer_hf import NullspaceLoraConfig

    plain = diagnose_teacher(vision_backbone(artifact_teacher), [images]).summary()
    adapted = get_peft_model(artifact_teacher, NullspaceLoraConfig(r=8, layers_to_transform=[1, 3])).eval()
    found = diagnose_teacher(vision_backbone(adapted), [images]).summary()
    assert [layer["norms"] for layer in found["layers"]] == [layer["norms"] for layer in plain["layers"]]


def test_the_helper_plants_what_the_tests_rely_on(images):
    torch.manual_seed(0)
    model = with_artifacts(tiny_vit(hidden_size=32, num_hidden_layers=4), 2).eval()
    norms = features(model, images)[2].norm(dim=-1)
    assert 0.01 < (norms > 3 * norms.median()).float().mean() < 0.1
