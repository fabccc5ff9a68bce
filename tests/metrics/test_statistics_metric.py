"""What all metrics have in common."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

import datasets
import evaluate
import numpy as np
import pytest
import torch
from metric_inputs import COUNT, METRICS, inputs, run_process

every_metric = pytest.mark.parametrize("name", METRICS)


def same(result, expected):
    """Up to float32's rounding, which lists of Python numbers do not have."""

    def close(value):
        if isinstance(value, list):
            return [close(each) for each in value]
        return value if value is None else pytest.approx(value, rel=1e-6)

    return result == {key: close(value) for key, value in expected.items()}


@every_metric
def test_pieces_are_the_whole(name):
    predictions, references = inputs(name)
    expected = METRICS[name]().compute(predictions=predictions, references=references)
    metric = METRICS[name]()
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add(prediction=predictions[3], reference=references[3])
    metric.add_batch(predictions=predictions[:0], references=references[:0])
    metric.add_batch(predictions=list(predictions[4:7].numpy()), references=list(references[4:7].numpy()))
    metric.add_batch(predictions=predictions[7:9].tolist(), references=references[7:9].tolist())
    assert len(metric) == 9
    assert same(metric.compute(predictions=list(predictions[9:]), references=references[9:]), expected)


@every_metric
def test_a_result_forgets_its_samples(name):
    metric, other = METRICS[name](), METRICS[name]()
    first, second = inputs(name), inputs(name, seed=1)
    result = metric.compute(predictions=first[0], references=first[1])
    again = metric.compute(predictions=second[0], references=second[1])
    assert again != result
    assert again == other.compute(predictions=second[0], references=second[1])


@every_metric
def test_more_samples_change_the_result(name):
    """So that equal results of other tests are none of the first batch alone."""
    predictions, references = inputs(name)
    part = METRICS[name]().compute(predictions=predictions[:6], references=references[:6])
    assert not same(part, METRICS[name]().compute(predictions=predictions, references=references))


def test_two_processes(tmp_path):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        other = pool.submit(run_process, 1, str(tmp_path))
        main = run_process(0, str(tmp_path))
        other = other.result()
    assert main.keys() == {(name, seed) for name in METRICS for seed in (0, 1)}
    assert other == dict.fromkeys(main)
    for (name, seed), result in main.items():
        predictions, references = inputs(name, seed)
        assert same(result, METRICS[name]().compute(predictions=predictions, references=references)), name
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@contextmanager
def process_1(name, cache_dir, *rounds):
    """Process 1 of two, in a thread, which adds each round's batch as soon as the round before is over for it."""

    def run():
        metric = METRICS[name](num_process=2, process_id=1, experiment_id="test", cache_dir=cache_dir, timeout=100)
        return [metric.compute(predictions=predictions, references=references) for predictions, references in rounds]

    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(run)
        yield METRICS[name](num_process=2, process_id=0, experiment_id="test", cache_dir=cache_dir, timeout=100)
        assert results.result() == [None] * len(rounds)


def test_a_process_that_is_ahead_overwrites_nothing(tmp_path):
    rounds = [inputs("mean_iou", seed) for seed in range(2)]
    with process_1("mean_iou", str(tmp_path), *rounds) as metric:
        for predictions, references in rounds:
            metric.add_batch(predictions=predictions[:2], references=references[:2])
            time.sleep(0.5)  # process 1 is in the next round
            expected = METRICS["mean_iou"]().compute(
                predictions=[*predictions[:2], *predictions], references=[*references[:2], *references]
            )
            assert same(metric.compute(), expected)


def test_a_failed_round_of_two_processes(tmp_path):
    predictions, references = inputs("linear_cka")
    constant = torch.ones_like(predictions)
    with process_1("linear_cka", str(tmp_path), (constant, references), (predictions, references)) as metric:
        with pytest.raises(ValueError, match="in x are the same for every sample"):
            metric.compute(predictions=constant, references=references)
        twice = METRICS["linear_cka"]().compute(predictions=[*predictions] * 2, references=[*references] * 2)
        assert same(metric.compute(predictions=predictions, references=references), twice)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_several_processes_need_an_experiment():
    with pytest.raises(ValueError, match="2 processes needs an experiment_id"):
        METRICS["gram_distance"](num_process=2, process_id=1)


