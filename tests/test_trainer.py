import json
import math
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
import torch
from families import FAMILIES, TIMM, crop_processor, tiny_model, tiny_vit, vit_processor
from images import image_dataset, with_corrupt_image
from peft import PeftModel, get_peft_model
from transformers import (
    AutoImageProcessor,
    AutoModel,
    EarlyStoppingCallback,
    TimmWrapperImageProcessor,
    TrainerCallback,
)

from singer_hf import (
    DistillationArguments,
    DistillationTrainer,
    NullspaceLoraConfig,
    StudentSize,
    build_student,
    load_vision_model,
    vision_backbone,
)
from singer_hf.objectives import OBJECTIVES


def arguments(folder, **options):
    defaults = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "warmup_steps": 0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DistillationArguments(str(folder), **(defaults | options))


def trainer_of(folder, teacher=None, student=None, *, dataset=None, config=None, **options):
    evaluation = options.pop("eval_dataset", None)
    callbacks = options.pop("callbacks", None)
    args = arguments(folder, **options)
    if config is None and OBJECTIVES[args.objective].uses_adapter and not isinstance(teacher, PeftModel):
        config = NullspaceLoraConfig(r=4, init_lora_weights=OBJECTIVES[args.objective].default_init_lora_weights)
    torch.manual_seed(0)
    return DistillationTrainer(
        student or tiny_vit(hidden_size=16, num_hidden_layers=3),
        teacher or tiny_vit(hidden_size=32, num_hidden_layers=4),
        args,
        train_dataset=dataset if dataset is not None else image_dataset(),
        eval_dataset=evaluation,
        processing_class=vit_processor(),
        teacher_processing_class=vit_processor(),
        peft_config=config,
        callbacks=callbacks,
    )


def weights(trainer):
    """All that a run changes."""
    return {
        name: tensor.clone()
        for name, tensor in trainer.model.state_dict().items()
        if not name.startswith("teacher.") or "lora_" in name
    }


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


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


@pytest.mark.parametrize("objective", ["singer", "vitkd"])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(tmp_path, objective):
    options = {"objective": objective, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "warmup_steps": 2}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    again = trainer_of(tmp_path / "again", **options)
    with torch.no_grad():  # nothing of the new process's own values may survive
        for parameter in again.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_weights(weights(whole), weights(again))
    histories = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert histories[0] == histories[1]


def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_exactly(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:  # epochs of 4 steps
                control.should_save = control.should_training_stop = True

    options = {"max_steps": 10}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    stopped = trainer_of(tmp_path / "stopped", callbacks=[Stop()], **options)
    stopped.train()
    again = trainer_of(tmp_path / "stopped", **options)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole), weights(again))


