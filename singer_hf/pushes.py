"""A Trainer whose pushes are releases.

`singer_hf.release` is imported where it is needed: it imports the evaluation, which a training does without.
"""

from __future__ import annotations

import os
import shutil
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

if TYPE_CHECKING:
    from .release import Destination
    from .release.training import TrainingCard


class ReleasePushes(Trainer):
    """Pushes what `singer_hf.release` exports, with its card, in one commit.

    Trainer's own pushes upload whatever lies in `output_dir`, with a pickle of its arguments, `hub_token` included.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository where it is missing, private unless `private` or `hub_private_repo` is False."""
        if not self.is_world_process_zero():
            return
        self.hub_model_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        from .release.destination import make_repository
        from .release.training import check_repository

        destination = self._destination(token, private=private)
        api = destination.api()
        self.hub_model_id = destination.owned(api)
        check_repository(destination, api)
        make_repository(destination, api)
        self.push_in_progress = None

    def create_model_card(self, model_name: str | None = None, **facts: Any) -> None:
        """Writes or amends the card in `output_dir`, of the model that is saved there.

        Args:
            model_name: owner/name; default: `hub_model_id`, else the folder's name.
            facts: fields of [`singer_hf.release.CardFacts`], such as `license`, `tags`, `datasets`, `results`.
        """
        if self.is_world_process_zero():
            name = model_name or self.hub_model_id or Path(self.args.output_dir).absolute().name
            released = self._release(self.args.output_dir, name, **facts)
            try:
                self._card.amend(released)
                self._card.take(released, is_published=False)
            finally:
                shutil.rmtree(released)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> Any:
        """Publishes student, adapter and card in one commit; arguments as of `Trainer` and `create_model_card`.

        Returns:
            The commit, or without `blocking` its future.

        Raises:
            PublishError: nothing was published.
        """
        from .release.training import publish_and_remove

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        destination = self._destination(token, revision, private)
        released = self._release(self.args.output_dir, self.hub_model_id, **facts)
        push = partial(publish_and_remove, released, destination, commit_message, self._card)
        return push() if blocking else self._background.run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        from .release.training import told

        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        job = told(partial(self._begin_push, checkpoint_folder))
        if job is None:
            return
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _begin_push(self, checkpoint_folder: str) -> Any:
        """Exports a checkpoint now, before it may be deleted, and publishes it in the background: the future."""
        from .release.training import publish_and_remove, publish_checkpoint, told

        destination, message = self._destination(), f"Training in progress, step {self.state.global_step}"
        released = self._release(checkpoint_folder, self.hub_model_id)
        is_last = self.args.hub_strategy == HubStrategy.CHECKPOINT
        name = "last-checkpoint" if is_last else Path(checkpoint_folder).name
        with_checkpoint = self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
        kept = _linked(Path(checkpoint_folder)) if with_checkpoint else None

        def push() -> None:
            try:
                publish_and_remove(released, destination, message, self._card)
                if kept is not None:
                    publish_checkpoint(kept, destination, name, f"{message}, checkpoint")
            finally:
                if kept is not None:
                    shutil.rmtree(kept, ignore_errors=True)

        return self._background.run_as_future(told, push)

    @cached_property
    def _background(self) -> HfApi:
        return HfApi()  # whose one thread takes pushes one after the other

    @cached_property
    def _card(self) -> TrainingCard:
        from .release.folder import CARD_FILE
        from .release.training import TrainingCard

        return TrainingCard(Path(self.args.output_dir, CARD_FILE))

    def _destination(
        self, token: str | None = None, revision: str | None = None, private: bool | None = None
    ) -> Destination:
        from .release.destination import Destination

        return Destination(
            self.hub_model_id,
            revision=revision or self.args.hub_revision or "main",
            private=self.args.hub_private_repo if private is None else private,
            exist_ok=True,
            token=token or self.args.hub_token,
        )

    @staticmethod
    def _release(folder: str, name: str, **facts: Any) -> Path:
        """What is pushed of a folder, in a temporary one."""
        from .release.training import training_release

        return training_release(folder, name, **facts)


def _linked(checkpoint: Path) -> Path:
    """A second name for a checkpoint's files, since save_total_limit may delete the first before they are pushed."""
    folder = checkpoint.parent / f".pushing-{checkpoint.name}"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that died
    try:
        return Path(shutil.copytree(checkpoint, folder, copy_function=os.link))
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(checkpoint, folder))
