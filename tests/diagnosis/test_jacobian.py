import pytest
import torch
from artifact_models import pixels
from families import FAMILIES, tiny_model, tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis.jacobian import jacobian_nullspace, jacobian_products, mean_outer_product, token_jacobians


def block_input(model, count=3, layer=0):
    backbone = vision_backbone(model)
    with torch.no_grad():
        features = backbone.features(pixels(count).to(next(model.parameters()).dtype), [layer])
    return backbone, features.hidden[layer], features.block_inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_jacobians_are_finite_differences_of_the_real_block(family):
    model = tiny_model(family).eval().double()
    for parameter in model.parameters():  # LayerScales of 1e-5 would leave nothing to compare
        parameter.data += 0.05 * torch.randn_like(parameter)
    backbone, hidden, inputs = block_input(model)
    tokens = torch.tensor([hidden.shape[1] - 1, hidden.shape[1] - 4, hidden.shape[1] - 9])
    jacobian = token_jacobians(backbone, 1, hidden, tokens, inputs)
    direction, step = torch.randn(3, 32, dtype=torch.float64), 1e-5
    rows = torch.arange(3)

    def update(size):
        moved = hidden.clone()
        moved[rows, tokens] += size * direction
        with torch.no_grad():
            return (backbone.run_block(1, moved, inputs) - moved)[rows, tokens]

    expected = (update(step) - update(-step)) / (2 * step)
    assert torch.allclose(torch.einsum("bj,bjk->bk", direction, jacobian), expected, atol=1e-6, rtol=1e-4)


def test_products_are_those_of_the_exact_jacobian():
    model = tiny_vit().eval().double()
    backbone, hidden, inputs = block_input(model)
    tokens, directions = torch.tensor([2, 5, 16]), torch.randn(3, 32, dtype=torch.float64)
    jacobian = token_jacobians(backbone, 1, hidden, tokens, inputs)
    products = jacobian_products(backbone, 1, hidden, tokens, directions, inputs)
    assert torch.allclose(products, torch.einsum("bjk,bk->bj", jacobian, directions), atol=1e-9)


def test_the_random_way_comes_to_the_exact_one():
    model = tiny_vit(initializer_range=0.2).eval()
    backbone, hidden, inputs = block_input(model, count=16)
    exact = mean_outer_product(backbone, 1, hidden, inputs, tokens_per_image=8)
    estimate = mean_outer_product(backbone, 1, hidden, inputs, exact_up_to=0, products_per_width=200)
    assert (exact - estimate).norm() / exact.norm() < 0.1
    basis = jacobian_nullspace(estimate, 8)
    random = torch.linalg.qr(torch.randn(32, 8, dtype=torch.float64))[0]

    def passed(directions):
        return torch.einsum("jr,jk,kr->", directions, exact, directions).item()

    best = torch.linalg.eigvalsh(exact)[:8].sum().item()
    assert passed(jacobian_nullspace(exact, 8)) == pytest.approx(best, rel=1e-6)
    assert passed(basis) < 1.3 * best < passed(random)


def test_a_rank_out_of_range():
    with pytest.raises(ValueError, match="rank r=5 must lie between 1 and the width d=4"):
        jacobian_nullspace(torch.eye(4), 5)
