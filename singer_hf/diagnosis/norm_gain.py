"""How much the parts of a block change the norm of a patch token (the paper's Table 7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..backbones import VisionBackbone
from ..losses import patch_norms
from .statistics import LogHistogram

GAINS = ("fc1", "fc2", "feed_forward", "attention")
"""fc1, fc2: norm out over norm in of the two linear layers of the feed-forward part, bias included (of a gated one: of
the linear branch). feed_forward, attention: norm of the residual stream behind over in front of that part, whose
excess over 1 is the relative growth."""


class NormGain:
    """Norm gains of every block, over the patches of all forward passes within [`recording`].

    Args:
        backbone: the model.

    Attributes:
        ratios: one `{gain: LogHistogram}` a block.
    """

    def __init__(self, backbone: VisionBackbone) -> None:
        self.backbone = backbone
        self.ratios = [{name: LogHistogram() for name in GAINS} for _ in range(backbone.num_blocks)]
        self._middle: list[Tensor | None] = [None] * backbone.num_blocks

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, every forward pass of a block is seen; [`add_block`] must follow each."""
        handles = []
        for layer in range(self.backbone.num_blocks):
            modules = self.backbone.feed_forward_modules(layer)
            handles += [
                modules.norm.register_forward_pre_hook(self._on_norm(layer)),
                modules.linear_in.register_forward_hook(self._on_linear(layer, "fc1", modules.linear_branch)),
                modules.linear_out.register_forward_hook(self._on_linear(layer, "fc2", lambda values: values)),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def add_block(self, layer: int, before: Tensor, after: Tensor) -> None:
        """Adds a block's attention and feed-forward, from its input and output (B, N, d), run just before."""
        start, middle, end = (self._norms(hidden) for hidden in (before, self._middle[layer], after))
        self.ratios[layer]["attention"].add(_gain(middle, start))
        self.ratios[layer]["feed_forward"].add(_gain(end, middle))
        self._middle[layer] = None

    def pooled(self) -> dict[str, LogHistogram]:
        """Over all blocks together."""
        pooled = {name: LogHistogram() for name in GAINS}
        for ratios in self.ratios:
            for name, histogram in pooled.items():
                histogram.merge(ratios[name])
        return pooled

    def _norms(self, hidden: Tensor) -> Tensor:
        return patch_norms(hidden[:, self.backbone.num_prefix_tokens :])

    def _on_norm(self, layer: int):
        def hook(module, args):
            self._middle[layer] = args[0].detach()

        return hook

    def _on_linear(self, layer: int, name: str, select):
        def hook(module, args, output):
            self.ratios[layer][name].add(_gain(self._norms(select(output)), self._norms(args[0])))

        return hook


def _gain(output: Tensor, source: Tensor) -> Tensor:
    """Ratios of norms, without those of tokens that are zero in front of the part."""
    return output[source > 0] / source[source > 0]


def gain_table(histograms: dict[str, LogHistogram]) -> dict[str, dict[str, float]]:
    """Mean, median and 95 % quantile of each gain; those of the residual stream as relative growth, gain − 1."""
    return {
        name: {
            key: value - (name in ("feed_forward", "attention"))
            for key, value in (
                ("mean", histogram.mean),
                ("median", histogram.median),
                ("p95", histogram.quantile(0.95)),
            )
        }
        for name, histogram in histograms.items()
    }
