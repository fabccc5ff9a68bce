"""The paper's classification protocol with cached views against running the backbone anew in every epoch.

    python benchmarks/linear_eval_speed.py MODEL "tiny-imagenet/train-*.parquet" "tiny-imagenet/valid-*.parquet"

Both ways train one linear layer for 150 epochs on augmented images and take the best epoch on the test images:

    cached   singer_hf.evaluation: K augmented views of each training image and the test images go through the
             backbone once, then the head is trained on cached features, epochs taking turns with the views
    rerun    the plain loop: in every epoch the backbone sees a fresh view of each training image, and after it the
             test images, as the choice of the epoch asks for

Wall times are taken in turns in one process and reported as medians: the cached way whole, the other for a few epochs,
from which 150 are computed (`rerun_seconds` is that estimate). `ratio` is rerun over cached; `ratio_training_passes`
leaves the test images out of both, as if their features were kept in the plain loop too. With `--full` the plain loop
also runs to its end once, for its accuracy (its test features are then kept, which changes no number).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from datasets import ClassLabel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from singer_hf.data import DistillationDataset, EpochSampler, find_label_column, load_images
from singer_hf.evaluation import Extractor, FrozenBackbone, LinearEvaluator, Task
from singer_hf.evaluation.labels import read_split_labels
from singer_hf.evaluation.views import image_views
from singer_hf.records.provenance import versions


class PlainLoop:
    """Linear evaluation as one would write it: the backbone in the training loop."""

    def __init__(self, backbone: FrozenBackbone, evaluator: LinearEvaluator, task: Task, workers: int):
        self.backbone, self.seed = backbone, evaluator.seed
        self.protocol = evaluator.protocol_for("classification")
        train, test = evaluator.splits(task)
        labels, self.test_labels = read_split_labels(task, train, test)
        self.labels, self.num_labels = labels.values, len(labels.names)

        def images(split, augmented: bool) -> DistillationDataset:
            views = image_views(backbone.input_size, self.protocol, augmented=augmented, seed=self.seed)
            return DistillationDataset(
                split.dataset,
                views.transform,
                image_column=split.image_column,
                label_column=train.target_column or "label",
                seed=self.seed,
            )

        self.sampler = EpochSampler(len(train.dataset), seed=self.seed)
        self.train_loader = DataLoader(
            images(train, True), self.protocol.batch_size, sampler=self.sampler, num_workers=workers
        )
        self.test_loader = DataLoader(images(test, False), 256, num_workers=workers)

    def start(self) -> None:
        self.head = nn.Linear(self.backbone.backbone.hidden_size, self.num_labels).to(self.backbone.device)
        self.optimizer = torch.optim.SGD(
            self.head.parameters(), self.protocol.learning_rates[0], weight_decay=self.protocol.weight_decays[0]
        )
        steps = self.protocol.epochs[0] * len(self.train_loader)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def train_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)
        for batch in self.train_loader:
            features = self.backbone.pooled(batch["pixel_values"]).clone()  # out of inference mode
            loss = F.cross_entropy(self.head(features), batch["labels"].to(features.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()

    def test_features(self) -> Tensor:
        return torch.cat([self.backbone.pooled(batch["pixel_values"]) for batch in self.test_loader])

    @torch.no_grad()
    def accuracy(self, features: Tensor) -> float:
        return (self.head(features.clone()).argmax(dim=1).cpu() == self.test_labels.values).float().mean().item()


SPLITS = ("train", "test")


def classes_of(source: str, classes: int | None, path: Path) -> str:
    """The images of the first classes, as a parquet file."""
    if classes is None:
        return source
    images = load_images(source, split="train")
    column = find_label_column(images)
    names = images.features[column].names[:classes]
    images = images.filter(lambda label: label < classes, input_columns=column)
    images.cast_column(column, ClassLabel(names=names)).to_parquet(path)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("train", help="training images with labels")
    parser.add_argument("test", help="test images with labels")
    parser.add_argument("--classes", type=int, help="take only the images of the first classes")
    parser.add_argument("--train_images", type=int, default=4_000)
    parser.add_argument("--test_images", type=int, default=1_000)
    parser.add_argument("--views", type=int, default=4, help="K of the cached way")
    parser.add_argument("--other_views", type=int, nargs="*", default=[1, 2, 8], help="more K, for accuracy alone")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--learning_rate", type=float, default=0.5)
    parser.add_argument("--timed_epochs", type=int, default=1, help="of the plain loop, in each repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of the cached way's accuracy")
    parser.add_argument("--full", action="store_true", help="run the plain loop to its end for its accuracy")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that decode images")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, beside the workers")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/linear_eval_speed.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    state = PartialState()
    backbone = FrozenBackbone.load(args.model, device=state.device)
    data = tempfile.TemporaryDirectory()
    files = {
        name: classes_of(getattr(args, name), args.classes, Path(data.name, f"{name}.parquet")) for name in SPLITS
    }
    task = Task("speed", "classification", files["train"], test_dataset=files["test"], test_split="test")

    def evaluator(folder: str, views: int, seed: int = 0) -> LinearEvaluator:
        return LinearEvaluator(
            backbone,
            Extractor(backbone, cache_dir=folder, state=state, num_workers=args.workers, progress=False),
            protocol="paper",
            options={"views": views, "epochs": (args.epochs,), "learning_rates": (args.learning_rate,)},
            output_dir=Path(folder, "results"),
            seed=seed,
            knn_neighbors=0,
            max_train_images=args.train_images,
            max_test_images=args.test_images,
        )

    cached, train_epochs, test_passes, accuracies = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        loop = PlainLoop(backbone, evaluator(folder, args.views), task, args.workers)
        loop.start()
        for repetition in range(args.repetitions):
            start = time.perf_counter()
            result = evaluator(str(Path(folder, f"{repetition}")), args.views).run(task)
            cached.append(time.perf_counter() - start)
            for _ in range(args.timed_epochs):
                start = time.perf_counter()
                loop.train_epoch(0)
                train_epochs.append(time.perf_counter() - start)
                start = time.perf_counter()
                features = loop.test_features()
                loop.accuracy(features)
                test_passes.append(time.perf_counter() - start)
            print(f"cached {cached[-1]:.1f} s, plain epoch {train_epochs[-1]:.1f} s + {test_passes[-1]:.1f} s test")
        by_views = {}
        for views in sorted({args.views, *args.other_views}):
            found = [evaluator(str(Path(folder, "0")), views, seed).run(task) for seed in range(args.seeds)]
            scores = [result.value for result in found]
            if views == args.views:
                last_epochs = [result.protocol["selected"]["last_epoch_score"] for result in found]
            by_views[views] = {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores), "scores": scores}
            print(f"K = {views}: {by_views[views]}")
        if args.full:
            torch.manual_seed(0)
            loop.start()
            for epoch in range(args.epochs):
                loop.train_epoch(epoch)
                accuracies.append(loop.accuracy(features))
                print(f"plain epoch {epoch}: {accuracies[-1]:.4f}", flush=True)

    ours, train_epoch, test_pass = map(statistics.median, (cached, train_epochs, test_passes))
    rerun = args.epochs * (train_epoch + test_pass)
    accuracy = by_views[args.views]["mean"]
    record = {
        "ratio": rerun / ours,
        "ratio_training_passes": (args.epochs * train_epoch + test_pass) / ours,
        "cached_seconds": ours,
        "rerun_seconds": rerun,
        "rerun_is_scaled_from_epochs": args.repetitions * args.timed_epochs,
        "accuracy_ours": accuracy,
        "accuracy_rerun": max(accuracies) if accuracies else None,
        "accuracy_ours_by_views": by_views,
        "accuracy_rerun_last_epoch": accuracies[-1] if accuracies else None,
        "accuracy_ours_last_epoch": statistics.fmean(last_epochs),
        "standard_error_of_an_accuracy": (accuracy * (1 - accuracy) / len(loop.test_labels.values)) ** 0.5,
        "seconds_of": {"cached": cached, "plain_epoch": train_epochs, "test_pass": test_passes},
        "model": {key: result.model[key] for key in ("parameters", "input_size", "layer", "pooling", "precision")},
        "train_images": len(loop.labels),
        "test_images": len(loop.test_labels.values),
        "classes": loop.num_labels,
        "protocol": {key: value for key, value in result.protocol.items() if key != "selected"},
        "options": {key: getattr(args, key) for key in ("views", "epochs", "workers", "repetitions", "timed_epochs")},
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if state.device.type == "cuda" else "cpu",
        "versions": versions(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: record[key] for key in list(record)[:8]}, indent=2))


if __name__ == "__main__":
    main()
