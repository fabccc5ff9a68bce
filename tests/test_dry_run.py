import torch
from runs import trainer_of, weights

from singer_hf import estimate_run


def test_an_estimate_counts_what_is_there_and_changes_nothing(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2)
    before, state = weights(trainer), torch.get_rng_state()
    estimate = estimate_run(trainer)
    assert estimate.layers == [(2, 1), (3, 2)]
    assert estimate.parameters["adapter"] == 2 * 2 * 4 * 32
    assert estimate.parameters["projectors and others"] == 2 * (16 * 32 + 32)
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert estimate.parameters["trainable in all"] == trainable
    assert estimate.memory["AdamW's moments"] == 8 * trainable
    assert estimate.memory["kept for backward"] > 8 * 17 * 16 * 4
    assert estimate.steps == 3 * 2  # 32 images, 8 a batch, 2 batches a step
    assert estimate.total_batch_size == 16
    assert all(torch.equal(tensor, weights(trainer)[name]) for name, tensor in before.items())
    assert all(p.grad is None for p in trainer.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_more_images_keep_more_for_backward(tmp_path):
    kept = [
        estimate_run(trainer_of(tmp_path, per_device_train_batch_size=batch)).memory["kept for backward"]
        for batch in (4, 8)
    ]
    assert 1.8 < kept[1] / kept[0] < 2.2


def test_activation_checkpointing_keeps_less(tmp_path):
    kept = [
        estimate_run(trainer_of(tmp_path, gradient_checkpointing=option)).memory["kept for backward"]
        for option in (False, True)
    ]
    assert kept[1] < kept[0]


def test_the_report_names_the_mapping(tmp_path):
    text = str(estimate_run(trainer_of(tmp_path)))
    assert "teacher block 3 of 4  ->  student block 2 of 3" in text
    assert "layernorm.weight" in text
    assert "2 steps of 8 images" in text
