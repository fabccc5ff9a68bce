"""A tiny run for drills: a real `DistillationTrainer` whose steps take milliseconds, in a forked process.

A process that has imported everything is forked for each life of a run, since importing takes longer than the run.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback, ViTConfig, ViTImageProcessor, ViTModel

from singer_hf import DistillationArguments, DistillationTrainer, NullspaceLoraConfig
from singer_hf.checkpoints.resume import find_checkpoints

# datasets 5 sleeps 5 s behind each pass over several files, and a pass here takes a fraction of a second.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

PARTS = ("model.safetensors", "adapter/adapter_model.safetensors", "distillation.safetensors")
"""Files of a finished run that hold all that was trained."""


def tiny_images(count: int, seed: int = 0) -> datasets.Dataset:
    """Noise of 40 × 40 pixels with integer labels."""
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
    return datasets.Dataset.from_dict({"image": images, "label": [i % 4 for i in range(count)]}, features=features)


def tiny_model(width: int, blocks: int) -> ViTModel:
    """A ViT for 32 × 32 pixels with patches of 8."""
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        intermediate_size=2 * width,
        image_size=32,
        patch_size=8,
    )
    return ViTModel(config, add_pooling_layer=False)


def build(folder: Path, images: Path, *, stream: bool, callbacks: Any = None, **options: Any) -> DistillationTrainer:
    """The run in `folder`, on the parquet files `images`/train-*.parquet, streamed or not."""
    torch.manual_seed(0)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    files = sorted(str(path) for path in images.glob("train-*.parquet"))
    train = datasets.load_dataset("parquet", data_files=files, split="train", streaming=stream)
    held_out = datasets.load_dataset("parquet", data_files=str(images / "test.parquet"), split="train")
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 60,
        "save_steps": 3,
        "save_total_limit": 2,
        "logging_steps": 5,
        "warmup_steps": 5,
        "shuffle_buffer_size": 8,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DistillationTrainer(
        tiny_model(16, 2),
        tiny_model(32, 3),
        DistillationArguments(str(folder), **(defaults | options)),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=processor,
        teacher_processing_class=processor,
        peft_config=NullspaceLoraConfig(r=4, layers_to_transform=[1, 2]),
        callbacks=callbacks,
    )


def write_images(folder: Path) -> None:
    """Two files of training images and one of held-out ones."""
    folder.mkdir(parents=True)
    for number in range(2):
        tiny_images(24, seed=number).to_parquet(folder / f"train-{number}.parquet")
    tiny_images(6, seed=9).to_parquet(folder / "test.parquet")


def live(
    folder: Path, images: Path, events: int, *, kill_in_save: random.Random | None = None, **options: Any
) -> None:
    """One life of a run: from its newest checkpoint to its end. Tells `events` of each step and of each save.

    Args:
        events: file descriptor: "s" for a step, "(" and ")" for the begin and the end of a save.
        kill_in_save: the process kills itself, and its workers, at a random moment of one of the first saves.
    """
    trainer = build(folder, images, callbacks=[_Tell(events)], **options)
    save, seconds = trainer._save_checkpoint, 0.1
    wait = kill_in_save.randrange(3) if kill_in_save is not None else None

    def told(*args: Any) -> None:
        nonlocal seconds, wait
        timer, start = None, time.monotonic()
        if wait is not None and wait <= 0:
            timer = threading.Timer(kill_in_save.uniform(0, seconds), os.killpg, (os.getpid(), signal.SIGKILL))
        os.write(events, b"(")
        if timer is not None:
            timer.start()
        save(*args)
        if timer is not None:
            timer.cancel()
        os.write(events, b")")
        seconds = time.monotonic() - start
        wait = None if wait is None else wait - 1

    trainer._save_checkpoint = told
    trainer.train(resume_from_checkpoint=bool(find_checkpoints(folder)))
    trainer.save_model()


class _Tell(TrainerCallback):
    def __init__(self, events: int):
        self.events = events

    def on_step_end(self, args, state, control, **kwargs):
        os.write(self.events, b"s")


def forked(work: Callable[[int], None], *, log: Path | None = None) -> tuple[int, int]:
    """Starts `work(pipe)` in a child of this process; gives its id and the pipe's other end."""
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    code = 1
    try:
        os.close(read)
        os.setsid()
        if log is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        work(write)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_forked(work: Callable[[int], None], *, log: Path | None = None) -> bytes:
    """`work` in a child, to its end; what it told.

    Raises:
        RuntimeError: it failed.
    """
    child, pipe = forked(work, log=log)
    told = drain(pipe)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise RuntimeError(f"The run ended with {code}: {log.read_text()[-2000:] if log else 'see above'}")
    return told


def drain(pipe: int, seconds: float | None = None) -> bytes:
    """What comes out of a pipe until its end, or for so many seconds."""
    told, end = b"", None if seconds is None else time.monotonic() + seconds
    os.set_blocking(pipe, end is None)
    while True:
        try:
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return told
            told += chunk
        except BlockingIOError:
            time.sleep(0.001)
        if end is not None and time.monotonic() > end:
            return told


def kill(child: int) -> int:
    """SIGKILL to a child and its workers; its exit code, negative where a signal ended it."""
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