@pytest.mark.parametrize("step", [2, 6, 8, 10])
def test_a_streamed_run_resumes_exactly_in_whichever_pass(tmp_path, step):
    def stream():
        return image_dataset(32).to_iterable_dataset()  # 4 batches a pass

    options = {"max_steps": 12, "shuffle_buffer_size": 8, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", dataset=stream(), **options)
    whole.train()
    again = trainer_of(tmp_path / "again", dataset=stream(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert_same_weights(weights(whole), weights(again))


def two_adapters():
    teacher = get_peft_model(
        tiny_vit(hidden_size=32, num_hidden_layers=4), NullspaceLoraConfig(r=2, layers_to_transform=[0, 3])
    )
    teacher.add_adapter("mine", NullspaceLoraConfig(r=3, layers_to_transform=[1, 2]))
    teacher.set_adapter("mine")
    return teacher


def test_a_run_with_a_named_adapter_resumes_and_its_folder_opens(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", two_adapters(), **options)
    whole.train()
    torch.manual_seed(0)
    again = trainer_of(tmp_path / "again", two_adapters(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(
        {name: tensor for name, tensor in weights(whole).items() if ".default." not in name},
        {name: tensor for name, tensor in weights(again).items() if ".default." not in name},
    )
    folder = tmp_path / "whole" / "checkpoint-4" / "adapter"
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(path.is_dir() for path in folder.iterdir())
    loaded = PeftModel.from_pretrained(tiny_vit(hidden_size=32, num_hidden_layers=4), folder)
    ours = vision_backbone(whole.teacher).blocks[1].lora_A["mine"].weight
    assert torch.equal(vision_backbone(loaded).blocks[1].lora_A["default"].weight, ours)


def test_two_active_adapters_are_refused(tmp_path):
    teacher = two_adapters()
    teacher.base_model.set_adapter(["default", "mine"])
    with pytest.raises(ValueError, match=r"\['default', 'mine'\] are active: use set_adapter"):
        trainer_of(tmp_path, teacher)


def test_a_teacher_with_an_adapter_and_another_configuration(tmp_path):
    with pytest.raises(ValueError, match="already carries an adapter"):
        trainer_of(tmp_path, two_adapters(), config=NullspaceLoraConfig(r=2))


def test_one_configuration_for_two_teachers(tmp_path):
    config = NullspaceLoraConfig(r=4)
    for width in (32, 64):
        trainer = trainer_of(tmp_path, tiny_vit(hidden_size=width), config=config, max_steps=1)
        assert vision_backbone(trainer.teacher).hidden_size == width
    assert config == NullspaceLoraConfig(r=4)


def test_the_default_rank_is_not_cut_to_the_width_in_silence(tmp_path):
    with pytest.raises(ValueError, match="rank r=64 is above the model's width 32"):
        DistillationTrainer(
            tiny_vit(),
            tiny_vit(),
            arguments(tmp_path),
            train_dataset=image_dataset(),
            processing_class=vit_processor(),
        )


def test_a_student_folder_without_an_image_processor_takes_the_teachers(tmp_path):
    tiny_vit(hidden_size=16).save_pretrained(tmp_path / "student")
    trainer = DistillationTrainer(
        str(tmp_path / "student"),
        tiny_vit(),
        arguments(tmp_path / "run"),
        train_dataset=image_dataset(),
        teacher_processing_class=vit_processor(image_mean=[0.1, 0.2, 0.3]),
        peft_config=NullspaceLoraConfig(r=4),
    )
    assert list(trainer.processing_class.image_mean) == [0.1, 0.2, 0.3]


def test_a_checkpoint_opens_as_the_plain_student(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    student = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = trainer.student.eval()(pixels).last_hidden_state
        assert torch.equal(student(pixels).last_hidden_state, expected)
    assert json.loads((folder / "config.json").read_text()).get("use_cache") is None
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.image_mean == vit_processor().image_mean
    names = {path.name for path in folder.iterdir()}
    assert {"adapter", "distillation.safetensors", "optimizer.pt", "rng_state.pth", "training_args.json"} <= names
    assert not any(path.suffix == ".bin" for path in folder.rglob("*"))
    teacher_size = sum(p.numel() for p in tiny_vit(hidden_size=32, num_hidden_layers=4).parameters())
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 4 * teacher_size


def test_a_checkpoints_adapter_refines_the_teacher(tmp_path):
    teacher = tiny_vit(hidden_size=32, num_hidden_layers=4).eval()
    teacher.save_pretrained(tmp_path / "teacher")
    trainer = trainer_of(tmp_path / "run", teacher, save_strategy="steps", save_steps=2)
    trainer.train()
    base = AutoModel.from_pretrained(tmp_path / "teacher", add_pooling_layer=False).eval()
    refined = PeftModel.from_pretrained(base, tmp_path / "run" / "checkpoint-2" / "adapter")
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(refined(pixels).last_hidden_state, trainer.teacher(pixels).last_hidden_state)


def test_a_push_holds_student_processor_adapter_and_card(tmp_path, monkeypatch):
    pushed = []

    def upload_folder(self, *, folder_path, **options):
        files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()}
        pushed.append({file for file in files if not file.startswith("checkpoint-")})
        done = Future()
        done.set_result(None)
        return done

    def create_repo(self, repo_id, **options):
        return SimpleNamespace(repo_id=f"user/{repo_id}")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    trainer = trainer_of(
        tmp_path, push_to_hub=True, hub_strategy="every_save", save_strategy="steps", save_steps=1, max_steps=2
    )
    trainer.train()
    trainer.push_to_hub()
    wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "distillation.safetensors"}
    wanted |= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert len(pushed) == 3
    assert all(wanted <= files for files in pushed)
    assert "README.md" in pushed[-1]


def test_tokens_are_not_written(tmp_path):
    trainer = trainer_of(tmp_path, hub_token="hf_secret")
    trainer.save_model()
    assert not any("hf_secret" in path.read_text(errors="ignore") for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("label_column", [None, "label"])
def test_evaluation_scores_a_held_out_split(tmp_path, label_column):
    trainer = trainer_of(tmp_path, eval_dataset=image_dataset(21, seed=1), label_column=label_column)
    metrics = trainer.evaluate()
    assert metrics["eval_gram_distance"] > 0
    assert metrics["eval_loss"] == pytest.approx(
        metrics["eval_loss_kd"] + metrics["eval_loss_outlier"] + metrics["eval_loss_info"]
    )
    assert ("eval_knn_accuracy" in metrics) == (label_column is not None)


def test_the_whole_held_out_split_is_scored(tmp_path):
    seen = {}

    def count(prediction):
        seen["embeddings"], seen["distances"] = (len(p) for p in prediction.predictions)
        return {}

    trainer = trainer_of(tmp_path, eval_dataset=image_dataset(21), label_column="label")
    trainer.compute_metrics = count
    trainer.evaluate()
    assert seen == {"embeddings": 21, "distances": 21}  # 21 is no multiple of the batch


def test_a_plain_dataset_is_evaluated_and_predicted(tmp_path):
    trainer = trainer_of(tmp_path, eval_dataset=image_dataset(21), label_column="label")
    other = image_dataset(9, seed=2)
    assert trainer.evaluate(other)["eval_gram_distance"] != trainer.evaluate()["eval_gram_distance"]
    prediction = trainer.predict(other)
    assert prediction.predictions[0].shape == (9, 16)
    assert prediction.metrics["test_knn_accuracy"] == trainer.evaluate(other)["eval_knn_accuracy"]


def test_several_held_out_sets_are_scored_by_name(tmp_path):
    trainer = trainer_of(tmp_path, eval_dataset={"a": image_dataset(9), "b": image_dataset(9, seed=1)})
    assert {"eval_a_gram_distance", "eval_b_gram_distance"} <= set(trainer.evaluate())


def test_negative_labels(tmp_path):
    data = image_dataset(9).map(lambda row: {"label": -1}, features=None)
    data = data.cast_column("label", datasets.Value("int64"))
    trainer = trainer_of(tmp_path, eval_dataset=data, label_column="label")
    with pytest.raises(ValueError, match="9 of 9 held-out labels are negative"):
        trainer.evaluate()


@pytest.mark.parametrize(
    ("metric", "message"), [("eval_knn_accuracy", "needs label_column"), ("knn_acc", "'knn_acc' is not measured")]
)
def test_a_score_that_will_not_be_there(tmp_path, metric, message):
    options = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, eval_dataset=image_dataset(9), metric_for_best_model=metric, **options)


def test_a_process_without_images_of_its_own_still_meets_the_others(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, eval_dataset=image_dataset(4))
    monkeypatch.setattr(trainer, "_own_images", lambda images: 0)
    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=False)
    assert {"loss_kd", "loss_outlier", "loss_info"} <= set(trainer._eval_means._sums)
    assert trainer._eval_means._weight == 0


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("loss", False), ("eval_loss_kd", False), ("gram_distance", False), ("knn_accuracy", True)]
    + [("peak_to_median_after", False), ("outlier_norm_share_after", False)],
)
def test_better_is_known_of_every_score(tmp_path, metric, greater):
    assert arguments(tmp_path, metric_for_best_model=metric).greater_is_better is greater


def test_of_several_held_out_sets_the_best_checkpoint_needs_one_named(tmp_path):
    options = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True, "max_steps": 500}
    sets = {"a": image_dataset(9), "b": image_dataset(9, seed=1)}
    with pytest.raises(ValueError, match="name the one that counts: a_gram_distance, b_gram_distance"):
        trainer_of(tmp_path, eval_dataset=sets, metric_for_best_model="gram_distance", **options)
    trainer_of(tmp_path, eval_dataset=sets, metric_for_best_model="eval_a_gram_distance", **options)


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


def test_a_dataset_whose_transform_makes_the_images(tmp_path):
    images = [row["image"] for row in image_dataset(32)]
    dataset = datasets.Dataset.from_dict({"file": list(range(32))})
    dataset = dataset.with_transform(lambda rows: {"image": [images[index] for index in rows["file"]]})
    trainer_of(tmp_path, dataset=dataset, max_steps=1).train()


def test_an_empty_stream(tmp_path):
    stream = image_dataset(8).to_iterable_dataset().take(0)
    with pytest.raises(ValueError, match="stream is empty"):
        trainer_of(tmp_path, dataset=stream, dataloader_num_workers=1)


def test_corrupt_images_at_the_end_of_a_streams_pass_are_counted_too(tmp_path):
    stream = with_corrupt_image(image_dataset(8), 7).to_iterable_dataset()
    options = {"skip_corrupt_images": True, "shuffle_buffer_size": 0, "max_steps": 3, "per_device_train_batch_size": 7}
    trainer = trainer_of(tmp_path, dataset=stream, **options)
    trainer.train()
    assert trainer.num_corrupt_images == 2  # one between each two passes


@pytest.mark.parametrize(("metric", "greater"), [("gram_distance", False), ("knn_accuracy", True), ("loss_kd", False)])
def test_the_best_checkpoint_is_loaded_and_early_stopping_stops(tmp_path, metric, greater):
    trainer = trainer_of(
        tmp_path,
        eval_dataset=image_dataset(16, seed=1),
        label_column="label",
        max_steps=12,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        metric_for_best_model=metric,
        load_best_model_at_end=True,
        learning_rate=3e-2,  # so that scores get worse again
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    scores = [entry[f"eval_{metric}"] for entry in trainer.state.log_history if f"eval_{metric}" in entry]
    assert trainer.state.best_metric == (max if greater else min)(scores)
    best = trainer_of(tmp_path / "other")
    best._load_from_checkpoint(trainer.state.best_model_checkpoint)
    assert_same_weights(weights(best), weights(trainer))


def test_one_crop_for_two_input_sizes(tmp_path):
    trainer = DistillationTrainer(
        tiny_vit(hidden_size=16, image_size=32, patch_size=4),
        tiny_vit(hidden_size=32, image_size=48, patch_size=8),
        arguments(tmp_path),
        train_dataset=image_dataset(),
        processing_class=vit_processor(32),
        teacher_processing_class=crop_processor(48, image_mean=[0.1, 0.2, 0.3]),
        peft_config=NullspaceLoraConfig(r=4),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape == (8, 3, 32, 32)
    assert batch["teacher_pixel_values"].shape == (8, 3, 48, 48)
    small = torch.nn.functional.interpolate(batch["teacher_pixel_values"].float(), 32, mode="bilinear", antialias=True)
    assert (small - batch["pixel_values"].float()).abs().mean() < 6  # of 255: the same crop
    trainer.train()


def test_each_model_sees_its_own_normalisation(tmp_path):
    trainer = DistillationTrainer(
        tiny_vit(hidden_size=16),
        tiny_vit(hidden_size=32),
        arguments(tmp_path, objective="fitnet"),
        train_dataset=image_dataset(),
        processing_class=vit_processor(image_mean=[0.5] * 3, image_std=[0.5] * 3),
        teacher_processing_class=vit_processor(image_mean=[0.0] * 3, image_std=[1.0] * 3),
    )
    seen = {}
    for name in ("teacher", "student"):
        getattr(trainer, name).embeddings.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.setdefault(name, inputs[0])
        )
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    trainer.model(pixels)
    torch.testing.assert_close(seen["teacher"], pixels / 255)
    torch.testing.assert_close(seen["student"], (pixels / 255 - 0.5) / 0.5)


def test_a_timm_students_folder_holds_the_processor_it_was_trained_with(tmp_path):
    teacher = tiny_model("timm_deit3")
    processor = TimmWrapperImageProcessor(
        {"input_size": (3, 32, 32), "crop_pct": 0.9}, architecture="deit3_small_patch16_224"
    )
    trainer = DistillationTrainer(
        build_student(teacher.config, StudentSize(24, 2, 2), image_size=48),
        load_timm(teacher, tmp_path / "teacher"),
        arguments(tmp_path / "run", image_size=48, normalization="imagenet"),
        train_dataset=image_dataset(),
        teacher_processing_class=processor,
        peft_config=NullspaceLoraConfig(r=4),
    )
    trainer.train()
    trainer.save_model()
    found = AutoImageProcessor.from_pretrained(tmp_path / "run")
    pixels = found(image_dataset(1)[0]["image"], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48)
    assert list(found.data_config["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    student = AutoModel.from_pretrained(tmp_path / "run").eval()
    with torch.no_grad():
        expected = trainer.student.eval()(pixels).last_hidden_state
        assert torch.equal(student(pixels).last_hidden_state, expected)


def load_timm(model, folder):
    """The model from a folder, built for images of other sizes than its own."""
    model.save_pretrained(folder)
    return load_vision_model(str(folder), image_size=48)


def test_a_timm_model_that_was_not_built_for_another_size_says_how(tmp_path):
    with pytest.raises(ValueError, match=r"built for images of 32x32 pixels, got 48x48: load it by .*image_size=48"):
        trainer_of(tmp_path, tiny_model("timm_augreg"), image_size=48)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_size_than_the_models_own(tmp_path, family):
    teacher = load_timm(tiny_model(family), tmp_path) if family in TIMM else tiny_model(family)
    trainer = trainer_of(tmp_path, teacher, tiny_vit(hidden_size=16), image_size=48, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss_kd"] > 0


def test_imagenet_normalisation_reaches_both_models_and_the_saved_processor(tmp_path):
    trainer = trainer_of(tmp_path, normalization="imagenet")
    trainer.save_model()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == pytest.approx([0.485, 0.456, 0.406])
    for normalization in (trainer.model.teacher_normalization, trainer.model.student_normalization):
        assert normalization.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


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


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outlier_quantile": 1.0}, "strictly between 0 and 1, got 1.0"),
        ({"objective": "kd"}, "expected one of fitnet, singer"),
        ({"projector": "mlp"}, "expected one of linear, identity"),
        ({"normalization": "none"}, "expected one of own, imagenet"),
        ({"kd_weight": -1.0}, "kd_weight must not be negative"),
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


def test_corrupt_images_are_skipped_and_counted_when_asked(tmp_path):
    trainer = trainer_of(
        tmp_path, dataset=with_corrupt_image(image_dataset(), 5), max_steps=8, skip_corrupt_images=True
    )
    trainer.train()
    assert trainer.num_corrupt_images == 2  # two epochs
    assert trainer.state.log_history[-2]["corrupt_images"] == 2


def test_corrupt_images_are_counted_whenever_the_run_logs_also_after_a_resume(tmp_path):
    dataset = with_corrupt_image(image_dataset(), 5)
    options = {"skip_corrupt_images": True, "logging_steps": 50, "eval_dataset": dataset}
    trainer = trainer_of(tmp_path / "a", dataset=dataset, max_steps=4, **options)
    trainer.train()
    assert trainer.num_corrupt_images == 1
    assert trainer.state.log_history[-1]["corrupt_images"] == 1
    assert trainer.evaluate()["eval_corrupt_images"] == 1

    options = {"skip_corrupt_images": True, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    trainer_of(tmp_path / "b", dataset=dataset, **options).train()
    again = trainer_of(tmp_path / "b", dataset=dataset, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert again.num_corrupt_images == 2


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
