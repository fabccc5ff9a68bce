"""Every metric with inputs, and a process that is one of two."""

import torch

from singer_hf.metrics import DepthError, GramDistance, LinearCKA, MeanIoU, TopKAccuracy

COUNT = 11
METRICS = {
    "top_k_accuracy": lambda **options: TopKAccuracy(k=(1, 3), **options),
    "mean_iou": lambda **options: MeanIoU(5, **options),
    "depth_error": lambda **options: DepthError(max_depth=10, **options),
    "gram_distance": GramDistance,
    "linear_cka": LinearCKA,
}


def inputs(name, seed=0):
    """Predictions and references of COUNT samples, each one tensor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(COUNT, *shape, generator=generator)

    if name == "top_k_accuracy":
        return normal(7), torch.randint(0, 7, (COUNT,), generator=generator)
    if name == "mean_iou":
        reference = torch.randint(0, 5, (COUNT, 6, 8), generator=generator)
        prediction = torch.where(normal(6, 8) > 0, reference, 2)
        reference[:, 0] = 255
        return prediction, reference
    if name == "depth_error":
        reference = 1 + normal(6, 8).abs() * 5
        reference[0] = 0
        return reference * (1 + 0.3 * normal(6, 8)), reference
    if name == "gram_distance":
        return normal(9, 4), normal(9, 6)
    return normal(4), normal(6)


def run_process(process_id, cache_dir):
    """The results of each metric and of two rounds, in process `process_id` of two: in the first it has 4 or 7 of
    the samples, in two batches; in the second, process 1 has none."""
    results = {}
    for name, metric_class in METRICS.items():
        metric = metric_class(
            num_process=2, process_id=process_id, experiment_id="test", cache_dir=cache_dir, timeout=300
        )
        for seed, share in enumerate((slice(4), slice(COUNT)) if process_id == 0 else (slice(4, None), slice(0))):
            predictions, references = (values[share] for values in inputs(name, seed))
            for part in (slice(2), slice(2, None)):
                if len(predictions[part]):
                    metric.add_batch(predictions=predictions[part], references=references[part])
            results[name, seed] = metric.compute()
    return results
