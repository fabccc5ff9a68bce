"""Which features a task needs of which images, and the cache they are kept in."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from ..data import DistillationDataset
from .annotated import AnnotatedImages
from .cache import DEFAULT_CACHE, FeatureCache
from .features import CachedFeatures, cached_features
from .frozen import FrozenBackbone
from .splits import Split
from .targets import AnnotationError, class_mask, depth_map
from .task import Task
from .views import Views


class Extractor:
    """Features of a frozen backbone, out of the cache where they have been made before.

    Args:
        backbone: the model.
        cache_dir: folder of all caches.
        state: of the processes.
        batch_size: images of a forward pass.
        num_workers: processes that decode images; 0: none beside this one.
        progress: show a bar.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        *,
        cache_dir: str | Path = DEFAULT_CACHE,
        state: PartialState | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: bool = True,
    ):
        self.backbone, self.cache_dir, self.state = backbone, Path(cache_dir), state or PartialState()
        self.batch_size, self.num_workers, self.progress = batch_size, num_workers, progress
        self.images_extracted = 0
        """Views of images that had to go through the backbone so far, in all processes."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights."""
        return self.backbone.fingerprint()

    def pooled(self, split: Split, views: Views) -> CachedFeatures:
        """`pooled` (d,) of each image."""
        dataset = DistillationDataset(
            split.dataset, views.transform, image_column=split.image_column, seed=views.seed or 0
        )
        width = self.backbone.backbone.hidden_size
        return self.run(split, dataset, views, self._pooled, width * self.backbone.dtype.itemsize, feature="pooled")

    def tokens(self, split: Split, views: Views, task: Task) -> CachedFeatures:
        """`tokens` (n, d), `cls` (d,) where the model has one, and `target` (H, W) of each image."""
        dataset, options, target_bytes = annotated_images(split, views, task)
        (height, width), (rows, columns) = self.backbone.input_size, self.backbone.grid
        values = (rows * columns + 1) * self.backbone.backbone.hidden_size
        size = values * self.backbone.dtype.itemsize + height * width * target_bytes
        key = {"target_column": split.target_column, "kind": task.kind, "target": options}
        return self.run(split, dataset, views, self._tokens, size, feature="tokens", **key)

    def run(
        self, split: Split, dataset: Any, views: Views, extract: Any, bytes_per_image: int, **key: Any
    ) -> CachedFeatures:
        """Features that `extract` makes of the batches of `dataset`, the views of `split`; `key`: what else they
        depend on."""
        cache = FeatureCache(
            self.cache_dir,
            {
                "model": self.fingerprint,
                **self.backbone.description(),
                "data": split.fingerprint,
                "images": len(split.dataset),
                "image_column": split.image_column,
                "transform": repr(views.transform),
                "view_seed": views.seed,
                **key,
            },
        )
        features = cached_features(
            cache,
            dataset,
            views.count,
            extract,
            bytes_per_image,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            state=self.state,
            description=f"{split.name} images",
            progress=self.progress,
        )
        self.images_extracted += features.images_extracted
        return features

    def _pooled(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled": self.backbone.pooled(batch["pixel_values"]).cpu()}

    def _tokens(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix, patches = self.backbone.tokens(batch["pixel_values"])
        roles = self.backbone.backbone.prefix
        cls = {"cls": prefix[:, roles.index("cls")].cpu()} if "cls" in roles else {}
        return {"tokens": patches.cpu(), "target": batch["target"], **cls}


def annotated_images(split: Split, views: Views, task: Task) -> tuple[AnnotatedImages, dict[str, Any], int]:
    """Images of a dense task with their annotation, what the annotation depends on, and bytes of one of its pixels.

    Raises:
        MissingColumnError: no such column.
    """
    if task.kind == "segmentation":
        options = {
            "num_labels": task.num_labels,
            "ignore_label": task.ignore_label,
            "reduce_labels": task.reduce_labels,
        }
        read_target, pixel_bytes = partial(class_mask, **options), 2
    else:
        options = {"scale": task.depth_scale, "max_depth": task.max_depth}
        read_target, pixel_bytes = partial(depth_map, **options), 4
    dataset = AnnotatedImages(
        split.dataset,
        views.transform,
        image_column=split.image_column,
        target_column=split.target_column,
        read_target=read_target,
        seed=views.seed or 0,
    )
    return dataset, options, pixel_bytes


def check_annotations(images: AnnotatedImages, task: Task, what: str, samples: int = 8) -> None:
    """Looks at the whole column for missing annotations and at some images, before hours are spent on features.

    Raises:
        AnnotationError: an annotation that is missing or does not fit its image or task; depth maps without one valid
            pixel.
        CorruptImageError: an image that cannot be read.
    """
    column = images.dataset.select_columns([images.target_column]).with_format("arrow")[:][images.target_column]
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise AnnotationError(
            f"{what}: {column.null_count} of {len(column)} images have no annotation (column "
            f"{images.target_column!r}, the first is image {first}). Leave them out, e.g. by dataset.filter."
        )
    count = len(images)
    targets = [images[0, index * count // min(samples, count)]["target"] for index in range(min(samples, count))]
    if task.kind == "depth" and not any((target > 0).any() for target in targets):
        raise AnnotationError(
            f"{what}: not one pixel of {len(targets)} depth maps lies between 0 and {task.max_depth:g} m (depth_scale "
            f"= {task.depth_scale:g}). Check depth_scale, the metres of one stored unit."
        )
