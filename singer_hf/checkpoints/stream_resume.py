"""A Trainer that trains on a [`TrainingStream`] and goes on in it where a checkpoint was."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..data import TrainingStream
from ..data.training_stream import StreamLoader, StreamPosition
from ..faults.stop_signals import leave_stopping_to_the_trainer
from .manifest import CheckpointError


class StreamResume(Trainer):
    """Trainer skips the batches that a resumed run has seen by making them again, of a stream all since the start.

    Here the position is in the checkpoint, `stream_<process>.json`, and Trainer skips nothing. The stream deals itself
    out, so accelerate, which would have process 0 decode for all, is not asked to.
    """

    _stream_loader: StreamLoader | None = None

    def get_train_dataloader(self) -> Any:
        if not isinstance(self.train_dataset, TrainingStream):
            return super().get_train_dataloader()
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=partial(leave_stopping_to_the_trainer, None),
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        self._stream_loader = StreamLoader(
            loader, lambda batch: send_to_device(batch, args.device, non_blocking=args.dataloader_pin_memory)
        )
        return self._stream_loader

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        skip = self.args.ignore_data_skip
        if isinstance(self.train_dataset, TrainingStream):
            self.add_callback(_StreamEpoch())
            self.train_dataset.start = StreamPosition()  # not where an earlier call resumed
            if resume_from_checkpoint and not skip:
                self._go_to(Path(resume_from_checkpoint))
                self.args.ignore_data_skip = True
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = skip
            self.remove_callback(_StreamEpoch)

    def _go_to(self, checkpoint: Path) -> None:
        stream = self.train_dataset
        # With samples dealt out one number is the position of all, also of another number of processes.
        process = 0 if stream.dealing.split == "samples" else self.args.process_index
        path = checkpoint / f"stream_{process}.json"
        try:
            position = StreamPosition.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} does not hold the position in the stream ({type(error).__name__}: {error}): resume a "
                "checkpoint of a streamed run with as many processes, or set ignore_data_skip=True to start the "
                "stream from its beginning."
            ) from error
        stream.resume(position, self.args.dataloader_num_workers)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # which every process calls, with the folder there
        if self._stream_loader is not None:
            path = Path(output_dir, f"stream_{self.args.process_index}.json")
            path.write_text(json.dumps(self._stream_loader.position.as_json()), encoding="utf-8")


class _StreamEpoch(TrainerCallback):
    """Trainer counts a stream's "epoch" from the batches of this session; it is a share of max_steps."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps
