"""`push_to_hub` of the trainer: what is released, our card, no pickled arguments, no token anywhere."""

import json
import threading

import pytest
from huggingface_hub import ModelCard
from runs import trainer_of

from singer_hf.release import PublishError, training
from singer_hf.secrets import without_tokens

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
    deleted, publish_checkpoint = threading.Event(), training.publish_checkpoint

    def late(*args):
        assert deleted.wait(60)
        return publish_checkpoint(*args)

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


def test_tokens_are_in_no_file(online, trainer, tmp_path):
    trainer = trainer(push_to_hub=True, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.args.optim_args = {"deep": {"api_token": "secret-of-mine"}}
    trainer.push_to_hub()
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    published = list(online.files("user/student").values())
    secrets = online.token.encode(), b"secret-of-mine"
    assert written and published and not any(secret in data for data in written + published for secret in secrets)


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
