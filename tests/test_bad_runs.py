"""Mistakes stop a run with one clear error, before the first step where they can be known then."""

import math

import pytest
import torch
from families import tiny_vit, vit_processor
from images import image_dataset, with_corrupt_image
from runs import arguments, trainer_of, two_adapters
from transformers import (
    TrainerCallback,
)

from singer_hf import (
    DistillationTrainer,
    NullspaceLoraConfig,
)


def test_two_active_adapters_are_refused(tmp_path):
    teacher = two_adapters()
    teacher.base_model.set_adapter(["default", "mine"])
    with pytest.raises(ValueError, match=r"\['default', 'mine'\] are active: use set_adapter"):
        trainer_of(tmp_path, teacher)


def test_a_teacher_with_an_adapter_and_another_configuration(tmp_path):
    with pytest.raises(ValueError, match="already carries an adapter"):
        trainer_of(tmp_path, two_adapters(), config=NullspaceLoraConfig(r=2))


def test_the_default_rank_is_not_cut_to_the_width_in_silence(tmp_path):
    with pytest.raises(ValueError, match="rank r=64 is above the model's width 32"):
        DistillationTrainer(
            tiny_vit(),
            tiny_vit(),
            arguments(tmp_path),
            train_dataset=image_dataset(),
            processing_class=vit_processor(),
        )


def test_an_empty_stream(tmp_path):
    stream = image_dataset(8).to_iterable_dataset().take(0)
    with pytest.raises(ValueError, match="stream is empty"):
        trainer_of(tmp_path, dataset=stream, dataloader_num_workers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outlier_quantile": 1.0}, "strictly between 0 and 1, got 1.0"),
        ({"objective": "kd"}, "expected one of fitnet, singer"),
        ({"projector": "mlp"}, "expected one of linear, identity"),
        ({"normalization": "none"}, "expected one of own, imagenet"),
        ({"kd_weight": -1.0}, "kd_weight must not be negative"),
        ({"data_timeout": math.inf}, "data_timeout must be a finite number, got inf"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number, got nan"),
        ({"layer_matching": "best"}, "expected one of paper, reference"),
        ({"min_crop_scale": 0.0}, r"min_crop_scale must lie in \(0, 1\]"),
        ({"remove_unused_columns": True}, "would drop the image column"),
        ({"teacher_layers": [4], "objective": "fitnet"}, "teacher layer 4 is out of range: the model has 4 blocks"),
        ({"teacher_layers": [3], "student_layers": [3]}, "student layer 3 is out of range: the model has 3 blocks"),
        ({"image_column": "img"}, "no column 'img'; its columns are 'image', 'label'"),
        ({"teacher_layers": []}, "teacher_layers is empty"),
        ({"vitkd_mask_ratio": 1.0}, "vitkd_mask_ratio must lie strictly between 0 and 1"),
        ({"per_device_train_batch_size": 64}, "32 training images do not fill one batch of 64"),
    ],
)
def test_bad_options_stop_before_the_first_step(tmp_path, options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        trainer_of(tmp_path, **options)


def test_layers_named_twice_and_differently(tmp_path):
    with pytest.raises(ValueError, match=r"teacher_layers=\[1, 3\] but the adapter sits on \[2, 3\]"):
        trainer_of(tmp_path, config=NullspaceLoraConfig(r=4, layers_to_transform=[2, 3]), teacher_layers=[1, 3])


def test_an_adapter_for_an_objective_that_uses_none(tmp_path):
    with pytest.raises(ValueError, match="objective='fitnet' uses no adapter"):
        trainer_of(tmp_path, objective="fitnet", config=NullspaceLoraConfig(r=4))


def test_an_empty_dataset(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        trainer_of(tmp_path, dataset=image_dataset().select([]))


def test_a_corrupt_image_stops_the_run(tmp_path):
    trainer = trainer_of(tmp_path, dataset=with_corrupt_image(image_dataset(), 5), max_steps=4)
    with pytest.raises(ValueError, match=r"5.*skip_corrupt_images"):
        trainer.train()


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    next(iter(model.objective.parameters())).fill_(math.nan)

    trainer = trainer_of(tmp_path, max_steps=4, callbacks=[Poison()])
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2 \(loss_kd = nan, loss_outlier = [\d.e-]+"):
        trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.student.state_dict().values())


def test_processes_that_do_not_see_each_other(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    assert args.world_size == 1  # set up before the environment changes
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched but they do not see each other"):
        DistillationTrainer(tiny_vit(), tiny_vit(), args, train_dataset=image_dataset())


def test_several_gpus_in_one_process(tmp_path):
    args = arguments(tmp_path)
    assert args.n_gpu == 0
    args._n_gpu = 2
    with pytest.raises(ValueError, match="accelerate launch --multi_gpu --num_processes 2"):
        DistillationTrainer(tiny_vit(), tiny_vit(), args, train_dataset=image_dataset())


def test_models_without_an_image_processor(tmp_path):
    with pytest.raises(ValueError, match="Neither model comes with an image processor"):
        DistillationTrainer(tiny_vit(), tiny_vit(), arguments(tmp_path), train_dataset=image_dataset())
