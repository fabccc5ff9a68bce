"""`push_to_hub` of the trainer: what is released, our card, no pickled arguments, no token anywhere."""

import json
import threading

import pytest
from huggingface_hub import HfApi, ModelCard
from runs import trainer_of

from singer_hf.records.secrets import without_tokens
from singer_hf.release import Destination, PublishError, ResultsError, training
from singer_hf.release.destination import make_repository
from singer_hf.release.training import card_facts, publish_checkpoint

STUDENT = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
BESIDE = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "distillation.safetensors"}


@pytest.fixture
def trainer(online, tmp_path):
    def build(**options):
        options = {"hub_model_id": "user/student", "hub_token": online.token} | options
        return trainer_of(tmp_path / "run", **options)

    return build


def test_a_push_is_one_commit_with_our_card(online, trainer):
    trainer = trainer()
    trainer.train()
    commit = trainer.push_to_hub("Done", license="mit", tags=["mine"])
    files = online.files("user/student")
    assert set(files) == STUDENT | BESIDE
    assert online.repos["user/student"].private
    assert online.repos["user/student"].messages == ["initial commit", "Done"]
    assert commit.oid == online.repos["user/student"].branches["main"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers" and card.data.license == "mit" and "mine" in card.data.tags
    assert "hidden_states[-1]" in card.text and "2 steps on 16 images" in card.text


def test_pushes_in_training_hold_what_checkpoints_hold(online, trainer):
    trainer = trainer(push_to_hub=True, save_strategy="steps", save_steps=1, max_steps=2, hub_always_push=True)
    assert online.repos["user/student"].private  # made before the training, so that a missing right is told then
    trainer.train()
    trainer._finish_current_push()
    messages = online.repos["user/student"].messages
    assert messages == ["initial commit", "Training in progress, step 1", "Training in progress, step 2"]
    assert set(online.files("user/student")) == STUDENT | BESIDE
    trainer.push_to_hub(blocking=False).result()
    assert not any(name.endswith(".bin") for name in online.files("user/student"))


def test_a_checkpoint_to_resume_from_is_pushed_where_that_is_asked_for(online, trainer):
    trainer = trainer(push_to_hub=True, save_strategy="steps", save_steps=2, hub_strategy="checkpoint")
    trainer.train()
    trainer._finish_current_push()
    files = set(online.files("user/student"))
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} <= files
    assert files >= STUDENT | BESIDE and not any(name.endswith("training_args.bin") for name in files)


def test_a_checkpoint_is_pushed_whole_though_it_is_deleted_meanwhile(online, trainer, tmp_path, monkeypatch):
    deleted, original = threading.Event(), training.publish_checkpoint

    def late(*args):
        assert deleted.wait(60)
        return original(*args)

    monkeypatch.setattr(training, "publish_checkpoint", late)
    options = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = trainer(hub_strategy="checkpoint", max_steps=2, **options)
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    assert not (tmp_path / "run" / "checkpoint-1").exists()
    deleted.set()
    trainer.push_in_progress.wait_until_done()
    assert "last-checkpoint/optimizer.pt" in online.files("user/student")
    assert not list((tmp_path / "run").glob(".pushing*"))


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_tokens_are_in_no_file(online, trainer, tmp_path, strategy):
    trainer = trainer(
        push_to_hub=True,
        save_strategy="steps",
        save_steps=1,
        hub_strategy=strategy,
        gradient_checkpointing_kwargs={"deep": {"api_token": "secret-of-mine"}},
    )
    trainer.train()
    trainer.push_to_hub()
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    published = online.files("user/student")
    assert ("last-checkpoint/run.json" in published) is (strategy == "checkpoint")
    secrets = online.token.encode(), b"secret-of-mine"
    assert written and not any(secret in data for data in [*written, *published.values()] for secret in secrets)


@pytest.mark.parametrize("secret", ['{"note": "TOKEN"}', '{"options": {"optim_args": [{"api_key": "mine"}]}}'])
def test_a_checkpoint_with_a_token_is_not_pushed(online, tmp_path, secret):
    destination = Destination("user/student", token=online.token)
    make_repository(destination, destination.api())
    (tmp_path / "run.json").write_text(secret.replace("TOKEN", online.token))
    with pytest.raises(PublishError, match="run.json holds"):
        publish_checkpoint(tmp_path, destination, "last-checkpoint", "A checkpoint")
    assert online.files("user/student") == {}


@pytest.mark.parametrize("request_", ["PUT /lfs/", "POST /api/models/user/student/commit"])
def test_checkpoints_are_pushed_as_patiently(online, tmp_path, waits, request_):
    destination = Destination("user/student", token=online.token)
    make_repository(destination, destination.api())
    (tmp_path / "optimizer.pt").write_bytes(b"state" * 100)
    online.fail(request_, 503, times=2)
    publish_checkpoint(tmp_path, destination, "last-checkpoint", "A checkpoint")
    assert set(online.files("user/student")) == {"last-checkpoint/optimizer.pt"} and len(waits) >= 2


