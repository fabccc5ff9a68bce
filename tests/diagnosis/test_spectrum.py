import pytest
import torch
from families import tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis.spectrum import (
    effective_nullity,
    left_singular_vectors,
    null_energy,
    stable_rank,
    surrogate_spectrum,
)
from singer_hf.nullspace import left_nullspace, linear_surrogate


def test_the_last_left_vectors_are_the_null_basis_and_the_first_is_amplified_most():
    backbone = vision_backbone(tiny_vit())
    spectrum = surrogate_spectrum(backbone, 1)
    surrogate = linear_surrogate(backbone.feed_forward(1))
    null = left_nullspace(surrogate, 5)
    last = left_singular_vectors(backbone, 1)[:, -5:]
    assert torch.allclose(null @ null.T, last @ last.T, atol=1e-9)
    passed = spectrum.leading_input @ surrogate
    assert passed.norm().item() == pytest.approx(spectrum.values[0].item(), rel=1e-9)
    assert torch.allclose(passed / passed.norm(), spectrum.leading_output)


def test_nullity_counts_exact_zeros_and_obeys_its_definition():
    values = torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 1e-9, 0.0])
    assert effective_nullity(values) == 2
    nullity = effective_nullity(values, energy=0.05)
    assert null_energy(values, nullity) <= 0.05 < null_energy(values, nullity + 1)


def test_one_massive_direction_does_not_make_the_others_null():
    values = torch.linalg.svdvals(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    massive = values.clone()
    massive[0] *= 1000
    assert effective_nullity(massive) == effective_nullity(values)


def test_a_random_surrogate_of_vit_large_allows_about_the_papers_rank():
    generator = torch.Generator().manual_seed(0)
    width = 256  # a quarter of ViT-L's: the share does not depend on it
    surrogate = torch.randn(width, 4 * width, generator=generator) @ torch.randn(4 * width, width, generator=generator)
    assert effective_nullity(torch.linalg.svdvals(surrogate)) == pytest.approx(width / 16, abs=4)


def test_stable_rank_of_an_orthogonal_and_of_a_rank_one_matrix():
    assert stable_rank(torch.ones(8)) == pytest.approx(8)
    assert stable_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
