"""Cards: valid, complete, from recorded numbers alone, and proof against whatever names hold."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest
from card_rules import metadata_errors
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt
from released import MIT, record_of, result_of

from singer_hf.evaluation.result import results_in
from singer_hf.release import CardFacts, License, Picture, ResultsError, Run, model_card, student_folder
from singer_hf.release.diagnosis import DiagnosisError, card_diagnosis
from singer_hf.release.emissions import Emissions, EmissionsError
from singer_hf.release.export import ExportedModel
from singer_hf.release.record import RecordError, is_hub_id, shown_name
from singer_hf.release.results import eval_results, results_table

HOSTILE = [
    "a | b",
    "line\n---\nlicense: mit\n---",
    "<script>alert(1)</script>",
    "```\nrm -rf\n```",
    "`code` **bold** [link](javascript:alert(1))",
    "<!-- singer_hf end training -->",
    "--> <img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "# heading",
    "&lt;b&gt; $x$ ~~y~~",
]


def facts(folder, exported, **changes):
    return CardFacts(
        **({"repo_id": "user/student", "run": Run.load(folder), "license": MIT, "model": exported} | changes)
    )


def rendered(card):
    """HTML of the card's body, as GitHub's flavour of Markdown."""
    return MarkdownIt("gfm-like", {"linkify": False}).render(card.text)


def test_the_metadata_is_valid_and_survives_a_round_trip(tmp_path, run, exported):
    results = [result_of(exported.fingerprint), result_of("another", name="facebook/dinov2-small", score=0.5)]
    card = model_card(facts(run, exported, results=results))
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert metadata_errors(again.content) == ([], [])
    assert again.content == card.content
    assert again.data.library_name == "transformers" and again.data.pipeline_tag == "image-feature-extraction"
    assert again.data.license == "mit" and {"singer", "knowledge-distillation", "vit"} <= set(again.data.tags)
    entries = again.data.eval_results
    assert [(e.metric_type, e.metric_value) for e in entries] == [
        ("accuracy", 0.75),
        ("top-5-accuracy", 0.9375),
        ("knn-accuracy", 0.625),
    ]
    assert {(e.task_type, e.dataset_type, e.dataset_split) for e in entries} == {
        ("image-classification", "timm/oxford-iiit-pet", "test")
    }
    index = again.data.to_dict()["model-index"]
    assert eval_results_to_model_index(*model_index_to_eval_results(index)) == index
    assert index[0]["name"] == "student"


def test_without_recorded_results_a_card_has_no_scores(run, exported):
    card = model_card(facts(run, exported))
    assert "model-index" not in card.data.to_dict() and "metrics" not in card.data.to_dict()
    assert "## Evaluation" not in card.text and "accuracy" not in card.text.split("<details>")[0]
    assert "CO₂" not in card.text and "co2_eq_emissions" not in card.data.to_dict()


def test_every_number_of_the_text_is_recorded(run, exported):
    """In what is read first: no number but of the model, the record, the results and the references."""
    record = Run.load(run)
    card = model_card(facts(run, exported, results=[result_of(exported.fingerprint)]))
    sections = card.text.split("<details>")[0], card.text.split("</details>")[1].split("```bibtex")[0]
    text = re.sub(
        r"<!--.*?-->|```python.*?```|https?://\S+|add_pooling_layer|k-NN", "", " ".join(sections), flags=re.S
    )
    found = set(re.findall(r"(?<![\w.])\d[\d,.]*(?![\w])", text))
    known = {f"{exported.parameters:,}", str(exported.blocks), str(exported.width), "8", "32", "1", "0", "-1"}
    known |= {f"{record.content['teacher']['parameters']:,}", str(record.steps), str(record.images)}
    known |= {f"{record.seconds:.0f}", str(record.sessions[0]["hardware"]["threads"]), "75.00", "3,669"}
    known |= {value for _, value in record.recipe()}
    assert {number.rstrip(".,") for number in found} <= known


def test_the_table_stands_teacher_and_baselines_beside_the_student(run, exported):
    teacher = Run.load(run).content["teacher"]["name"]
    results = [
        result_of("b", name="runs/fitnet", score=0.25),
        result_of("a", name=teacher, score=0.875),
        result_of(exported.fingerprint),
        result_of(exported.fingerprint, task="cars", score=0.5),
    ]
    html = rendered(model_card(facts(run, exported, results=results)))
    rows = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", html)]
    table = [rows[i : i + 3] for i in range(0, 12, 3)]
    assert table[0][1].startswith("pets: top-1 accuracy, linear head, default protocol, 3,669 test images")
    assert table[1:] == [
        ["teacher: teacher", "87.50 %", "–"],
        ["student", "75.00 %", "50.00 %"],
        ["fitnet", "25.00 %", "–"],
    ]


def test_results_of_other_weights_are_refused(run, exported):
    with pytest.raises(ResultsError, match="None of the results .* is of the weights that are released"):
        model_card(facts(run, exported, results=[result_of("another")]))


def test_two_different_results_of_one_model_are_refused(run, exported):
    results = [result_of(exported.fingerprint), result_of(exported.fingerprint, score=0.8)]
    with pytest.raises(ResultsError, match="differ"):
        model_card(facts(run, exported, results=results))


def test_scores_of_another_head_on_the_same_weights_are_left_out(tmp_path, run, classifier, exported, caplog):
    head = {"name": "x", "fingerprint": exported.fingerprint, "feature": "input of the classifier of ViT"}
    other = result_of(exported.fingerprint, model=head, score=0.3125)
    features = result_of(exported.fingerprint)
    made = {"repo_id": "user/a", "run": Run.load(run), "license": MIT, "results": [other, features]}
    made["results"] += results_in(classifier)
    card = student_folder(tmp_path / "a", run, classifier=classifier, **made).card
    assert [e.metric_value for e in card.data.eval_results if e.metric_type == "accuracy"] == [0.8125]
    assert "31.25" not in card.text and "another head" in caplog.text
    card = student_folder(tmp_path / "b", run, **made).card
    assert [e.metric_value for e in card.data.eval_results if e.metric_type == "accuracy"] == [0.75]
    assert "31.25" not in card.text and "81.25" not in card.text


def test_rows_are_of_weights_and_not_of_names(tmp_path, run, exported, monkeypatch):
    teacher = Path(Run.load(run).content["teacher"]["name"])
    monkeypatch.chdir(teacher.parent)
    results = [
        result_of("t", name=teacher.name, score=0.875),  # the same folder, as seen from another one
        result_of(exported.fingerprint),
        result_of("a" * 32, name="first/fitnet", score=0.25),
        result_of("b" * 32, name="second/fitnet", score=0.5),
    ]
    table = results_table(results, exported.fingerprint, str(teacher), "student")
    assert [(row.model, row.scores[0]) for row in table.rows] == [
        ("teacher: teacher", "87.50 %"),
        ("student", "75.00 %"),
        ("fitnet (weights aaaaaaaa)", "25.00 %"),
        ("fitnet (weights bbbbbbbb)", "50.00 %"),
    ]


def test_a_dataset_without_a_recorded_revision_is_no_hub_id(exported):
    result = result_of(exported.fingerprint, dataset="mine/pets")
    assert eval_results([result], False)[0].dataset_type == "mine/pets"
    result.task["revision"] = None
    assert eval_results([result], False)[0].dataset_type == "pets"
    assert eval_results([result], False)[0].dataset_split is None


def test_the_teachers_licence_stands_in_the_card(run, exported):
    license = License("mit", "as its author states", sources={"teacher": "cc-by-nc-4.0"})
    assert "parameters, licence `cc-by-nc-4.0`\n" in model_card(facts(run, exported, license=license)).text
    assert "parameters\n" in model_card(facts(run, exported)).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"config": {"model": "x"}, "recommendation": {"sentence": "s"}, "teacher": {"images": 1}}, "refinements"),
        ({}, "config"),
    ],
)
def test_a_diagnosis_that_lacks_a_part(tmp_path, content, message):
    (tmp_path / "diagnosis.json").write_text(json.dumps(content))
    with pytest.raises(DiagnosisError, match=f"cannot be read as a diagnosis: KeyError.*{message}"):
        card_diagnosis(tmp_path, "run", "x")


def test_a_classifier_has_its_own_results_and_tag(run, exported):
    labels = ("cat", "dog", *HOSTILE)
    model = ExportedModel(**vars(exported) | {"labels": labels, "model_class": "ViTForImageClassification"})
    own = result_of(
        exported.fingerprint,
        score=0.8125,
        model={"name": "x", "fingerprint": exported.fingerprint, "feature": "input of the classifier of ViT…"},
    )
    card = model_card(facts(run, model, results=[result_of(exported.fingerprint), own]))
    assert card.data.pipeline_tag == "image-classification"
    assert [e.metric_value for e in card.data.eval_results if e.metric_type == "accuracy"] == [0.8125]
    assert 'pipeline("image-classification", model="user/student")' in card.text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_outside_break_neither_metadata_nor_text(run, exported, name):
    plain = model_card(facts(run, exported, results=[result_of(exported.fingerprint)], training_data="x"))
    record = record_of(run, teacher={"name": name}, options={"objective": name, name: name}, objective=name)
    card = model_card(
        facts(
            run,
            exported,
            run=record,
            license=License("mit", name),
            results=[result_of(exported.fingerprint, task=name), result_of("b", name=name, task=name)],
            pictures=[Picture("images/a.png", name)],
            widget=[Picture("examples/a.png", name)],
            tags=[name],
            training_data=name,
            evaluation_note=name,
            limits_note=name,
        )
    )
    assert metadata_errors(card.content) == ([], [])
    assert ModelCard(card.content).content == card.content
    assert name in card.data.tags and card.data.widget[0]["example_title"] == name
    html, before = rendered(card), rendered(plain)
    assert "<script" not in html and "<img src=x" not in html and 'href="javascript' not in html
    # Nothing became a heading, a rule, a code block, or took a section's end away; what is new are rows and a picture.
    for tag in ("<h1", "<h2", "<hr", "<pre", "<table", "<strong"):
        extra = 1 if tag == "<h2" else 0  # "Artifacts", of the picture
        assert html.count(tag) == before.count(tag) + extra, tag
    assert card.text.count("<!-- singer_hf begin") == card.text.count("<!-- singer_hf end") == 7


def test_a_record_holds_nobodys_folders_and_tokens(run, exported):
    record = record_of(
        run,
        options={"teacher": "/home/ann/secret/teacher", "api_key": "abc", "eval_note": "hf_" + "a" * 34},
        arguments={
            "output_dir": "/home/ann/runs",
            "lr_scheduler_kwargs": {
                "hub_token": "tok",
                "table": ["/home/ann/table"],
                "/home/ann/key": {"a": "/home/b"},
            },
        },
    )
    text = model_card(facts(run, exported, run=record)).content
    assert not any(secret in text for secret in ("/home", "ann/", "abc", "hf_aaa", '"tok"', str(run.parent)))


def test_teacher_from_the_hub_is_the_base_model(run, exported):
    commit = "0123456789abcdef0123456789abcdef01234567"
    record = record_of(run, teacher={"name": "facebook/dinov2-large", "revision": commit})
    card = model_card(facts(run, exported, run=record))
    assert card.data.base_model == ["facebook/dinov2-large"] and card.data.get("base_model_relation") is None
    assert f"revision `{commit}`" in card.text
    adapter = {"auto_mapping": {"base_model_class": "Dinov2Model"}}
    adapters = model_card(facts(run, None, run=record, adapter=adapter))
    assert adapters.data.base_model_relation == "adapter" and adapters.data.library_name == "peft"
    assert 'Dinov2Model.from_pretrained("facebook/dinov2-large"' in adapters.text
    assert metadata_errors(adapters.content) == ([], [])


def test_a_local_teacher_is_no_base_model(run, exported):
    card = model_card(facts(run, exported))
    assert card.data.base_model is None and "`teacher` (a model that is not on the Hub)" in card.text


def test_emissions_are_those_of_codecarbons_file(tmp_path, run, exported):
    path = tmp_path / "emissions.csv"
    path.write_text(
        "timestamp,emissions,energy_consumed,country_name,cpu_model,gpu_model\n"
        "1,0.5,1.5,Norway,a CPU,\n2,0.0123,0.25,Norway,a CPU,1 x H100\n"
    )
    card = model_card(facts(run, exported, emissions=Emissions.load(path)))
    assert card.data.co2_eq_emissions["emissions"] == pytest.approx(12.3)
    assert card.data.co2_eq_emissions["hardware_used"] == "1 x H100"
    assert "12.3 g CO₂eq, 0.25 kWh" in card.text
    path.write_text("a,b\n1,2\n")
    with pytest.raises(EmissionsError, match="is not codecarbon's emissions.csv"):
        Emissions.load(path)


def test_a_licence_that_is_not_known_is_left_out_and_said_so(run, exported):
    card = model_card(facts(run, exported, license=License(None, "that of its teacher is not known")))
    assert "license" not in card.data.to_dict()
    assert "No licence is stated: that of its teacher is not known." in card.text


def test_a_folder_without_a_record(tmp_path):
    with pytest.raises(RecordError, match="holds no run.json"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RecordError, match="is not the record of a run"):
        Run.load(tmp_path)


def test_what_can_be_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").mkdir()
    assert is_hub_id("timm/vit_large_patch16_224.augreg_in21k_ft_in1k") and is_hub_id("gpt2")
    assert not any(
        is_hub_id(name) for name in (None, "", "runs/teacher", "/a/b", "./a", "a/b/c", "a/b.parquet", "a|b")
    )
    assert shown_name("/home/ann/teacher/") == "teacher" and shown_name("a/b") == "a/b"


def test_the_record_in_the_card_is_the_runs(run, exported):
    content = json.loads((run / "run.json").read_text())
    text = model_card(facts(run, exported)).text
    for name, value in content["options"].items():
        shown = f"| `{name}` | `{value if isinstance(value, str) else json.dumps(value)}` |"
        hidden = re.match("output_dir|logging|save|report|disable|per_device_eval", name)
        assert hidden or shown in text
    assert content["sessions"][0]["versions"]["torch"] in text


CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/README.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_cards_of_this_project_are_valid(path):
    card = ModelCard.load(path)
    assert metadata_errors(card.content) == ([], [])
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert all((path.parent / picture).exists() for picture in pictures)


def test_scores_in_the_cards_of_this_project_are_recorded():
    """`benchmarks/results/cards` holds the evaluations that they were made from."""
    recorded = results_in(Path(__file__).parents[2] / "benchmarks" / "results" / "cards")
    scores = {f"{100 * result.value:.2f} %" for result in recorded}
    rows = [line for path in CARDS for line in path.read_text().splitlines() if re.match(r"\|.*\d %", line)]
    assert len(rows) >= 6 and {score for row in rows for score in re.findall(r"[\d.]+ %", row)} == scores
    values = {value for result in recorded for value in result.scores.values()}
    for path in CARDS:
        entries = ModelCard.load(path).data.eval_results or []
        assert {entry.metric_value for entry in entries} <= values


def test_the_template_in_model_cards_is_the_packages():
    package, shown = resources.files("singer_hf.release") / "templates", CARDS[0].parents[1]
    assert (shown / "model_card.md.jinja").read_text() == (package / "model_card.md.jinja").read_text()
