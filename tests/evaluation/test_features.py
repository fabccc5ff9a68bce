import shutil

import pytest
import torch
from accelerate import PartialState
from torch._utils import ExceptionWrapper
from torch.utils.data import Dataset

from singer_hf.data import CorruptImageError
from singer_hf.evaluation import CacheError, FeatureCache
from singer_hf.evaluation import features as features_module
from singer_hf.evaluation.features import CachedFeatures, cached_features

VIEWS, COUNT = 2, 23


class Numbered(Dataset):
    """Item (view, index) -> pixels that say which image and view they are of; counts what is asked for."""

    def __init__(self, count: int = COUNT):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        self.asked.append(key)
        view, index = key
        return {"pixel_values": torch.full((3, 2, 2), 100.0 * view + index)}


class OneUnreadable(Numbered):
    """Fails as torch reports it out of a worker (real workers take seconds to end after an error)."""

    def __init__(self, in_worker: bool):
        super().__init__()
        self.in_worker = in_worker

    def __getitem__(self, key):
        if key[1] != 9:
            return super().__getitem__(key)
        try:
            raise CorruptImageError("Image 9: cannot be read: half of it")
        except CorruptImageError:
            if self.in_worker:
                ExceptionWrapper(where="in DataLoader worker process 0").reraise()
            raise


class Extract:
    """A feature that depends on the other images of its batch, as a GPU's rounding does; records batch sizes."""

    def __init__(self):
        self.sizes = []

    def __call__(self, batch):
        pixels = batch["pixel_values"]
        self.sizes.append(len(pixels))
        value = pixels[:, 0, 0, 0]
        return {"x": torch.stack([value, value - value.mean()], dim=1), "y": value.to(torch.int16)}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_IMAGES", 7)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path, {"test": 1})


def run(cache, *, dataset=None, extract=None, views=VIEWS, batch_size=4, bytes_per_image=10, workers=0):
    return cached_features(
        cache,
        Numbered() if dataset is None else dataset,
        views,
        Extract() if extract is None else extract,
        bytes_per_image,
        batch_size=batch_size,
        num_workers=workers,
        state=PartialState(),
        description="test",
        progress=False,
    )


def assert_same(found: CachedFeatures, expected: CachedFeatures):
    for name in ("x", "y"):
        assert torch.equal(found.all(name), expected.all(name))


def test_every_image_is_extracted_once_in_every_view(cache):
    dataset = Numbered()
    found = run(cache, dataset=dataset)
    assert sorted(dataset.asked) == [(view, index) for view in range(VIEWS) for index in range(COUNT)]
    assert (found.num_views, found.num_images, found.images_extracted) == (VIEWS, COUNT, VIEWS * COUNT)
    expected = torch.stack([100 * view + torch.arange(COUNT) for view in range(VIEWS)])
    assert torch.equal(found.all("x")[..., 0].long(), expected)
    assert torch.equal(found.all("y").long(), expected)


def test_the_second_time_nothing_is_extracted_and_the_features_are_equal(cache):
    first, dataset, extract = run(cache), Numbered(), Extract()
    again = run(FeatureCache(cache.folder.parent, {"test": 1}), dataset=dataset, extract=extract)
    assert dataset.asked == extract.sizes == [] and again.images_extracted == 0
    assert_same(again, first)


def test_a_batch_never_crosses_the_border_of_a_shard(cache):
    extract = Extract()
    found = run(cache, extract=extract)
    assert extract.sizes == VIEWS * [4, 3, 4, 3, 4, 3, 2]  # shards of 7, 7, 7, 2
    assert [len(shard["x"]) for shard in found.shards[0]] == [7, 7, 7, 2]


@pytest.mark.parametrize("count", [1, 6, 7, 8, 14])
def test_counts_around_the_size_of_a_shard(cache, count):
    found = run(cache, dataset=Numbered(count), views=1)
    assert found.all("y").tolist() == [list(range(count))]
    assert run(cache, dataset=Numbered(count), views=1).images_extracted == 0


def test_a_shard_of_large_features_holds_fewer_images(cache, monkeypatch):
    monkeypatch.setattr(features_module, "SHARD_BYTES", 100)
    assert run(cache, bytes_per_image=30).shard_images == 3
    assert run(FeatureCache(cache.folder, {"test": 2}), bytes_per_image=1000, views=1).shard_images == 1


