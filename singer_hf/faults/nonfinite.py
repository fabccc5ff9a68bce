"""What happens to an optimizer step whose loss or gradient is not finite: it never reaches the weights.

A loss that is not finite makes the gradient NaN in the process that has it, and the reduction of gradients carries NaN
to all: every process sees the same gradient norm and does the same, without a message of their own.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..arguments import DistillationArguments

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")


def poisoned(loss: Tensor) -> Tensor:
    """The loss, whose gradient is NaN throughout where it is not finite (an infinite loss can have a finite one)."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


class NonFiniteSteps:
    """The micro-batches of the optimizer step at hand, until its gradient has been looked at.

    Args:
        args: `nonfinite`: "stop" raises, "skip" leaves the weights alone and goes on, at most `max_nonfinite_steps`
            times; the images of such a step are written to `output_dir`/nonfinite.
        accelerator: of the run.
    """

    def __init__(self, args: DistillationArguments, accelerator: Accelerator):
        self.policy, self.limit = args.nonfinite, args.max_nonfinite_steps
        self.folder, self.process = Path(args.output_dir, "nonfinite"), args.process_index
        self.accelerator = accelerator
        self.skipped = self._logged = 0
        self._batches: list[tuple[dict[str, Tensor], dict[str, Any]]] = []

    def add(self, inputs: dict[str, Tensor], outputs: dict[str, Any]) -> None:
        """Takes down a micro-batch and what the model said to it."""
        self._batches.append((inputs, {**outputs, "loss": outputs["loss"].detach()}))

    def close(
        self, model: nn.Module, gradient_norm: Tensor | float, step: int
    ) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Ends the step with its gradient's norm. Gives its micro-batches, none where it is skipped.

        Raises:
            FloatingPointError: a norm that is not finite, by "stop" or beyond the limit, in every process.
        """
        batches, self._batches = self._batches, []
        if math.isfinite(gradient_norm) or self._is_the_loss_scalers(batches):
            return batches
        message = f"{self._what(batches, float(gradient_norm), step)} {self._save(batches, step)}"
        if self.policy == "stop" or self.skipped >= self.limit:
            before = f" {self.skipped} such steps were skipped before, as many as max_nonfinite_steps allows."
            raise FloatingPointError(
                f"{message}{before if self.policy == 'skip' else ''} The weights are those of the step before. Lower "
                "learning_rate, train in bf16 or float32 in place of fp16, look at these images, or leave out a "
                "bounded number of such steps with nonfinite='skip'."
            )
        self.skipped += 1
        logger.warning("%s The step is left out (%d of at most %d).", message, self.skipped, self.limit)
        if self.accelerator.scaler is None:  # with one, the optimizer step is left out by it, which needs the gradient
            for parameter in model.parameters():
                parameter.grad = None  # such a parameter is passed over, and so is the optimizer's state of it
        return []

    def skipped_since_log(self) -> int:
        """Steps that were left out since the last call."""
        since, self._logged = self.skipped - self._logged, self.skipped
        return since

    def _is_the_loss_scalers(self, batches: list) -> bool:
        """fp16: with finite losses everywhere, the loss scale was too large; the scaler mends that by itself."""
        if self.accelerator.scaler is None:
            return False
        bad = sum((~torch.isfinite(outputs["loss"])).sum() for _, outputs in batches)
        return not self.accelerator.gather(bad.reshape(1)).any()

    @staticmethod
    def _what(batches: list, gradient_norm: float, step: int) -> str:
        for _, outputs in batches:
            if not torch.isfinite(outputs["loss"]):
                terms = ", ".join(f"{name} = {value.item():g}" for name, value in outputs["terms"].items())
                return f"The loss is {outputs['loss'].item()} at step {step} ({terms})."
        return f"The gradient's norm is {gradient_norm} at step {step}, with a finite loss in this process."

    def _save(self, batches: list, step: int) -> str:
        """Writes the micro-batches with a bad loss, all of them where none of this process's is bad."""
        bad = [batch for batch in batches if not torch.isfinite(batch[1]["loss"])] or batches
        tensors = {}
        for number, (inputs, outputs) in enumerate(bad):
            found = {**inputs, "loss": outputs["loss"].detach(), **outputs["terms"]}
            tensors |= {f"{number}.{name}": value.detach().cpu().contiguous() for name, value in found.items()}
        path = self.folder / f"step-{step}-process-{self.process}.safetensors"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, metadata={"step": str(step)})
        except OSError as error:
            return f"Its images could not be written to {path}: {error}."
        return f"Its images are in {path}."
