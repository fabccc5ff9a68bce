import io

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from singer_hf.evaluation.radar import radar_figure  # noqa: E402

SCORES = {
    "worst": {"IN": 10.0, "ADE": 1.0, "NYUd": 1.5},
    "middle": {"IN": 20.0, "ADE": 4.0, "NYUd": 1.2},
    "best": {"IN": 30.0, "ADE": 5.0, "NYUd": 0.9},
}


def outlines(figure) -> dict[str, list[float]]:
    """Model -> radius on each axis."""
    found = {}
    for line in figure.axes[0].get_lines():
        radii = list(line.get_ydata())
        assert radii[0] == radii[-1]  # closed
        found[line.get_label()] = radii[:-1]
    return found


def test_on_each_axis_better_is_further_out():
    found = outlines(radar_figure(SCORES, lower_is_better={"NYUd"}))
    for axis in range(3):
        assert 0 < found["worst"][axis] < found["middle"][axis] < found["best"][axis]
        assert found["best"][axis] == 1
    assert len(set(found["worst"])) == 1


def test_errors_that_are_not_said_to_be_turn_their_axis():
    found = outlines(radar_figure(SCORES))
    assert found["best"][2] < found["middle"][2] < found["worst"][2] == 1


def test_between_worst_and_best_radii_are_linear():
    found = outlines(radar_figure(SCORES, lower_is_better=["NYUd"]))
    inner = found["worst"][0]
    shares = [(radius - inner) / (1 - inner) for radius in found["middle"]]
    assert shares == pytest.approx([0.5, 0.75, 0.5])


def test_equal_scores_lie_on_the_rim():
    found = outlines(radar_figure({"a": SCORES["best"], "b": SCORES["best"]}))
    assert found == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_axes_that_not_all_models_have_are_left_out():
    scores = {"a": SCORES["best"] | {"DS": 1.0}, "b": SCORES["worst"] | {"FG": 2.0}}
    labels = [label.get_text() for label in radar_figure(scores).axes[0].get_xticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["IN", "ADE", "NYUd"]


def test_axes_say_their_ends_and_direction():
    labels = [t.get_text() for t in radar_figure(SCORES, lower_is_better=["NYUd"]).axes[0].get_xticklabels()]
    assert labels == ["IN\n10 – 30", "ADE\n1 – 5", "NYUd ↓\n1.5 – 0.9"]


def test_axes_are_spread_evenly_and_clockwise_from_the_top():
    axes = radar_figure(SCORES).axes[0]
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata()[:-1], [0, 2 * np.pi / 3, 4 * np.pi / 3])
    assert axes.get_theta_offset() == pytest.approx(np.pi / 2) and axes.get_theta_direction() == -1


def test_models_are_told_apart_and_named():
    figure = radar_figure({str(i): SCORES["best"] for i in range(7)}, title="Seven")
    lines = figure.axes[0].get_lines()
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 7
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(i) for i in range(7)]
    assert figure.get_suptitle() == "Seven"


def test_the_figure_is_drawn_without_a_window():
    buffer = io.BytesIO()
    radar_figure(SCORES).savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [0, 8])
def test_too_few_or_too_many_models(count):
    with pytest.raises(ValueError, match=f"1 to 7 models, got {count}"):
        radar_figure({str(i): SCORES["best"] for i in range(count)})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": {"IN": 1.0, "ADE": 2.0}}, r"at least 3 axes that all models have, got 2 \(IN, ADE\)"),
        ({"a": SCORES["best"], "b": {"FG": 1.0}}, r"got 0 \(none\): evaluate all models on the same tasks"),
    ],
)
def test_too_few_common_axes(scores, message):
    with pytest.raises(ValueError, match=message):
        radar_figure(scores)
