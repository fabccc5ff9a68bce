import pytest
import torch
from families import FAMILIES, tiny_model, tiny_vit
from peft import get_peft_model
from runs import arguments, assert_same_weights, trainer_of, weights

from singer_hf import (
    DistillationArguments,
    DistillationTrainer,
    NullspaceLoraConfig,
    StudentSize,
    build_student,
    vision_backbone,
)
from singer_hf.objectives import OBJECTIVES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_a_training_step_as_teacher_and_student(tmp_path, family):
    teacher = tiny_model(family)
    frozen = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = build_student(teacher.config, StudentSize(24, 2, 2))
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainer = trainer_of(tmp_path, teacher, student, max_steps=1)
    trainer.train()
    block = vision_backbone(trainer.student).blocks_path + ".0."
    moved = [n for n, t in trainer.student.state_dict().items() if not torch.equal(t, start[n])]
    assert any(block in name for name in moved)
    plain = trainer.teacher.unload().state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_logs_its_terms_one_by_one(tmp_path, objective):
    trainer = trainer_of(tmp_path, objective=objective)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        terms = [value for name, value in entry.items() if name.startswith("loss_")]
        assert sum(terms) == pytest.approx(entry["loss"], rel=1e-4)
        assert "outlier_norm_share_before" in entry
    assert ("peak_to_median_after" in entries[0]) == objective.startswith("singer")


