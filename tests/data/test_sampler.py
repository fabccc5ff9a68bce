from itertools import zip_longest

import pytest
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader

from singer_hf.data import EpochSampler


def keys_of(loader) -> list[tuple[int, int]]:
    return [key for batch in loader for key in batch]


@pytest.fixture
def loader():
    """The dataset gives the key back, the collator the list of keys."""
    return DataLoader(_Echo(20), batch_size=4, sampler=EpochSampler(20, seed=1), collate_fn=list)


class _Echo:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return key


def test_every_index_comes_once_with_the_epoch():
    sampler = EpochSampler(10)
    sampler.set_epoch(2)
    assert sorted(sampler) == [(2, index) for index in range(10)]


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_without_shuffling_the_order_is_sequential():
    assert list(EpochSampler(3, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="num_samples = 0"):
        EpochSampler(0)


def test_prepared_loader_sets_the_epoch(loader):
    prepared = Accelerator(cpu=True).prepare(loader)
    prepared.set_epoch(3)
    assert {epoch for epoch, _ in keys_of(prepared)} == {3}


def test_prepared_loader_counts_epochs_by_itself(loader):
    prepared = Accelerator(cpu=True).prepare(loader)
    assert [{epoch for epoch, _ in keys_of(prepared)} for _ in range(2)] == [{0}, {1}]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_skipped_batches_leave_the_rest_of_the_same_epoch(loader, num_processes):
    prepared = prepare_data_loader(loader, num_processes=num_processes, process_index=0)
    prepared.set_epoch(3)
    whole = list(prepared)
    prepared.set_epoch(3)
    assert list(skip_first_batches(prepared, 1)) == whole[1:]
    assert whole[1][0][0] == 3


def test_two_processes_see_at_each_step_what_one_with_twice_the_batch_sees():
    def sampler():
        sampler = EpochSampler(24, seed=1)
        sampler.set_epoch(3)
        return sampler

    ranks = [
        BatchSamplerShard(BatchSampler(sampler(), 4, drop_last=False), num_processes=2, process_index=rank)
        for rank in range(2)
    ]
    one = BatchSampler(sampler(), 8, drop_last=False)
    steps = list(zip_longest(*ranks, one))
    assert len(steps) == 3
    for first, second, together in steps:
        assert first + second == together


def test_workers_get_the_epoch(loader):
    loader = DataLoader(
        loader.dataset, batch_size=4, sampler=loader.sampler, collate_fn=list, num_workers=2, persistent_workers=True
    )
    seen = []
    for epoch in (0, 5):
        loader.sampler.set_epoch(epoch)
        seen.append({epoch for epoch, _ in keys_of(loader)})
    assert seen == [{0}, {5}]
