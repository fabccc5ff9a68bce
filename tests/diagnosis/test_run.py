import json
import math

import pytest
import torch
from artifact_models import noise_dataset, with_artifacts
from families import FAMILIES, tiny_model, tiny_vit, vit_processor

pytest.importorskip("matplotlib")

from singer_hf import vision_backbone  # noqa: E402
from singer_hf.diagnosis import (  # noqa: E402
    CLOSED_FORM,
    CLOSED_FORM_FREE,
    INITIAL,
    DiagnosisOptions,
    ImageBatches,
    ModelInput,
    Refinement,
    diagnose,
    initial_refinements,
    recommend,
    render_report,
    report_sections,
    tables,
)
from singer_hf.diagnosis.sections import closed_form_sentences  # noqa: E402


@pytest.fixture(scope="module")
def batches():
    return ImageBatches(noise_dataset(64), ModelInput.of_processor(vit_processor()))


@pytest.fixture(scope="module")
def whole(batches):
    """Everything at once: a teacher with artifacts, an adapter, two students, one of another size."""
    torch.manual_seed(0)
    teacher = with_artifacts(tiny_vit(hidden_size=32, num_hidden_layers=4), 2).eval()
    small = tiny_vit(hidden_size=16).eval()
    large = tiny_vit(hidden_size=16, image_size=48).eval()
    return diagnose(
        teacher,
        batches,
        refinements={"<run>": initial_refinements(vision_backbone(teacher), [1, 2, 3], 4)},
        students={
            "<run>": (small, ModelInput.of_processor(vit_processor())),
            "large": (large, ModelInput.of_processor(vit_processor(48))),
        },
        options=DiagnosisOptions(perturbation_images=8, shown_images=2, sample_images=20),
    )


def test_the_result_is_json_and_holds_every_part(whole):
    result = json.loads(json.dumps(whole.summary(), allow_nan=False))
    assert result["layers"] == [1, 2, 3] and result["rank"] == 4
    assert list(result["refinements"]) == ["<run>", INITIAL, CLOSED_FORM, CLOSED_FORM_FREE]
    assert [layer["layer"] for layer in result["refinements"]["<run>"]] == [1, 2, 3]
    assert [layer["layer"] for layer in result["refinements"][CLOSED_FORM]] == [2, 3]  # block 1 has no outliers
    assert list(result["students"]) == ["<run>", "large"]
    assert list(result["perturbations"]) == ["1", "2"]
    assert result["options"]["rule"]["k"] == 5.0


def test_tables_state_the_recorded_numbers(whole):
    result = whole.summary()
    layers = tables.layer_table(result)
    assert [row[0] for row in layers.rows] == ["0", "1", "2", "3"] and layers.rows[2][-1] == "artifacts"
    assert all(len(row) == len(layers.columns) for row in layers.rows)
    for make in (tables.table_2, tables.table_3, tables.table_5a, tables.table_5b, tables.table_7, tables.table_8):
        table = make(result)
        assert all(len(row) == len(table.columns) for row in table.rows), make.__name__
        assert make.__name__.removeprefix("table_") in table.title
    assert len(tables.effect_table(result).rows) == 3 + 3 + 2 + 2
    second = tables.table_2(result).rows[0]
    last = result["students"]["<run>"][-1]
    assert second[:4] == ["<run>", "3 / 2", f"{last['gram_distance_per_patch']:.3f}", f"{last['cka']:.3f}"]


def test_tables_3_5_7_and_8_state_the_recorded_numbers(whole):
    result = whole.summary()
    effect = result["refinements"]["<run>"][1]  # block 2
    row = tables.table_3(result).rows[1]
    assert row[0] == "<run>, block 2"
    assert row[1] == f"{effect['cosine']['mean']:.4f} ± {effect['cosine']['std']:.4f}"
    assert row[2] == f"{effect['cosine_next_block']['mean']:.4f} ± {effect['cosine_next_block']['std']:.4f}"
    energy = [effect["energy"][factor][part] for factor in ("up", "down") for part in ("prob", "safe")]
    assert tables.table_5a(result).rows[1] == ["<run>, block 2", *(f"{value:.4f}" for value in energy)]
    rows = {row[0]: row for row in tables.table_5b(result).rows}
    gram = effect["gram_distance"]
    assert rows["F_T and F̂_T: <run>, block 2"][1:3] == [
        f"{gram['mean']:.2f} ± {gram['std']:.2f}", f"{gram['median']:.2f}",
    ]  # fmt: skip
    assert (
        rows["F_T and student: large, block 3"][2]
        == f"{result['students']['large'][-1]['gram_distance']['median']:.2f}"
    )
    gain = result["teacher"]["norm_gain"]["all_blocks"]["fc2"]
    assert tables.table_7(result).rows[1][1:4] == [f"{gain[key]:.4f}" for key in ("mean", "median", "p95")]
    values = result["perturbations"]["2"]["full Jacobian"]
    rows = {row[0]: row for row in tables.table_8(result).rows}
    assert rows["full Jacobian, block 3"][1:3] == [f"{values['l2']:.4f}", f"{values['cosine']:.4f}"]
    assert rows["full Jacobian, block 3"][3] == "–" and values["cka"] is None  # 64 patches for a width of 32
    assert "needs at least 10" in tables.table_8(result).note


def test_a_student_without_an_adapter_is_not_measured_against_anothers(whole):
    of = whole.summary()["students"]
    assert of["<run>"][-1]["gram_distance_to_refined"] is not None
    assert all(entry["gram_distance_to_refined"] is None for entry in of["large"])