@every_metric
def test_one_process_leaves_no_files(name, cache):
    predictions, references = inputs(name)
    METRICS[name]().compute(predictions=predictions, references=references)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@every_metric
def test_files_in_place_of_memory(name, tmp_path):
    predictions, references = inputs(name)
    expected = METRICS[name]().compute(predictions=predictions, references=references)
    metric = METRICS[name](keep_in_memory=False, cache_dir=str(tmp_path))
    assert metric.compute(predictions=predictions, references=references) == expected
    assert not list(tmp_path.rglob("*.arrow"))


class Count(evaluate.Metric):
    """A metric that is none of ours."""

    def _info(self):
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions, references):
        return {"count": len(references)}


def test_combine():
    scores, labels = inputs("top_k_accuracy")
    expected = METRICS["top_k_accuracy"]().compute(predictions=scores, references=labels)
    combined = evaluate.combine([METRICS["top_k_accuracy"](), Count(keep_in_memory=True)])
    combined.add(prediction=scores[0], reference=labels[0])
    combined.add_batch(predictions=scores[1:], references=labels[1:])
    assert combined.compute() == expected | {"count": COUNT}
    assert combined.compute(predictions=scores, references=labels) == expected | {"count": COUNT}


def test_combined_scores_of_one_name_are_prefixed():
    maps = inputs("mean_iou")
    combined = evaluate.combine([METRICS["mean_iou"](), METRICS["mean_iou"]()])
    result = combined.compute(predictions=maps[0], references=maps[1])
    assert result["mean_iou_0_mean_iou"] == result["mean_iou_1_mean_iou"]


@every_metric
def test_information(name):
    metric = METRICS[name]()
    assert metric.name == name
    assert metric.module_type == "metric"
    assert all(len(text.strip()) > 60 for text in (metric.description, metric.citation, metric.inputs_description))
    predictions, references = inputs(name)
    for key in metric.compute(predictions=predictions, references=references):
        assert key in metric.inputs_description.replace("{k}", "1").replace("top1", key[:4])
    assert "references:" in metric.compute.__doc__


@every_metric
def test_bad_calls(name):
    predictions, references = inputs(name)
    metric = METRICS[name]()
    with pytest.raises(ValueError, match="nothing was added"):
        metric.compute()
    with pytest.raises(ValueError, match="needs both predictions and references"):
        metric.compute(predictions=predictions)
    with pytest.raises(ValueError, match="Got 11 predictions and 10 references"):
        metric.add_batch(predictions=predictions, references=references[1:])
    with pytest.raises(ValueError, match="needs a prediction and a reference"):
        metric.add(prediction=predictions[0])
    with pytest.raises(ValueError, match=r"Unknown inputs of .*: \['scores'\]"):
        metric.add(prediction=predictions[0], reference=references[0], scores=1)
    with pytest.raises(TypeError, match="normalise"):
        METRICS[name](normalise=True)
    assert len(metric) == 0
    metric.compute(predictions=predictions, references=references)  # still works


@pytest.mark.parametrize("name", ["mean_iou", "depth_error", "gram_distance"])
def test_samples_of_different_sizes(name):
    (predictions, references), (more, more_references) = inputs(name), inputs(name, seed=1)
    cut = [values[:, :5] for values in (more, more_references)]
    if name != "gram_distance":
        cut = [values[:, :, :3] for values in cut]
    metric = METRICS[name]()
    metric.add_batch(predictions=predictions, references=references)
    metric.add_batch(predictions=cut[0], references=cut[1])
    together = METRICS[name]().compute(
        predictions=[*predictions, *cut[0]], references=[*references.numpy(), *np.asarray(cut[1])]
    )
    assert same(together, metric.compute())
