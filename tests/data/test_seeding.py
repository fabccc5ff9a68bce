import numpy as np
import torch

from singer_hf.data import sample_seed, seeded


def test_seed_is_fixed_for_all_time():
    assert sample_seed(0, 0, 0) == int.from_bytes(bytes.fromhex(BLAKE2B_OF_ZEROS), "little") >> 1


# b2sum --length=64 of the ASCII text "0,0,0"
BLAKE2B_OF_ZEROS = "3f3e1c8e57a282fe"


def test_seed_fits_int64_and_is_not_negative():
    seeds = torch.tensor([sample_seed(0, 0, index) for index in range(1000)])
    assert seeds.dtype == torch.int64 and (seeds >= 0).all() and seeds.max() > 2**62


def test_each_argument_changes_the_seed():
    seeds = {sample_seed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(5)}
    assert len(seeds) == 125


def test_numpy_and_torch_integers_give_the_seed_of_the_int():
    assert sample_seed(0, 1, np.int64(2)) == sample_seed(0, torch.tensor(1), 2) == sample_seed(0, 1, 2)


def test_seeded_repeats_and_restores_the_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)


def test_seeded_restores_the_generator_after_an_error():
    state = torch.get_rng_state()
    try:
        with seeded(7):
            torch.rand(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), state)