def test_advice_is_of_the_teacher_whatever_is_looked_at(whole):
    result = whole.summary()
    assert whole.recommendation == recommend(whole.teacher)
    assert result["recommendation"]["layers"] == [2, 3] and "distill blocks 2 and 3" in whole.recommendation.sentence
    assert "blocks 1 to 3 with rank 4, of which only blocks 2 and 3 have artifacts" in result["looked_at"]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("artifacts", "none", "the artifacts are gone"),
        ("artifacts", "heavy tail", "a heavy tail is left"),
        ("artifacts", "artifacts", "still has artifacts"),
        ("none", "none", "nothing to repair"),
        ("heavy tail", "heavy tail", "had no artifacts but a heavy tail, and still has it"),
    ],
)
def test_the_closed_forms_sentence_compares_before_and_after(whole, before, after, text):
    result = whole.summary()
    (layer, *_) = result["refinements"][CLOSED_FORM]
    layer["verdict_before"], layer["outliers_after"]["verdict"] = before, after
    assert text in closed_form_sentences(result)[0]


def test_what_does_not_fit_is_said_before_the_teachers_pass(batches, whole):
    def stop(line):
        raise AssertionError(f"stage {line!r} was reached")

    teacher, takes = tiny_vit().eval(), ModelInput.of_processor(vit_processor())
    wide = Refinement(torch.zeros(16, 2), torch.zeros(2, 16))
    broken = tiny_vit(hidden_size=16).eval()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    for changes, message in (
        ({"refinements": {"mine": {1: wide}}}, "'mine', block 1, has factors"),
        ({"refinements": {CLOSED_FORM: {1: wide}}}, "the diagnosis's own name"),
        ({"students": {"mine": (tiny_vit().train(), takes)}}, "'mine' is in training mode"),
        ({"students": {"mine": (broken, takes)}}, "'mine': .* holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            diagnose(teacher, batches, report=stop, **changes)
    with pytest.raises(ValueError, match="give at least 63 images"):
        diagnose(teacher, ImageBatches(noise_dataset(20), takes), report=stop)


def test_the_report_shows_every_section_and_no_raw_name(whole):
    sections = report_sections(whole, whole.summary())
    names = [picture.name for section in sections for picture in section.pictures]
    assert names == [
        *("layers", "norm_distribution", "norm_maps", "places", "spectra", "norms_0", "similarity_maps"),
    ]
    html = render_report(
        "Diagnosis of <model>", whole.recommendation.sentence, sections, facts={"seed": "0"}, verdict="artifacts"
    )
    assert "<run>" not in html and "&lt;run&gt;" in html and html.count("<img ") == len(names)
    assert all(f"Table {item}" in html for item in ("2", "3", "5a", "5b", "7", "8"))


def test_shown_images_are_those_with_most_outliers(whole):
    backbone = whole.backbone
    with torch.no_grad():
        hidden = backbone.features(whole.sample.teacher_pixels, whole.layers).hidden
    counts = sum(
        whole.teacher.is_outlier(layer, hidden[layer][:, 1:].norm(dim=-1)).sum(dim=1) for layer in whole.layers
    )
    others = [index for index in range(len(whole.sample)) if index not in whole.shown]
    assert counts[whole.shown].min() >= counts[others].max()


def test_a_clean_teacher_gets_a_whole_report_too(batches):
    torch.manual_seed(0)
    found = diagnose(tiny_vit().eval(), batches, options=DiagnosisOptions(perturbation_images=0, sample_images=8))
    assert list(found.refinements) == [INITIAL]
    sections = report_sections(found, found.summary())
    assert "perturbations" in found.summary() and found.summary()["perturbations"] == {}
    html = render_report("x", found.recommendation.sentence, sections, facts={}, verdict="none")
    assert "no artifacts" in html


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_all_of_it(family, batches):
    """With artifacts, so that the closed form is fitted, and a student of the same family."""
    torch.manual_seed(0)
    takes = ModelInput.of_processor(vit_processor())
    found = diagnose(
        with_artifacts(tiny_model(family).eval(), 1, size=400.0),
        batches,
        students={"same": (tiny_model(family).eval(), takes)},
        options=DiagnosisOptions(perturbation_images=4, rank=4, layers=[0, 2]),
    )
    result = found.summary()
    assert [layer["teacher_layer"] for layer in result["students"]["same"]] == [0, 2]
    assert (CLOSED_FORM in result["refinements"]) == (found.teacher.layers[2].outliers.count > 0)
    cosine = result["refinements"][INITIAL][0]["cosine_next_block"]["mean"]
    assert 0 < cosine <= 1 and math.isfinite(result["perturbations"]["0"]["full Jacobian"]["l2"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, "layer 3 is out of range: the model has 3 blocks"),
        ({"rank": 99}, "rank 99 is above the teacher's width 32"),
    ],
)
def test_options_that_do_not_fit_the_model(options, message, batches):
    with pytest.raises(ValueError, match=message):
        diagnose(tiny_vit().eval(), batches, options=DiagnosisOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"shown_images": 0}, "shown_images must be at least 1"),
        ({"perturbation_images": 1}, "0 .none. or at least 2, got 1"),
        ({"perturbation_size": 0.0}, "perturbation_size must be positive"),
        ({"closed_form_weight": -1.0}, "closed_form_weight must be positive"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DiagnosisOptions(**options)
