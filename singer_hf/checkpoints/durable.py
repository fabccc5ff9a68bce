"""Checkpoints that survive: written beside, published whole, resumed after verification."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from .manifest import CheckpointError, finish_publication, is_disk_full, publish
from .resume import choose_checkpoint, find_checkpoints

STAGING = ".saving"
"""Folder in a run's where checkpoints are written; Trainer's own search never looks into it."""


class DurableCheckpoints(Trainer):
    """A Trainer whose checkpoints are whole or not there, and that resumes none that is not.

    Trainer writes `checkpoint-<step>` in place, so that a process killed in the middle leaves half of one under the
    name that a resume takes, and `save_total_limit` counts it. Here Trainer writes into `.saving/`; when all processes
    are done, a manifest is added, everything is flushed, and the folder is renamed. Older checkpoints go after that.
    """

    _run_dir: str | None = None  # of the run, while a checkpoint is being written

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        resume = self._checkpoint_to_resume(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return run_dir if self._run_dir is None else os.path.join(run_dir, STAGING)

    @property
    def is_saving_checkpoint(self) -> bool:
        """Whether what is saved now is a part of a checkpoint."""
        return self._run_dir is not None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir, name = self._get_output_dir(trial), f"checkpoint-{self.state.global_step}"
        staging, final = Path(run_dir, STAGING, name), Path(run_dir, name)
        if self.args.should_save:
            finish_publication(staging.parent, run_dir)
        self.accelerator.wait_for_everyone()
        self._run_dir = run_dir
        self._push_from_checkpoint = lambda folder: None  # hides the method: nothing is pushed before it is whole
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.state.best_model_checkpoint == str(staging):
                    self.state.best_model_checkpoint = str(final)
                    self.state.save_to_json(str(staging / TRAINER_STATE_NAME))
                publish(staging, final)
                staging.parent.rmdir()
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_disk_full(error):
                raise CheckpointError(_disk_full(final, error)) from error
            raise
        finally:
            self._run_dir = None
            del self._push_from_checkpoint
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(staging):  # in processes that do not write
            self.state.best_model_checkpoint = str(final)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _checkpoint_to_resume(self, resume: str | bool) -> str:
        """[`choose_checkpoint`] in the main process, for all.

        Raises:
            CheckpointError, OSError: in every process.
        """
        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                finish_publication(Path(self.args.output_dir, STAGING), self.args.output_dir)
                path = choose_checkpoint(resume, self.args.output_dir, fallback=self.args.resume_fallback)
                found = [str(path), None]
            except (CheckpointError, OSError) as error:
                found = [None, error]
        path, error = broadcast_object_list(found)
        if error is not None:
            raise error
        return path


def _disk_full(final: Path, error: BaseException) -> str:
    whole = find_checkpoints(final.parent)
    kept = f"{whole[0]} is whole" if whole else "there is no earlier one"
    return (
        f"{final} cannot be written: the disk is full ({error}). Of the checkpoints before it {kept}. Free some "
        "space, lower save_total_limit (room for one more than that is needed), or set output_dir to another disk; "
        "then resume with resume_from_checkpoint=True."
    )
