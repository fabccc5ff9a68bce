"""One training step of the released code (github AIRLABkhu/SiNGER), from a checkout that the user supplies.

Nothing of it is in this repository: its own models, distiller, trainer and optimizer are imported from that folder and
run as they are, with its configuration files `singer.yaml` and `adamw.yaml`. What differs from its `tools/train.py`:

- weights are random (`pretrained=False`), which changes no shape;
- it runs in one process, over gloo on a CPU. As there, DistributedDataParallel is around the distiller, with
  `find_unused_parameters=True`, unless `ddp=False` leaves it out;
- `EXPERIMENT.AMP` stays off, as published. For bf16 its `forward_train` runs under `torch.autocast`;
- on a CPU `Tensor.cuda` returns the tensor itself while a step runs.

It needs timm, yacs, tensorboardX and einops.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

MODELS = {"vit-t": "vit_tiny", "vit-s": "vit_small", "vit-b": "vit_base", "vit-l": "vit_large", "vit-h": "vit_huge"}


class ReleasedStep:
    """The released code's SiNGER step: `train_iter` of its trainer on one batch.

    Args:
        folder: its checkout.
        teacher, student: names in `MODELS`.
        teacher_layers: distilled blocks; the last one must be the teacher's last, as there.
        image_size: side of the images in pixels.
        device: where it runs.
        bf16: autocast its forward pass to bf16.
        ddp: wrap it in DistributedDataParallel, as its training script does with any number of processes.

    Raises:
        ValueError: a folder that is no such checkout, or layers that it cannot be given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        teacher: str,
        student: str,
        teacher_layers: list[int],
        image_size: int,
        device: torch.device,
        bf16: bool = False,
        ddp: bool = True,
    ):
        folder = folder.resolve()
        if not (folder / "mdistiller" / "distillers" / "SiNGER.py").exists():
            raise ValueError(
                f"{folder} is no checkout of the released code: mdistiller/distillers/SiNGER.py is missing."
            )
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        from mdistiller.distillers import distiller_dict
        from mdistiller.engine import trainer_dict
        from mdistiller.engine.cfg import CFG
        from mdistiller.models import imagenet_model_dict

        _one_process(device)
        cfg = CFG.clone()
        cfg.merge_from_file(str(folder / "configs/imagenet/vit/singer.yaml"))
        cfg.merge_from_file(str(folder / "configs/imagenet/optim/adamw.yaml"))
        cfg.DATASET.INPUT_SIZE = [image_size, image_size]
        cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT = MODELS[teacher], MODELS[student]
        cfg.SiNGER.M_LAYERS = teacher_layers[:-1]  # it adds the last block itself
        models = {name: imagenet_model_dict[MODELS[name]](img_size=image_size) for name in {teacher, student}}
        if teacher_layers[-1] != len(models[teacher].blocks) - 1:
            raise ValueError(f"The released code always distills the last block too; got layers {teacher_layers}.")
        distiller = distiller_dict[cfg.DISTILLER.TYPE](models[student], models[teacher], cfg).to(device).train()
        if bf16:
            distiller.forward_train = torch.autocast(device.type, torch.bfloat16)(distiller.forward_train)
        if ddp:
            devices = [device] if device.type == "cuda" else None
            distiller = DistributedDataParallel(distiller, device_ids=devices, find_unused_parameters=True)
        self.device = device
        with tempfile.TemporaryDirectory() as logs, _working_directory(folder):  # it copies its own code into its logs
            cfg.LOG.PREFIX = logs
            self.trainer = trainer_dict[cfg.SOLVER.TRAINER]("step", distiller, None, None, cfg)

    def batch(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What its data loader yields for these images: normalised float pixels, labels, indices.

        Args:
            pixel_values: uint8 (B, 3, H, W) on the CPU.
        """
        labels = torch.zeros(len(pixel_values), dtype=torch.int64)
        return (pixel_values.float() / 255 - 0.5) / 0.25, labels, torch.arange(len(pixel_values))

    def step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Forward pass, backward pass, optimizer, its meters."""
        on_cpu = self.device.type == "cpu"
        with mock.patch.object(Tensor, "cuda", _stay) if on_cpu else contextlib.nullcontext():
            self.trainer.train_iter(batch, 1, self._meters())

    def _meters(self) -> dict:
        from mdistiller.engine.utils import AverageMeter

        names = ("training_time", "data_time", "top1", "top5")
        return {"losses": {}} | {name: AverageMeter() for name in names}


def _one_process(device: torch.device) -> None:
    """Its trainer gathers metrics over processes: here a group of one."""
    os.environ.update(LOCAL_RANK="0", WORLD_SIZE="1", IS_MASTER_NODE="0")  # not the master: no logs
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


@contextlib.contextmanager
def _working_directory(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _stay(tensor: Tensor, *args, **kwargs) -> Tensor:
    """Stands in for `Tensor.cuda` where there is no GPU."""
    return tensor
