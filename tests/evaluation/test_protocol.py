import inspect
from dataclasses import replace

import pytest

from singer_hf.evaluation import PROTOCOLS
from singer_hf.evaluation.heads import HeadConfig
from singer_hf.evaluation.protocol import Protocol, protocol_for
from singer_hf.evaluation.task import KINDS

DEFAULT = protocol_for("default", "classification")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": ()}, r"learning_rates needs at least one value, each once; got \[\]"),
        ({"epochs": (3, 3)}, r"epochs needs at least one value, each once; got \[3, 3\]"),
        ({"learning_rates": (0.1, 0.0)}, r"learning_rates must be positive, got \(0.1, 0.0\)"),
        ({"weight_decays": (-1e-3,)}, "weight_decays must not be negative"),
        ({"epochs": (0,)}, "epochs must be at least 1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, "momentum must lie in"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"selection": "test"}, "selection must be one of validation, best_epoch_on_test, got test"),
        ({"validation_fraction": 0.0}, "validation_fraction must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction must lie between 0 and 1"),
        ({"views": -1}, "views must not be negative"),
        ({"pixels": 0}, "pixels must be at least 1"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale must be shares"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale must be shares"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale must be shares"),
        ({"learning_rates": (float("nan"),)}, "learning_rates must be positive"),
        ({"selection": "best_epoch_on_test"}, "best epoch of one head on the test images, but the grid has 32"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(DEFAULT, **options)


@pytest.mark.parametrize(
    "options",
    [{"weight_decays": (0.0,)}, {"momentum": 0.0}, {"views": 3}, {"pixels": 1}, {"crop_scale": (1.0, 1.0)}],
)
def test_options_at_the_border_are_fine(options):
    assert DEFAULT.with_options(**options) != DEFAULT


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_crop_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(ValueError, match="crop_ratio"):
        replace(DEFAULT, crop_ratio=ratio)


def test_the_grid_is_every_combination_once():
    protocol = DEFAULT.with_options(learning_rates=(0.1, 1.0), weight_decays=(0.0, 1e-3, 1e-2), epochs=(5, 7))
    grid = protocol.grid()
    assert len(grid) == len(set(grid)) == 12
    assert set(grid) == {HeadConfig(r, d, e) for r in (0.1, 1.0) for d in (0.0, 1e-3, 1e-2) for e in (5, 7)}


def test_options_that_are_none_change_nothing():
    assert DEFAULT.with_options(epochs=None, momentum=None) == DEFAULT
    assert DEFAULT.with_options(epochs=(2,)).epochs == (2,)
    assert DEFAULT.with_options(momentum=0.0).momentum == 0


@pytest.mark.parametrize(("kind", "epochs"), [("classification", 150), ("segmentation", 200), ("depth", 200)])
def test_the_papers_protocol_is_the_papers(kind, epochs):
    """METHOD.md section 5: SGD at 0.5 without momentum, weight decay 1e-6, batch 64, best epoch on the test set."""
    protocol = protocol_for("paper", kind)
    assert protocol.grid() == [HeadConfig(0.5, 1e-6, epochs)]
    assert (protocol.momentum, protocol.batch_size, protocol.standardize) == (0.0, 64, False)
    assert protocol.selection == "best_epoch_on_test"
    assert protocol.views > 0 and protocol.pixels is None


def test_the_papers_classification_is_trained_with_random_resized_crops():
    protocol = protocol_for("paper", "classification")
    assert protocol.crop_scale == (0.08, 1.0) and protocol.crop_ratio == (3 / 4, 4 / 3)  # torchvision's own


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_protocol_never_looks_at_the_test_images_to_choose(kind):
    assert protocol_for("default", kind).selection == "validation"


def test_every_protocol_has_every_kind_and_its_own_name():
    for name, kinds in PROTOCOLS.items():
        assert set(kinds) == set(KINDS)
        assert {protocol.name for protocol in kinds.values()} == {name}


def test_an_unknown_protocol():
    with pytest.raises(ValueError, match="protocol='papr' is not known: expected one of default, paper"):
        protocol_for("papr", "depth")


def test_every_field_is_described():
    described = inspect.getdoc(Protocol)
    assert [name for name in Protocol.__dataclass_fields__ if name not in described] == []
