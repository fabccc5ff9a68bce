"""A stream to train on: each image once an epoch, whoever decodes it, and from where a run was."""

import io
import itertools
import json
import tarfile
import time

import datasets
import pytest
from samples import image_dataset, jpegs
from torch.utils.data import DataLoader

from singer_hf.data import (
    CorruptImageError,
    DataSourceError,
    EmptyDatasetError,
    StreamingDistillationDataset,
    TrainingStream,
    eval_transform,
    load_images,
    train_transform,
)
from singer_hf.data.retry import Retries, reopening
from singer_hf.data.training_stream import Dealing, StreamLoader, StreamPosition

COUNT, BATCH = 24, 2


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    """datasets 5 sleeps 5 s behind each pass over several files, for threads of a program that is about to end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The same images as two parquet files and as two tar files."""
    folder = tmp_path_factory.mktemp("stream")
    cells = jpegs(COUNT)
    for number in range(2):
        half = cells[number * COUNT // 2 : (number + 1) * COUNT // 2]
        image_dataset(half).to_parquet(folder / f"{number}.parquet")
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for index, cell in enumerate(half):
                member = tarfile.TarInfo(f"{number}{index:03d}.jpg")
                member.size = len(cell)
                archive.addfile(member, io.BytesIO(cell))
    return {"parquet": str(folder / "*.parquet"), "tar": str(folder / "*.tar")}


def stream(path, *, process=0, processes=1, split="samples", batch=BATCH, buffer=8, seed=1, **options):
    kind = load_images(path, split="train", streaming=True) if isinstance(path, str) else path
    column = "image" if "image" in (kind.features or {"image": 0}) else "jpg"
    views = StreamingDistillationDataset(
        kind, train_transform(8), image_column=column, shuffle_buffer_size=buffer, seed=seed, **options
    )
    return TrainingStream(views, Dealing(batch, process, processes, split))


def loader_of(data, workers, position=None):
    if position is not None:
        data.resume(StreamPosition.from_json(json.loads(json.dumps(position.as_json()))), workers)
    return StreamLoader(DataLoader(data, batch_size=data.dealing.batch_size, num_workers=workers), lambda batch: batch)


def take(path, steps, *, workers, processes=1, positions=None, **options):
    """Sample seeds of each step of all processes together, and their positions."""
    found, reached = [[] for _ in range(steps)], []
    for process in range(processes):
        data = stream(path, process=process, processes=processes, **options)
        loader = loader_of(data, workers, None if positions is None else positions[process])
        for step, batch in enumerate(itertools.islice(loader, steps)):
            found[step] += batch["sample_seed"].tolist()
        reached.append(loader.position)
    return found, reached


def check_each_image_once(path, workers, processes):
    steps = COUNT // BATCH // processes
    stop = steps // 2 - 1
    whole, _ = take(path, 2 * steps, workers=workers, processes=processes)
    assert len(set(sum(whole[:steps], []))) == len(set(sum(whole[steps:], []))) == COUNT
    first, positions = take(path, stop, workers=workers, processes=processes)
    positions = [positions[0]] * processes  # process 0's is that of all
    rest, _ = take(path, 2 * steps - stop, workers=workers, processes=processes, positions=positions)
    assert first + rest == whole
    return sum(whole, [])


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_each_image_once_an_epoch_also_when_resumed_by_workers(source, kind):
    # Neither workers nor processes change the order.
    assert check_each_image_once(source[kind], 2, 1) == check_each_image_once(source[kind], 2, 2)


def test_files_dealt_out_are_seen_once_a_pass_and_resumed(source):
    options = {"workers": 1, "processes": 2, "split": "shards"}
    steps = COUNT // BATCH // 2
    whole, _ = take(source["parquet"], 2 * steps, **options)
    assert len(set(sum(whole[:steps], []))) == COUNT
    first, positions = take(source["parquet"], 5, **options)
    rest, _ = take(source["parquet"], 2 * steps - 5, positions=positions, **options)
    assert first + rest == whole
    with pytest.raises(DataSourceError, match=r"2 processes of 1 workers.*this run's to 2 of 3"):
        loader_of(stream(source["parquet"], processes=2, split="shards"), 3, positions[0])


@pytest.mark.parametrize("files, processes, workers", [(3, 2, 1), (2, 2, 3), (2, 1, 4)])
def test_files_that_cannot_be_dealt_out_evenly(files, processes, workers):
    data = image_dataset(jpegs(8)).to_iterable_dataset(files)
    with pytest.raises(DataSourceError, match=f"{files} files .* {processes * workers} readers.*stream_split=samples"):
        stream(data, processes=processes, split="shards").require_even_shares(workers)
    stream(data, processes=processes).require_even_shares(workers)
    with pytest.raises(DataSourceError, match="3 files"):
        next(iter(stream(image_dataset(jpegs(8)).to_iterable_dataset(3), processes=2, split="shards")))


def test_two_workers_take_turns_where_they_were(source):
    options = {"workers": 2, "split": "shards"}
    whole, _ = take(source["parquet"], 18, **options)
    first, positions = take(source["parquet"], 7, **options)
    rest, _ = take(source["parquet"], 11, positions=positions, **options)
    assert first + rest == whole


def test_samples_resume_with_other_processes_workers_and_batches(source):
    whole, _ = take(source["parquet"], 2 * COUNT // BATCH, workers=1)
    first, positions = take(source["parquet"], 3, workers=2, processes=2)
    rest, _ = take(source["parquet"], 9, workers=0, batch=4, positions=[positions[0]])
    assert sum(first, []) + sum(rest, []) == sum(whole, [])


def test_a_position_in_another_order_is_refused(source):
    _, (position,) = take(source["parquet"], 3, workers=0)
    for options, change in (({"buffer": 4}, "shuffle_buffer_size = 8, now 4"), ({"seed": 2}, "data_seed = 1, now 2")):
        with pytest.raises(DataSourceError, match=f"{change}.*ignore_data_skip"):
            loader_of(stream(source["parquet"], **options), 0, position)
    with pytest.raises(DataSourceError, match="number of files = 2, now 1"):
        loader_of(stream(source["parquet"].replace("*", "0")), 0, position)
    with pytest.raises(DataSourceError, match="hash of the first image"):
        loader_of(stream(image_dataset(jpegs(3)[1:]).to_iterable_dataset(2)), 0, position)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_each_image_once_an_epoch_also_when_resumed_without_workers(source, kind):
    assert check_each_image_once(source[kind], 0, 1) == check_each_image_once(source[kind], 0, 2)


def test_what_was_seen_is_not_decoded_again(source, monkeypatch):
    decoded = []
    _, positions = take(source["parquet"], 9, workers=0)
    data = stream(source["parquet"])
    item = data.views.item
    monkeypatch.setattr(data.views, "item", lambda *args: decoded.append(args) or item(*args))
    next(iter(loader_of(data, 0, positions[0])))
    assert len(decoded) == BATCH


def test_the_next_readable_image_stands_in(source):
    cells = jpegs(6)
    cells[2] = cells[3] = b"broken"
    data = stream(image_dataset(cells).to_iterable_dataset(), buffer=0, skip_corrupt_images=True)
    items = list(itertools.islice(data, 6))
    assert [item["corrupt"].item() for item in items] == [False, False, True, True, False, False]
    assert items[2]["sample_seed"] == items[3]["sample_seed"] == items[4]["sample_seed"]
    assert [item["position"].tolist() for item in items] == [[0, row] for row in range(6)]
    with pytest.raises(CorruptImageError, match="Image 2 of the stream"):
        list(itertools.islice(stream(image_dataset(cells).to_iterable_dataset(), buffer=0), 6))
    broken = stream(image_dataset([b"x"] * 3).to_iterable_dataset(), buffer=0, skip_corrupt_images=True)
    with pytest.raises(CorruptImageError, match="images in a row cannot be read"):
        next(iter(broken))


def test_a_stream_of_nothing_ends():
    with pytest.raises(EmptyDatasetError):
        next(iter(stream(image_dataset(jpegs(2)).to_iterable_dataset().take(0))))


# -- sources that fail ------------------------------------------------------------------------------------------------
def failing(times, error, log):
    """0 … 9, whose first `times` readings fail at 4."""

    def open_source():
        log.append("opened")
        for number in range(10):
            if number == 4 and len(log) <= times:
                raise error
            yield number

    return open_source


@pytest.mark.parametrize("timeout", [0, 5])
def test_a_source_that_comes_back_gives_all_once(timeout):
    log = []
    source = failing(3, ConnectionResetError("gone"), log)
    assert list(reopening(source, Retries(3, first_wait=0.001, timeout=timeout))) == list(range(10))
    assert len(log) == 4


def test_a_source_that_stays_away_is_a_clear_error():
    log = []
    with pytest.raises(DataSourceError, match=r"failed 3 times in a row.*TimeoutError: slow.*data_retries"):
        list(reopening(failing(99, TimeoutError("slow"), log), Retries(2, first_wait=0.001)))
    assert len(log) == 3
    for lasting in (FileNotFoundError("images.tar"), tarfile.ReadError("bad header")):
        with pytest.raises(DataSourceError, match="cannot be read"):
            list(reopening(failing(99, lasting, log), Retries(2, first_wait=0.001)))
    assert len(log) == 5


def test_a_stalled_source_is_opened_again():
    opened = []

    def open_source():
        opened.append(1)
        for number in range(4):
            if number == 2 and len(opened) == 1:
                time.sleep(60)
            yield number

    assert list(reopening(open_source, Retries(1, first_wait=0.001, timeout=0.2))) == [0, 1, 2, 3]
    assert len(opened) == 2


def test_what_is_read_again_may_take_longer_than_the_timeout():
    opened = []

    def open_source():
        opened.append(1)
        for number in range(40):
            time.sleep(0.02)
            if number == 30 and len(opened) == 1:
                raise ConnectionResetError("gone")
            yield number

    # 30 items take 0.6 s at least; each of them is an answer.
    assert list(reopening(open_source, Retries(1, first_wait=0.001, timeout=0.5))) == list(range(40))


def test_what_is_read_again_is_no_progress():
    opened = []

    def open_source():
        opened.append(1)
        for number in range(4):
            if number == 4 - len(opened):  # each time earlier
                raise ConnectionResetError("gone")
            yield number

    with pytest.raises(DataSourceError, match="failed 3 times in a row"):
        list(reopening(open_source, Retries(2, first_wait=0.001)))


def test_a_stream_reads_on_after_a_failure():
    cells, failures = jpegs(8), []

    def rows():
        for number, cell in enumerate(cells):
            if number == 5 and not failures:
                failures.append(number)
                raise ConnectionResetError("gone")
            yield {"image": cell}

    data = stream(datasets.IterableDataset.from_generator(rows), buffer=0)
    data.retries = Retries(1, first_wait=0.001)
    seeds = [item["sample_seed"].item() for item in itertools.islice(data, 8)]
    views = StreamingDistillationDataset(image_dataset(cells).to_iterable_dataset(), eval_transform(8), seed=1)
    assert failures and seeds == [item["sample_seed"].item() for item in views]
