"""SIGTERM and SIGINT end a run after the step at hand, with a checkpoint.

Clusters give notice by SIGTERM before they kill; Ctrl-C is SIGINT. A second SIGINT stops at once.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..checkpoints.resume import find_checkpoints

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunStopped(SystemExit):
    """A signal stopped the run. Not caught, it ends the program with 128 + signal.

    Args:
        signal_number: of the signal.
        checkpoint: the folder that was written; None where there is none.
    """

    def __init__(self, signal_number: int, checkpoint: str | None):
        super().__init__(128 + signal_number)
        self.signal_number, self.checkpoint = signal_number, checkpoint

    def __str__(self) -> str:
        stopped = f"{signal.Signals(self.signal_number).name} stopped the run."
        if self.checkpoint is None:
            return f"{stopped} No checkpoint of its last step was written."
        return (
            f"{stopped} {self.checkpoint} is written: go on with resume_from_checkpoint=True "
            "(--resume_from_checkpoint true)."
        )


class StopSignals(TrainerCallback):
    """As a context, takes the signals; as a callback, asks for a checkpoint and the end of training after one came.

    All processes stop after the same step, whichever of them the signal reached. Outside the main thread, where Python
    allows no handlers, the signals keep their meaning.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = self.stopped_by = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = self.stopped_by = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self.received and not self.stopped_by and error == (None, None, None):
            signal.raise_signal(self.received)  # it came behind the last step: what it meant before

    def _receive(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def on_step_end(self, args, state, control, **kwargs):
        self.stopped_by = self._agreed(self.received)
        if self.stopped_by:
            logger.warning("%s: saving a checkpoint, then stopping.", signal.Signals(self.stopped_by).name)
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped_by and state.epoch % 1:  # Trainer ends the epoch here; the resumed run ends it in its time
            control.should_log = control.should_evaluate = control.should_save = False

    def _agreed(self, number: int) -> int:
        """The largest signal number that any process received."""
        if self.accelerator.num_processes == 1:
            return number
        received = torch.tensor([number], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())


class StoppableTrainer(Trainer):
    """A Trainer that ends in [`RunStopped`] where its `stop_signals` stopped it, and whose workers live that long."""

    stop_signals: StopSignals

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self.stop_signals:
            output = super().train(*args, **kwargs)
        if self.stop_signals.stopped_by:
            name = f"checkpoint-{self.state.global_step}"
            written = [str(path) for path in find_checkpoints(self.args.output_dir) if path.name == name]
            stopped = RunStopped(self.stop_signals.stopped_by, written[0] if written else None)
            logger.warning("%s", stopped)
            raise stopped
        return output

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        own = getattr(loader, "base_dataloader", loader)  # accelerate's is a shell, whose attributes nobody reads
        own.worker_init_fn = partial(leave_stopping_to_the_trainer, own.worker_init_fn)
        return loader

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        """Whether to save, which save_strategy="best" asks behind an evaluation: also where the run stops."""
        is_best = super()._determine_best_metric(metrics=metrics, trial=trial)
        return is_best or bool(self.stop_signals.stopped_by)


def leave_stopping_to_the_trainer(then: Callable[[int], None] | None, worker: int) -> None:
    """`worker_init_fn` of a DataLoader: the first stop signal passes, a second one kills.

    Schedulers signal every process of a job, and a terminal its whole group. Workers that died of it would take the
    step at hand, and so the checkpoint, with them. The second is the DataLoader's own, for workers that hang.

    Args:
        then: the `worker_init_fn` that was there before.
        worker: its number.
    """

    def first(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in STOP_SIGNALS:
        signal.signal(number, first)
    if then is not None:
        then(worker)
