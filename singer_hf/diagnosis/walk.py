"""Forward passes of one model over batches of images, with what must hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backbones import TokenLayout, VisionBackbone


class Walk:
    """Forward passes block by block, so that no more than one block's features are held.

    Attributes:
        images: how many have passed.
        layout: tokens of an image, the same for all.
    """

    def __init__(self, backbone: VisionBackbone) -> None:
        self.backbone, self.images = backbone, 0
        self.layout: TokenLayout | None = None
        self.dtype = next(backbone.model.parameters()).dtype
        """What the model computes in, and pixels are brought to."""

    def layout_of(self, pixels: Tensor) -> TokenLayout:
        """Checks a batch (B, 3, H, W) against the batches before."""
        layout = self.backbone.layout(pixels)
        if self.layout is not None and layout != self.layout:
            raise ValueError(
                f"Image {self.images} and those after it have {layout.grid[0]}x{layout.grid[1]} patches, the images "
                f"before {self.layout.grid[0]}x{self.layout.grid[1]}: resize all images to one size."
            )
        self.layout = layout
        return layout

    def blocks(self, pixels: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (layer, its input, its output), (B, N, d) each, of the plain model.

        Raises:
            ValueError: features that are not finite, or as many patch tokens as the layout does not have.
        """
        backbone, layout = self.backbone, self.layout_of(pixels)
        hidden, inputs = backbone.embed(pixels.to(self.dtype))
        for layer in range(backbone.num_blocks):
            before, hidden = hidden, backbone.run_block(layer, hidden, inputs, adapters=False)
            if hidden.ndim != 3 or hidden.shape[1] != layout.num_prefix_tokens + layout.num_patches:
                raise ValueError(
                    f"Block {layer} of {type(backbone.model).__name__} gives an output of shape "
                    f"{tuple(hidden.shape)}; expected (images, {layout.num_prefix_tokens} prefix tokens + "
                    f"{layout.num_patches} patches, width): only models with one token a patch can be diagnosed."
                )
            finite = torch.isfinite(hidden).flatten(1).all(dim=1)
            if not finite.all():
                image = self.images + int((~finite).nonzero()[0])
                raise ValueError(
                    f"Block {layer} gives NaN or infinite features for image {image} (of the order given) in "
                    f"{hidden.dtype}: load the model in float32 or bfloat16, or look at its weights and that image."
                )
            yield layer, before, hidden
        self.images += len(pixels)
