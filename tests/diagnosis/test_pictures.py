import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgba  # noqa: E402

from singer_hf import vision_backbone  # noqa: E402
from singer_hf.diagnosis import diagnose_teacher  # noqa: E402
from singer_hf.diagnosis.pictures import (  # noqa: E402
    layers_figure,
    norm_distribution_figure,
    norm_maps_figure,
    places_figure,
    similarity_maps_figure,
    spectra_figure,
)
from singer_hf.diagnosis.pictures.similarity_maps import marked_places  # noqa: E402
from singer_hf.plots import OUTLIER_COLOR  # noqa: E402


@pytest.fixture
def found(artifact_teacher, images):
    return diagnose_teacher(vision_backbone(artifact_teacher), images.split(16))


def test_the_line_of_the_loss_is_what_was_measured(found):
    _, right = layers_figure(found).axes
    lines = {line.get_label(): line.get_ydata() for line in right.get_lines()}
    assert lines["of the loss"] == pytest.approx(
        [100 * layer.traits.loss_share if layer.traits else 0 for layer in found.layers]
    )
    assert right.get_xlabel() == "block" and "(%)" in right.get_ylabel()


def test_bars_beyond_the_threshold_are_the_outliers(found):
    (axes,) = norm_distribution_figure(found, [2]).axes
    coloured = [bar.get_height() for bar in axes.patches if bar.get_facecolor() == to_rgba(OUTLIER_COLOR)]
    assert sum(coloured) == found.layers[2].outliers.count
    assert sum(bar.get_height() for bar in axes.patches) == found.layers[2].norms.count


def test_norm_maps_show_multiples_of_the_median():
    norms = torch.full((2, 12), 3.0)
    norms[1, 5] = 30.0
    figure = norm_maps_figure(np.zeros((2, 12, 16, 3)), {"block 1": norms}, {"block 1": 3.0}, (3, 4))
    drawn = figure.axes[3].images[0].get_array()
    assert drawn[1, 1] == pytest.approx(10) and drawn[0, 0] == pytest.approx(1)


def test_places_are_shares_of_images(found):
    figure = places_figure(found, [1, 2])
    drawn = figure.axes[1].images[0].get_array()
    assert drawn.sum() == pytest.approx(100 * found.layers[2].outliers.count / found.images)
    assert figure.axes[0].images[0].get_array().sum() == 0


def test_similarity_maps_are_cosines_to_the_marked_patch():
    patches, other = torch.randn(2, 16, 8), torch.randn(2, 64, 5)
    marked = [(0.4, 0.9), (0.1, 0.1)]
    figure = similarity_maps_figure(
        np.zeros((2, 32, 32, 3), dtype=np.uint8), {"teacher": (patches, (4, 4)), "student": (other, (8, 8))}, marked
    )
    drawn = figure.axes[1].images[0].get_array()
    expected = torch.nn.functional.cosine_similarity(patches[0], patches[0, 1 * 4 + 3], dim=-1)
    assert np.allclose(drawn.flatten(), expected, atol=1e-6)
    drawn = figure.axes[2].images[0].get_array()
    expected = torch.nn.functional.cosine_similarity(other[0], other[0, 3 * 8 + 7], dim=-1)
    assert np.allclose(drawn.flatten(), expected, atol=1e-6)


def test_the_marked_patch_is_central_and_no_outlier():
    outliers = torch.zeros(2, 9, dtype=torch.bool)
    outliers[1, 4] = True
    places = marked_places(outliers, (3, 3))
    assert places[0] == pytest.approx((0.5, 0.5))
    assert places[1] != pytest.approx((0.5, 0.5)) and max(abs(p - 0.5) for p in places[1]) < 0.4


def test_spectra_mark_the_rank_and_the_blocks(found):
    left, right = spectra_figure(found, [3], 5).axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["other blocks", "block 3"]
    assert "rank 5" in [text.get_text() for text in right.texts]
    heights = next(line for line in left.get_lines() if line.get_label() == "block 3").get_ydata()
    assert heights == pytest.approx((found.spectra[3].values / found.spectra[3].values.median()).tolist())