@pytest.mark.parametrize("lost", [[(0, 0)], [(0, 3), (1, 1)], [(1, 3)], [(0, 1), (0, 2), (1, 0)]])
@pytest.mark.parametrize("how", ["removed", "cut", "changed"])
def test_only_what_is_missing_or_damaged_is_made_again_and_comes_out_the_same(cache, lost, how):
    first, sizes = run(cache), [7, 7, 7, 2]
    expected = {name: first.all(name) for name in ("x", "y")}
    kept = {path: path.stat().st_mtime_ns for path in cache.folder.iterdir()}
    for view, shard in lost:
        path = cache.path(view, range(7 * shard, 7 * shard + sizes[shard]))
        content = bytearray(path.read_bytes())
        path.unlink()
        del kept[path]
        if how == "cut":
            path.write_bytes(content[:-1])
        elif how == "changed":
            content[-1] ^= 1
            path.write_bytes(content)
    dataset = Numbered()
    again = run(cache, dataset=dataset)
    images = [(view, 7 * shard + i) for view, shard in lost for i in range(sizes[shard])]
    assert sorted(dataset.asked) == sorted(images) and again.images_extracted == len(images)
    assert all(torch.equal(again.all(name), tensor) for name, tensor in expected.items())
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_further_views_leave_those_that_are_there(cache):
    run(cache, views=1)
    dataset = Numbered()
    assert run(cache, dataset=dataset, views=3).images_extracted == 2 * COUNT
    assert {view for view, _ in dataset.asked} == {1, 2}


def test_workers_give_the_same_features(cache, tmp_path):
    assert_same(run(FeatureCache(tmp_path, {"test": 2}), workers=2), run(cache))


@pytest.mark.parametrize("in_worker", [False, True])
def test_what_is_wrong_with_an_image_is_said_without_a_workers_traceback(cache, in_worker):
    with pytest.raises(CorruptImageError) as raised:
        run(cache, dataset=OneUnreadable(in_worker))
    assert str(raised.value) == "Image 9: cannot be read: half of it"


def test_a_run_that_was_killed_keeps_the_shards_it_finished(cache):
    class Killed(Extract):
        def __call__(self, batch):
            if len(self.sizes) == 5:  # in the third shard
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        run(cache, extract=Killed())
    assert run(cache).images_extracted == VIEWS * COUNT - 14


def test_space_for_what_is_missing_is_asked_for_before_anything_is_extracted(cache, monkeypatch):
    asked, extract = [], Extract()

    def refuse(size):
        asked.append(size)
        raise CacheError("full")

    monkeypatch.setattr(cache, "require_space", refuse)
    with pytest.raises(CacheError):
        run(cache, extract=extract, bytes_per_image=10)
    assert extract.sizes == [] and VIEWS * COUNT * 10 <= asked[0] <= 2 * VIEWS * COUNT * 10


def test_a_folder_that_other_processes_do_not_see_is_one_clear_message(cache, monkeypatch):
    run(cache)
    monkeypatch.setattr(cache, "read", lambda view, shard, verify=True: {} if verify else None)
    with pytest.raises(CacheError, match="Process 0 does not find .*view000-images0000000.*cache_dir"):
        run(cache)


def test_the_result_survives_a_cache_that_was_moved_away(cache, tmp_path):
    """Shards are mapped: those that are open stay readable when files are replaced or removed."""
    found = run(cache)
    expected = found.all("x")
    shutil.rmtree(cache.folder)
    assert torch.equal(found.all("x"), expected)


def test_rows_are_those_of_all(cache):
    found = run(cache)
    images, views = torch.tensor([22, 0, 7, 6, 7, 13, 14]), torch.tensor([1, 0, 0, 1, 1, 0, 1])
    assert torch.equal(found.rows("x", images, views), found.all("x")[views, images])
    assert torch.equal(found.rows("y", images), found.all("y")[0, images])


def test_shards_of_another_size_are_not_used(cache, monkeypatch):
    expected, images = run(cache).all("y"), torch.arange(COUNT)
    monkeypatch.setattr(features_module, "SHARD_IMAGES", 5)
    found = run(cache)
    assert torch.equal(found.rows("y", images), expected[0])
