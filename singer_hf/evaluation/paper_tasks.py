"""The tasks of the paper's Table 1.

Hub ids, splits and columns are from the sets' cards and from code that uses them; none of them is a script, so that
`datasets` 4 and later load them. Where the released code reports another split than the set's test split, the paper's
protocol does too (`paper_test_split`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from .task import GROUPS, LABEL_MAPS, Task, register_task


@cache
def imagenet_wnids() -> Mapping[str, int]:
    """WordNet id -> index of the 1,000 classes, from timm."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise ImportError("ImageNet-R's classes come with timm: pip install singer_hf[timm]") from error
    return {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


@cache
def imagenet_r_wnids() -> Mapping[str, int]:
    """WordNet ids of ImageNet-R's 200 classes -> index among ImageNet's 1,000."""
    index = imagenet_wnids()
    text = (files("timm.data") / "_info" / "imagenet_r_synsets.txt").read_text(encoding="utf-8")
    return {wnid: index[wnid] for wnid in text.split()}


LABEL_MAPS["imagenet_r"] = imagenet_r_wnids

register_task(
    Task(
        "imagenet-1k",
        "classification",
        "ILSVRC/imagenet-1k",
        test_split="validation",
        num_labels=1000,
        target_column="label",
        num_images=(1_281_167, 50_000),
        resolution=224,
        paper_column="in_val",
        description="ImageNet-1k, 1,281,167 / 50,000 images; gated.",
    )
)
register_task(
    Task(
        "imagenet-r",
        "classification",
        "axiong/imagenet-r",
        train_split=None,
        target_column="wnid",
        label_map="imagenet_r",
        head_of="imagenet-1k",
        num_images=(None, 30_000),
        resolution=224,
        paper_column="ds",
        description="ImageNet-R, 30,000 renditions of 200 of ImageNet's classes (Hendrycks et al. 2021).",
    )
)
register_task(
    Task(
        "imagenet-v2",
        "classification",
        "clip-benchmark/wds_imagenetv2",
        train_split=None,
        target_column="cls",
        head_of="imagenet-1k",
        num_images=(None, 10_000),
        resolution=224,
        paper_column="ds",
        description="ImageNet-v2 matched-frequency, 10,000 images (Recht et al. 2019).",
    )
)
register_task(
    Task(
        "inat2019",
        "classification",
        None,
        test_split=None,
        num_labels=1010,
        resolution=224,
        paper_column="inat",
        description="iNaturalist 2019; no Hub set is known: give its folder {supercategory}/{category}/*.jpg. A "
        "random fifth of its training images is the test set, as in the released code.",
    )
)
register_task(
    Task(
        "aircraft",
        "classification",
        "Donghyun99/FGVC-Aircraft",
        target_column="variation",
        num_labels=100,
        paper_test_split="val",
        num_images=(3_334, 3_333),
        resolution=224,
        paper_column="fg",
        description="FGVC-Aircraft, 100 variants, 3,334 / 3,333 images.",
    )
)
register_task(
    Task(
        "pets",
        "classification",
        "timm/oxford-iiit-pet",
        target_column="label",
        num_labels=37,
        num_images=(3_680, 3_669),
        resolution=224,
        paper_column="fg",
        description="Oxford-IIIT Pet, 37 breeds, 3,680 / 3,669 images.",
    )
)
register_task(
    Task(
        "food101",
        "classification",
        "ethz/food101",
        test_split="validation",
        target_column="label",
        num_labels=101,
        num_images=(75_750, 25_250),
        resolution=224,
        paper_column="fg",
        description="Food-101, 75,750 / 25,250 images.",
    )
)
register_task(
    Task(
        "flowers102",
        "classification",
        "dpdl-benchmark/oxford_flowers102",
        target_column="label",
        num_labels=102,
        paper_test_split="validation",
        num_images=(1_020, 6_149),
        resolution=224,
        paper_column="fg",
        description="Oxford Flowers-102, 1,020 / 6,149 images.",
    )
)
register_task(
    Task(
        "ade20k",
        "segmentation",
        "merve/scene_parse_150",
        test_split="validation",
        target_column="annotation",
        num_labels=150,
        reduce_labels=True,
        num_images=(20_210, 2_000),
        resolution=224,
        paper_column="ade",
        description="ADE20K, 150 classes (SceneParse150), 20,210 / 2,000 images.",
    )
)
register_task(
    Task(
        "nyu-depth-v2",
        "depth",
        "tanganke/nyuv2",
        test_split="val",
        target_column="depth",
        max_depth=10.0,
        num_images=(795, 654),
        resolution=224,
        paper_column="nyud",
        description="NYU-Depth-v2, labelled set at 288x384, 795 / 654 images, metres.",
    )
)

GROUPS["ds"] = ("imagenet-r", "imagenet-v2")
GROUPS["fg"] = ("aircraft", "pets", "food101", "flowers102")
GROUPS["paper"] = ("imagenet-1k", "ade20k", "nyu-depth-v2", "inat2019", *GROUPS["ds"], *GROUPS["fg"])