def test_training_lowers_the_loss_and_moves_all_that_trains(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=30, logging_steps=5)
    start = weights(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    unmoved = [name for name, tensor in weights(trainer).items() if torch.equal(tensor, start[name])]
    assert all(name.removeprefix("student.") in ("layernorm.weight", "layernorm.bias") for name in unmoved)
    assert sorted(trainer.untrained) == ["student.layernorm.bias", "student.layernorm.weight"]


def test_the_teacher_stays_in_eval_mode(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.model.train()
    assert trainer.model.student.training
    assert not any(module.training for module in trainer.teacher.modules())


def test_the_papers_recipe_is_the_default(tmp_path):
    args = DistillationArguments(str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-3, 1e-4, 0.0)
    assert (args.adam_beta1, args.adam_beta2, args.num_train_epochs) == (0.9, 0.999, 100)
    assert (args.kd_weight, args.outlier_weight, args.info_weight, args.outlier_quantile) == (1.0, 0.01, 1.0, 0.97)
    trainer = trainer_of(tmp_path, max_steps=-1, num_train_epochs=100, warmup_steps=args.warmup_steps)
    trainer.create_optimizer_and_scheduler(400)
    rates = []
    for _ in range(401):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert max(rates) == rates[20] == pytest.approx(1e-3)  # after 5 of 100 epochs
    assert rates[400] == pytest.approx(1e-7)
    assert rates[210] == pytest.approx((1e-3 + 1e-7) / 2)
    decayed = {group["weight_decay"] for group in trainer.optimizer.param_groups if group["params"]}
    assert decayed == {1e-4}


def test_the_adapter_has_its_own_learning_rate_on_the_same_schedule(tmp_path):
    trainer = trainer_of(tmp_path, learning_rate=1e-3, adapter_learning_rate=5e-5, decay_all_parameters=False)
    trainer.create_optimizer_and_scheduler(10)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    found = [id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert sorted(found) == sorted(names)  # each of them once
    for expected in (1.0, (1 + 1e-4) / 2):  # at the start of the cosine, and half way
        for group in trainer.optimizer.param_groups:
            own = {names[id(parameter)].startswith("teacher.") for parameter in group["params"]}
            assert len(own) < 2 and group["weight_decay"] in (0.0, 1e-4)
            if own:
                assert group["lr"] == pytest.approx(expected * (5e-5 if own.pop() else 1e-3))
        for _ in range(5):
            trainer.optimizer.step()
            trainer.lr_scheduler.step()


def test_the_students_rate_for_the_adapter_is_the_plain_run(tmp_path):
    runs = [
        trainer_of(tmp_path / str(rate), max_steps=4, learning_rate=2e-3, adapter_learning_rate=rate)
        for rate in (None, 2e-3, 0.0)
    ]
    start = weights(runs[2])
    for trainer in runs:
        trainer.train()
    assert_same_weights(weights(runs[0]), weights(runs[1]))
    unmoved = [name for name, tensor in weights(runs[2]).items() if torch.equal(tensor, start[name])]
    assert {name for name in start if "lora_" in name} == {name for name in unmoved if "lora_" in name}
    assert not any("projectors" in name for name in unmoved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_learning_rate": -1e-4}, "must not be negative"),
        ({"objective": "fitnet", "adapter_learning_rate": 1e-4}, "adapter_learning_rate is .* fitnet has no adapter"),
        ({"objective": "fitnet", "outlier_min_ratio": 2.0}, "outlier_min_ratio is .* fitnet has no adapter"),
        ({"objective": "vitkd", "detach_target": True}, "detach_target is .* vitkd has no adapter"),
        ({"outlier_min_ratio": 1.0}, "outlier_min_ratio is a multiple of the median norm and must be above 1"),
    ],
)
def test_an_adapters_option_that_means_nothing_is_an_error(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("objective", ["singer", "singer_reference"])
@pytest.mark.parametrize(
    ("options", "moves"),
    [
        ({"outlier_weight": 0.0}, True),  # by L_info
        ({"info_weight": 0.0}, True),  # by L_outlier
        ({"info_weight": 0.0, "outlier_min_ratio": 100.0}, False),  # no patch is that long
    ],
)
def test_without_the_feature_losses_gradient_the_adapter_trains_by_the_other_terms(
    tmp_path, objective, options, moves
):
    trainer = trainer_of(tmp_path, objective=objective, detach_target=True, weight_decay=0.0, **options)
    start = weights(trainer)
    trainer.train()
    moved = {name for name, tensor in weights(trainer).items() if not torch.equal(tensor, start[name])}
    adapter = {name for name in start if "lora_" in name}
    assert adapter <= moved if moves else not adapter & moved
    assert any(name.startswith("student.") for name in moved)


def test_an_adapter_that_nothing_trains_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing trains the adapter"):
        trainer_of(tmp_path, detach_target=True, outlier_weight=0.0, info_weight=0.0)


def test_a_given_optimizer_has_no_rate_for_the_adapter(tmp_path):
    args = arguments(tmp_path, adapter_learning_rate=1e-4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="adapter_learning_rate is for the optimizer that Trainer makes"):
        DistillationTrainer(tiny_vit(), tiny_vit(), args, optimizers=(optimizer, None))


def test_gradient_accumulation_equals_the_larger_batch(tmp_path):
    """The mean over two halves; L_outlier's count of outliers is the same in every image."""
    big = trainer_of(tmp_path / "a", per_device_train_batch_size=8)
    small = trainer_of(tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    big.train(), small.train()
    for name, tensor in weights(big).items():
        torch.testing.assert_close(tensor, weights(small)[name], rtol=1e-3, atol=1e-5, msg=name)
    first = [[e["loss"] for e in t.state.log_history if "loss" in e][0] for t in (big, small)]
    assert first[0] == pytest.approx(first[1], rel=1e-6)


def test_workers_do_not_change_a_run(tmp_path):
    alone = trainer_of(tmp_path / "a", max_steps=6)
    helped = trainer_of(tmp_path / "b", max_steps=6, dataloader_num_workers=2, dataloader_persistent_workers=True)
    alone.train(), helped.train()
    assert_same_weights(weights(alone), weights(helped))


def test_one_configuration_for_two_teachers(tmp_path):
    config = NullspaceLoraConfig(r=4)
    for width in (32, 64):
        trainer = trainer_of(tmp_path, tiny_vit(hidden_size=width), config=config, max_steps=1)
        assert vision_backbone(trainer.teacher).hidden_size == width
    assert config == NullspaceLoraConfig(r=4)


@pytest.mark.parametrize(
    ("objective", "teacher_layers", "student_layers"),
    [("singer", [1, 3], [2, 2]), ("vitkd", [0, 1, 3], [0, 0, 2])],
)
def test_a_student_block_learns_from_several_teacher_blocks(tmp_path, objective, teacher_layers, student_layers):
    trainer = trainer_of(
        tmp_path, objective=objective, teacher_layers=teacher_layers, student_layers=student_layers, max_steps=1
    )
    trainer.train()
    assert trainer.model.objective.student_layers == student_layers


def test_the_released_codes_rules_go_with_its_objective(tmp_path):
    trainer = trainer_of(tmp_path, student=tiny_vit(hidden_size=16, num_hidden_layers=4), objective="singer_reference")
    # l / L_T = (1/2, 3/4) meets s / (L_S - 1) = (0, 1/3, 2/3, 1).
    assert trainer.model.objective.teacher_layers == [2, 3]
    assert trainer.model.objective.student_layers == [1, 2]  # the last block of the student is not reached
    assert trainer.teacher.peft_config["default"].init_lora_weights == "reference"


def test_a_teacher_with_an_adapter_goes_on_with_it(tmp_path):
    teacher = get_peft_model(
        tiny_vit(hidden_size=32, num_hidden_layers=4), NullspaceLoraConfig(r=2, layers_to_transform=[1, 2])
    )
    trainer = trainer_of(tmp_path, teacher)
    assert trainer.model.objective.teacher_layers == [1, 2]
    assert vision_backbone(trainer.teacher).blocks[1].lora_A["default"].weight.shape == (2, 32)


def test_bfloat16_stays_close_to_float32(tmp_path):
    losses = []
    for bf16 in (False, True):
        trainer = trainer_of(tmp_path / str(bf16), bf16=bf16, max_steps=10)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[0] != losses[1]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs = []
    for checkpointing in (False, True):
        trainer = trainer_of(tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        trainer.train()
        runs.append(weights(trainer))
    blocks = vision_backbone(trainer.student).blocks
    assert all(block.gradient_checkpointing for block in blocks)
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_one(tmp_path):
    runs = []
    for compiled in (False, True):
        trainer = trainer_of(tmp_path / str(compiled), torch_compile=compiled, max_steps=3)
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_tensorboard_gets_every_term(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer_of(tmp_path, report_to="tensorboard").train()
    folder = next((tmp_path / "logs").rglob("events*")).parent
    tags = EventAccumulator(str(folder)).Reload().Tags()["scalars"]
    assert {"train/loss_kd", "train/loss_outlier", "train/loss_info", "train/peak_to_median_after"} <= set(tags)
