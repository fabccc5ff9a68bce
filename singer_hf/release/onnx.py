"""The student as ONNX, beside its safetensors, checked for equal outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ONNX_FILE = "onnx/model.onnx"
TOLERANCE = 1e-4
"""Greatest difference from torch's outputs that is accepted, relative to the largest of them."""


class OnnxError(RuntimeError):
    """A model that ONNX does not compute as torch does."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written, for the card.

    Args:
        outputs: names, in order.
        difference: greatest difference from torch's outputs, relative to the largest of them, over all batches tried.
        runtime: that computed it, with its version.
    """

    outputs: tuple[str, ...]
    difference: float
    runtime: str


class _Tensors(nn.Module):
    """A model's outputs as plain tensors: (B, 3, H, W) -> logits, or last and distilled hidden state."""

    def __init__(self, model: PreTrainedModel, is_classifier: bool):
        super().__init__()
        self.model, self.is_classifier = model, is_classifier

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=not self.is_classifier)
        if self.is_classifier:
            return (outputs.logits,)
        return outputs.last_hidden_state, outputs.hidden_states[-1]


def export_onnx(
    model: PreTrainedModel, folder: str | Path, size: tuple[int, int], *, is_classifier: bool
) -> OnnxExport:
    """Writes `onnx/model.onnx`: input `pixel_values` (batch, 3, height, width), any batch.

    Args:
        model: as it is released.
        folder: of the release.
        size: height and width in pixels; they are fixed.
        is_classifier: outputs are `logits` (batch, labels); else `last_hidden_state` and `distilled_feature`.

    Raises:
        ImportError: the extra `onnx` is not installed.
        OnnxError: outputs differ by more than `TOLERANCE`; nothing is left behind.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx.export needs it
    except ImportError as error:
        raise ImportError("ONNX needs onnx, onnxscript and onnxruntime: pip install singer_hf[onnx]") from error
    path = Path(folder, ONNX_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs = ("logits",) if is_classifier else ("last_hidden_state", "distilled_feature")
    module = _Tensors(model.eval().cpu().float(), is_classifier).eval()
    generator = torch.Generator().manual_seed(0)

    def pixels(batch: int) -> Tensor:
        return torch.randn(batch, 3, *size, generator=generator)

    torch.onnx.export(
        module,
        (pixels(2),),
        str(path),
        input_names=["pixel_values"],
        output_names=list(outputs),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = 0.0
    for batch in (1, 3):
        images = pixels(batch)
        with torch.no_grad():
            expected = module(images)
        found = session.run(None, {"pixel_values": images.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            theirs = torch.from_numpy(theirs)
            if theirs.shape != ours.shape:
                path.unlink()
                raise OnnxError(f"ONNX gives {tuple(theirs.shape)} where torch gives {tuple(ours.shape)}.")
            relative = ((theirs - ours).abs().max() / ours.abs().max()).item()
            if not relative <= TOLERANCE:  # as NaN is not, either
                path.unlink()
                raise OnnxError(
                    f"ONNX's outputs differ from torch's by {relative:.1e} of the largest; at most {TOLERANCE:g} "
                    "may be."
                )
            difference = max(difference, relative)
    return OnnxExport(outputs, difference, f"onnxruntime {onnxruntime.__version__}")
