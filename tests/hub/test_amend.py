"""A card that exists is amended and not overwritten."""

import pytest
from huggingface_hub import ModelCard
from released import MIT, result_of

from singer_hf.release import CardFacts, License, Run, amend, model_card


@pytest.fixture
def card(run, exported):
    def build(**changes):
        facts = {"repo_id": "user/student", "run": Run.load(run), "license": MIT, "model": exported} | changes
        return model_card(CardFacts(**facts))

    return build


def test_a_card_amended_by_itself_is_itself(card):
    generated = card()
    amended, kept = amend(ModelCard(generated.content), generated)
    assert amended.content == generated.content and kept == []
    assert amend(ModelCard(amended.content.replace("\n", "\r\n")), generated)[1] == []


def test_changed_line_ends_hide_no_section(card, exported):
    with_results = card(results=[result_of(exported.fingerprint)])
    amended, kept = amend(ModelCard(card().content.replace("\n", "\r\n")), with_results)
    assert "75.00 %" in amended.text and kept == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<!-- singer_hf end citation -->", ""),
        ("singer_hf begin citation", "singer_hf begin"),
        (" -->\n", ""),
        ("---", "--"),
    ],
)
def test_a_damaged_card_is_refused(card, before, after):
    generated = card()
    cut = generated.content.rstrip()[:-4] if before == " -->\n" else generated.content.replace(before, after, 1)
    with pytest.raises(ValueError, match="The card is damaged"):
        amend(ModelCard(cut), generated)


def test_text_by_hand_stays_where_it_stands_and_sections_follow_the_records(card, exported):
    first = card().content
    by_hand = first.replace("# student\n", "# student\n").replace(
        "<!-- singer_hf begin training", "## My own words\n\nRead me first.\n\n<!-- singer_hf begin training"
    )
    amended, kept = amend(ModelCard(by_hand), card(results=[result_of(exported.fingerprint)]))
    assert amended.text.count("Read me first.") == 1 and "75.00 %" in amended.text and kept == []
    assert amended.text.index("75.00 %") < amended.text.index("Read me first.") < amended.text.index("## Training")
    assert [e.metric_value for e in amended.data.eval_results] == [0.75, 0.9375, 0.625]


def test_a_section_edited_by_hand_is_kept_and_said_so(card):
    by_hand = card().content.replace("Distillation uses no labels", "It knows no labels")
    amended, kept = amend(ModelCard(by_hand), card(license=License("apache-2.0", "as its author states")))
    assert "It knows no labels" in amended.text and "Distillation uses no labels" not in amended.text
    assert len(kept) == 1 and "'limits' was edited by hand" in kept[0]
    again, kept = amend(ModelCard(amended.content), card())
    assert "It knows no labels" in again.text and len(kept) == 1


def test_a_section_removed_by_hand_stays_away(card):
    text = card().content
    start, end = text.index("<!-- singer_hf begin citation"), text.index("<!-- singer_hf end citation -->")
    amended, _ = amend(ModelCard(text[:start] + text[end + len("<!-- singer_hf end citation -->") :]), card())
    assert "bibtex" not in amended.text


def test_a_card_written_by_hand_keeps_every_word_and_key(card, exported):
    mine = ModelCard(
        "---\nlicense: cc-by-4.0\nlanguage: en\ntags:\n- mine\n- vit\nmodel-index:\n- name: mine\n  results:\n"
        "  - task:\n      type: image-classification\n    dataset:\n      name: Beans\n      type: beans\n"
        "    metrics:\n"
        "    - type: accuracy\n      value: 0.9\n---\n# My student\n\nWritten by me.\n"
    )
    amended, kept = amend(mine, card(results=[result_of(exported.fingerprint)]))
    assert amended.text.startswith("# My student\n\nWritten by me.\n") and "## Use" in amended.text
    data = amended.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["language"] == "en" and data["pipeline_tag"]
    assert data["tags"][:2] == ["mine", "vit"] and data["tags"].count("vit") == 1 and "singer" in data["tags"]
    assert any("'license' was set by hand to 'cc-by-4.0'" in sentence for sentence in kept)
    values = {(e.dataset_name, e.metric_value) for e in amended.data.eval_results}
    assert {("Beans", 0.9), ("pets", 0.75)} <= values
    again, _ = amend(ModelCard(amended.content), card(results=[result_of(exported.fingerprint, score=0.5)]))
    values = {(e.dataset_name, e.metric_value) for e in again.data.eval_results}
    assert {("Beans", 0.9), ("pets", 0.5)} <= values and ("pets", 0.75) not in values
    assert again.text.count("Written by me.") == 1 and again.text.count("## Use") == 1


def test_generated_metadata_follows_and_metadata_by_hand_wins(card):
    first = card(tags=["old"], license=License(None, "not known"))
    follows, kept = amend(ModelCard(first.content), card(tags=["new"]))
    assert follows.data.license == "mit" and kept == []
    assert "new" in follows.data.tags and "old" not in follows.data.tags
    by_hand = ModelCard(follows.content)
    by_hand.data.license = "apache-2.0"
    by_hand.data.tags = [tag for tag in by_hand.data.tags if tag != "singer"] + ["by-hand"]
    by_hand.data.pop("pipeline_tag")
    again, kept = amend(ModelCard(by_hand.content), card(tags=["new"]))
    assert again.data.license == "apache-2.0" and "by-hand" in again.data.tags and "singer" not in again.data.tags
    assert again.data.pipeline_tag is None and any("'license'" in sentence for sentence in kept)


def test_results_by_hand_win_one_by_one(card, exported):
    def results(**scores):
        return [
            result_of(exported.fingerprint, task=task, dataset=f"user/{task}", score=score)
            for task, score in scores.items()
        ]

    def accuracies(card):
        found = card.data.eval_results
        return {e.dataset_name: e.metric_value for e in found if e.metric_type == "accuracy"}

    by_hand = ModelCard(card(results=results(pets=0.75, cars=0.5, birds=0.25, food=0.125)).content)
    edited = [e for e in by_hand.data.eval_results if e.dataset_name != "birds"]  # taken out
    for entry in edited:
        if entry.dataset_name == "cars" and entry.metric_type == "accuracy":
            entry.metric_value = 0.625
    by_hand.data.eval_results = edited
    again = card(results=results(pets=0.875, cars=0.5, birds=0.25, planes=1.0))
    amended, kept = amend(ModelCard(by_hand.content), again)
    assert accuracies(amended) == {"pets": 0.875, "cars": 0.625, "planes": 1.0}
    assert len(kept) == 1 and "'cars'" in kept[0] and "0.625" in kept[0] and "accuracy 0.5" in kept[0]
    assert amend(ModelCard(amended.content), again)[0].content == amended.content