def test_the_published_card_is_amended_and_the_own_one_follows(online, trainer, tmp_path):
    trainer = trainer(push_to_hub=True, save_strategy="no")
    trainer.train()
    trainer.push_to_hub()
    api = HfApi(endpoint=online.url, token=online.token)
    text = online.files("user/student")["README.md"].decode()
    edited = text.replace("## Training", "## Training\n\nOn the Hub.").encode()
    api.upload_file(path_or_fileobj=edited, path_in_repo="README.md", repo_id="user/student")
    trainer.push_to_hub(license="mit")
    card = tmp_path / "run" / "README.md"
    published = online.files("user/student")["README.md"].decode()
    assert "On the Hub." in published and "license: mit" in published and card.read_text() == published
    card.write_text(published.replace("## Citation", "## Citation\n\nHere."))
    trainer.push_to_hub(license="mit")
    published = online.files("user/student")["README.md"].decode()
    assert "Here." in published and "On the Hub." in published
    card.write_text(published.replace("Here.", "Here again."))
    edited = published.replace("On the Hub.", "On the Hub again.").encode()
    api.upload_file(path_or_fileobj=edited, path_in_repo="README.md", repo_id="user/student")
    with pytest.raises(PublishError, match="both edited by hand"):
        trainer.push_to_hub()
    assert online.files("user/student")["README.md"] == edited and "Here again." in card.read_text()


def test_a_model_that_somebody_else_published_is_not_written_over(online, trainer):
    api = HfApi(endpoint=online.url, token=online.token)
    api.create_repo("user/student")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/student")
    with pytest.raises(PublishError, match="was not published by singer_hf"):
        trainer(push_to_hub=True)
    with pytest.raises(PublishError, match="was not published by singer_hf"):
        trainer().push_to_hub()
    assert online.files("user/student") == {"config.json": b"{}"}


def test_an_export_that_fails_does_not_end_the_training(online, trainer, caplog, monkeypatch):
    def broken(*args, **options):
        raise ResultsError("of other weights")

    monkeypatch.setattr("singer_hf.release.training.student_folder", broken)
    trainer = trainer(push_to_hub=True, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.state.global_step == 2
    assert any("Not pushed: ResultsError: of other weights" in record.getMessage() for record in caplog.records)


def test_a_failed_push_does_not_end_the_training_and_is_told(online, trainer, caplog):
    trainer = trainer(push_to_hub=True, save_strategy="steps", save_steps=1, max_steps=2)
    online.fail("POST /api/models/user/student/commit", 403, times=99)
    trainer.train()
    trainer._finish_current_push()
    assert trainer.state.global_step == 2
    assert any("Not pushed: This access token may not write" in record.getMessage() for record in caplog.records)
    with pytest.raises(PublishError, match="may not write"):
        trainer.push_to_hub()
    assert online.files("user/student") == {}


def test_without_the_right_to_push_nothing_is_trained(online, trainer):
    with pytest.raises(PublishError, match="may not write to company/student"):
        trainer(push_to_hub=True, hub_model_id="company/student")


def test_a_card_without_a_push(online, trainer, tmp_path):
    trainer = trainer(hub_model_id=None)
    trainer.train()
    trainer.save_model()
    card = tmp_path / "run" / "README.md"
    trainer.create_model_card("user/student")
    card.write_text(card.read_text().replace("## Training", "## Training\n\nBy hand."))
    trainer.create_model_card("user/student")
    assert card.read_text().count("By hand.") == 1 and online.requests == []


def test_tokens_are_left_out_however_deep():
    content = {"hub_token": "a", "deep": [{"x_api_key": "b", "password": None, "keep": "c"}], "note": "hf_" + "d" * 34}
    text = json.dumps(without_tokens(content))
    assert '"a"' not in text and '"b"' not in text and "hf_d" not in text and '"c"' in text
    assert without_tokens({"average_tokens_across_devices": True}) == {"average_tokens_across_devices": True}


def test_facts_of_a_card_as_trainer_takes_them():
    given = {"tags": "mine", "dataset_tags": "user/pets", "language": None, "license": "mit"}
    assert card_facts(given) == {"tags": ["mine"], "datasets": ["user/pets"], "license": "mit"}
    for name in ("language", "finetuned_from", "tasks", "dataset", "dataset_args"):
        with pytest.raises(TypeError, match=f"^{name} cannot be said in a card"):
            card_facts({name: "x"})
    with pytest.raises(TypeError, match="^licence is no fact of a card: expected some of license, "):
        card_facts({"licence": "mit"})
