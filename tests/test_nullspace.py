import pytest
import torch
from families import FAMILIES, tiny_model

from singer_hf import vision_backbone
from singer_hf.backbones import FeedForward
from singer_hf.nullspace import (
    InitializationContext,
    initial_basis,
    left_nullspace,
    linear_surrogate,
    random_init,
    reference_init,
    surrogate_layer,
)


def with_spectrum(values):
    """A square matrix of these singular values, and its left singular vectors in their order."""
    size = len(values)
    left = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T, left


def context(surrogate, rank, threshold=0.05, seed=0):
    return InitializationContext(surrogate, rank, threshold, torch.Generator().manual_seed(seed))


def test_nullspace_is_orthonormal_and_at_the_floor_the_spectrum_allows():
    values = [5.0, 3.0, 1.0, 0.5, 0.02, 0.001]
    surrogate, _ = with_spectrum(values)
    for rank in (1, 3, 6):
        basis = left_nullspace(surrogate, rank)
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
        floor = sum(v**2 for v in values[-rank:]) ** 0.5
        assert (basis.T @ surrogate).norm().item() == pytest.approx(floor, rel=1e-10)


def test_nullspace_spans_the_smallest_left_singular_vectors():
    surrogate, left = with_spectrum([4.0, 3.0, 2.0, 1e-3, 1e-6])
    basis = left_nullspace(surrogate, 2)
    torch.testing.assert_close(basis @ basis.T, left[:, 3:] @ left[:, 3:].T)


def test_nullspace_of_a_singular_matrix_is_exact():
    surrogate, _ = with_spectrum([2.0, 1.0, 0.0, 0.0])
    assert (left_nullspace(surrogate, 2).T @ surrogate).abs().max() < 1e-14


def test_the_sign_does_not_depend_on_the_driver():
    surrogate, _ = with_spectrum([3.0, 2.0, 1.0])
    basis = left_nullspace(surrogate, 3)
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("rank", [0, 4])
def test_impossible_ranks(rank):
    with pytest.raises(ValueError, match="between 1 and the width d=3"):
        left_nullspace(torch.eye(3), rank)


def test_random_vectors_have_unit_norm_and_follow_the_seed():
    surrogate = torch.eye(8, dtype=torch.float64)
    basis = random_init(context(surrogate, 3, seed=1))
    torch.testing.assert_close(basis.norm(dim=0), torch.ones(3, dtype=torch.float64))
    assert torch.equal(basis, random_init(context(surrogate, 3, seed=1)))
    assert not torch.equal(basis, random_init(context(surrogate, 3, seed=2)))


def test_the_reference_rule_takes_the_first_below_the_threshold_in_descending_order():
    surrogate, left = with_spectrum([1.0, 0.5, 0.04, 0.03, 0.02, 0.01])
    basis = reference_init(context(surrogate, 2))
    expected = left[:, 2:4]  # 0.04 and 0.03, not the smallest
    torch.testing.assert_close((basis.T @ expected).abs(), torch.eye(2, dtype=torch.float64))


def test_the_reference_rule_fills_up_with_random_unit_vectors():
    surrogate, left = with_spectrum([1.0, 0.5, 0.4, 0.01])
    basis = reference_init(context(surrogate, 3))
    assert (basis[:, 0] @ left[:, 3]).abs().item() == pytest.approx(1)
    torch.testing.assert_close(basis.norm(dim=0), torch.ones(3, dtype=torch.float64))


def test_surrogate_of_plain_weights():
    w_in, w_out = torch.randn(4, 6), torch.randn(6, 4)
    surrogate = linear_surrogate(FeedForward(w_in, w_out, norm_scale=torch.rand(4), layer_scale=torch.rand(4)))
    torch.testing.assert_close(surrogate, w_in.double() @ w_out.double())


def test_folded_surrogate_is_the_map_behind_a_layer_norm():
    """At unit variance LayerNorm is (x − mean) γ: the folded surrogate must be that map, LayerScale included."""
    d = 6
    w_in, w_out = torch.randn(d, 12).double(), torch.randn(12, d).double()
    gamma, scale = torch.rand(d).double() + 0.5, torch.rand(d).double()
    folded = linear_surrogate(FeedForward(w_in, w_out, gamma, True, scale), fold_layer_norm=True)
    x = torch.randn(3, d).double()
    x = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True) + 7.0
    norm = torch.nn.functional.layer_norm(x, (d,), gamma, eps=0)
    torch.testing.assert_close(x @ folded, norm @ w_in @ w_out * scale)


def test_folding_without_centring_keeps_the_mean_direction():
    weights = (torch.eye(3).double(), torch.eye(3).double(), torch.tensor([1.0, 2.0, 3.0]))
    folded = linear_surrogate(FeedForward(*weights, norm_centers=False), fold_layer_norm=True)
    torch.testing.assert_close(folded, torch.diag(torch.tensor([1.0, 2.0, 3.0])).double())


def test_the_last_block_is_its_own_surrogate():
    assert [surrogate_layer(layer, 4) for layer in range(4)] == [1, 2, 3, 3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fold", [False, True])
def test_every_family_reaches_the_floor(family, fold):
    backbone = vision_backbone(tiny_model(family))
    basis = initial_basis(backbone, 0, 4, fold_layer_norm=fold)
    surrogate = linear_surrogate(backbone.feed_forward(1), fold_layer_norm=fold)
    floor = torch.linalg.svdvals(surrogate)[-4:].norm()
    # Relative to the matrix: with norms folded the smallest singular value is exactly zero.
    assert ((basis.T @ surrogate).norm() - floor).abs() <= 1e-12 * surrogate.norm()


def test_a_rank_above_the_width(teacher):
    with pytest.raises(ValueError, match="above the teacher's width d=32"):
        initial_basis(vision_backbone(teacher), 0, 33)
