"""Linear evaluation of one model on real images, and scikit-learn's logistic regression on the same cached features.

    python benchmarks/linear_eval_real_images.py MODEL --train "tiny-imagenet/train-*.parquet" \
        --test "tiny-imagenet/valid-*.parquet" --camvid camvid

Classification (images with labels) by the default protocol, with k-NN; then a logistic regression by L-BFGS on the
very features that were cached for it, standardised as ours are, its C chosen on the same held-out training images and
fitted again on all of them. Segmentation (CamVid's folder) by the default protocol. Writes one JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from singer_hf.evaluation import EvaluationResult, Extractor, FrozenBackbone, LinearEvaluator, Task, read_task
from singer_hf.evaluation.head_data import held_out_rows
from singer_hf.evaluation.prepare import prepare
from singer_hf.records.provenance import versions

CAMVID = Path(__file__).parents[1] / "examples" / "tasks" / "camvid.yaml"
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def logistic_regression(evaluator: LinearEvaluator, task: Task) -> dict[str, Any]:
    """Test accuracy of scikit-learn's logistic regression on the cached features, and how C was chosen."""
    start = time.perf_counter()
    protocol = evaluator.protocol_for("classification")
    prepared = prepare(evaluator.extractor, task, *evaluator.splits(task), protocol, evaluator.seed, with_plain=True)
    scaler = StandardScaler().fit(prepared.plain.features[0].numpy())
    features, test = (scaler.transform(part.features[0].numpy()) for part in (prepared.plain, prepared.test))
    labels, test_labels = prepared.labels.values, prepared.test.targets
    kept, held_out = held_out_rows(len(labels), protocol.validation_fraction, evaluator.seed, labels)
    validation = {}
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=1000).fit(features[kept], labels[kept])
        validation[penalty] = float(model.score(features[held_out], labels[held_out]))
    chosen = max(validation, key=validation.get)
    model = LogisticRegression(C=chosen, max_iter=1000).fit(features, labels)
    return {
        "top1_accuracy": float(model.score(test, test_labels)),
        "C": chosen,
        "validation": validation,
        "seconds": time.perf_counter() - start,
    }


def summary(result: EvaluationResult) -> dict[str, Any]:
    return {
        "scores": result.scores,
        "hyperparameters": result.hyperparameters,
        "splits": {name: split["images"] for name, split in result.task["splits"].items()},
        "seconds": result.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--train", required=True, help="training images with labels")
    parser.add_argument("--test", required=True, help="test images with labels")
    parser.add_argument("--camvid", help="folder of CamVid's parquet files")
    parser.add_argument("--segmentation_size", type=int, help="side of the input for CamVid; default: the processor's")
    parser.add_argument("--cache_dir", default="runs/linear_eval/cache")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/linear_eval_real_images.json"))
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    state = PartialState()

    def evaluator(image_size: int | None = None) -> LinearEvaluator:
        backbone = FrozenBackbone.load(args.model, device=state.device, image_size=image_size)
        extractor = Extractor(backbone, cache_dir=args.cache_dir, state=state, num_workers=os.cpu_count())
        return LinearEvaluator(backbone, extractor, output_dir=Path(args.cache_dir).parent / "results")

    task = Task("tiny-imagenet", "classification", args.train, test_dataset=args.test)
    classification = evaluator()
    result = classification.run(task)
    again = classification.run(task)
    other = logistic_regression(classification, task)
    record = {
        "classification": summary(result),
        "again_out_of_the_cache": summary(again),
        "scikit_learn": other,
        "points_of_difference": 100 * (result.value - other["top1_accuracy"]),
    }
    if args.camvid is not None:
        segmentation = read_task(CAMVID).with_options(dataset=args.camvid)
        record["segmentation"] = summary(evaluator(args.segmentation_size).run(segmentation))
    record |= {
        "model": {key: value for key, value in result.model.items() if key != "name"},
        "protocol": {key: value for key, value in result.protocol.items() if key != "selected"},
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: record[name] for name in ("scikit_learn", "points_of_difference")}, indent=2))


if __name__ == "__main__":
    main()
