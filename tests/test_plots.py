import numpy as np
import pytest
import torch
from PIL import Image

from singer_hf.plots import OUTLIER_COLOR, NormPanel, norm_scatter, patch_norms_figure

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgba  # noqa: E402


def panel(images=3, title="block 5"):
    before = torch.rand(images, 12) + 1
    before[:, 4] = 9.0
    return NormPanel(title, before, torch.rand(images, 12) + 1, (3, 4))


def points(axes):
    """Heights of the scattered points by colour."""
    found = {}
    for collection in axes.collections:
        color = tuple(collection.get_facecolor()[0][:3])
        found.setdefault(color, []).extend(collection.get_offsets()[:, 1])
    return found


def test_every_patch_is_a_point_and_outliers_keep_their_colour_on_both_sides():
    from matplotlib.figure import Figure

    drawn, axes = panel(), Figure().subplots()
    norm_scatter(axes, drawn.before, drawn.after, 0.95)
    heights = points(axes)
    assert sum(len(values) for values in heights.values()) == 2 * 3 * 12
    outliers = sorted(heights[to_rgba(OUTLIER_COLOR)[:3]])
    expected = sorted([*drawn.before[:, 4].tolist(), *drawn.after[:, 4].tolist()])
    assert outliers == pytest.approx(expected)


def test_a_picture_of_two_layers_and_three_images(tmp_path):
    images = np.random.default_rng(0).random((3, 12, 16, 3))
    figure = patch_norms_figure([panel(), panel(title="block 7")], images, title="norms")
    figure.savefig(tmp_path / "norms.png")
    with Image.open(tmp_path / "norms.png") as picture:
        assert picture.width == 1000 and picture.height > 600
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    titles = [axes.get_title() for part in figure.subfigs for side in part.subfigs for axes in side.axes]
    assert "block 7: patch norms of 3 images" in titles
    assert titles.count("‖F̂‖₂") == 2


def test_norms_that_do_not_fill_the_grid():
    with pytest.raises(ValueError, match=r"block 1: norms before \(2, 6\) and after \(2, 6\) must both be"):
        NormPanel("block 1", torch.ones(2, 6), torch.ones(2, 6), (2, 4))


def test_a_picture_of_nothing():
    with pytest.raises(ValueError, match="No panel"):
        patch_norms_figure([])
