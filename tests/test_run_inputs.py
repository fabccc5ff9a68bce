"""From a user's images and processors to what the two models see."""

import datasets
import pytest
import torch
from families import FAMILIES, TIMM, crop_processor, tiny_model, tiny_vit, vit_processor
from images import image_dataset, with_corrupt_image
from runs import arguments, trainer_of
from transformers import (
    AutoImageProcessor,
    AutoModel,
    TimmWrapperImageProcessor,
)

from singer_hf import (
    DistillationTrainer,
    NullspaceLoraConfig,
    StudentSize,
    build_student,
    load_vision_model,
)


def load_timm(model, folder):
    """The model from a folder, built for images of other sizes than its own."""
    model.save_pretrained(folder)
    return load_vision_model(str(folder), image_size=48)


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


def test_a_dataset_whose_transform_makes_the_images(tmp_path):
    images = [row["image"] for row in image_dataset(32)]
    dataset = datasets.Dataset.from_dict({"file": list(range(32))})
    dataset = dataset.with_transform(lambda rows: {"image": [images[index] for index in rows["file"]]})
    trainer_of(tmp_path, dataset=dataset, max_steps=1).train()


def test_corrupt_images_at_the_end_of_a_streams_pass_are_counted_too(tmp_path):
    stream = with_corrupt_image(image_dataset(8), 7).to_iterable_dataset()
    options = {"skip_corrupt_images": True, "shuffle_buffer_size": 0, "max_steps": 3, "per_device_train_batch_size": 7}
    trainer = trainer_of(tmp_path, dataset=stream, **options)
    trainer.train()
    assert trainer.num_corrupt_images == 2  # one between each two passes


def test_a_stream_refuses_another_batch_size_on_the_way(tmp_path):
    with pytest.raises(ValueError, match="auto_find_batch_size.*per_device_train_batch_size"):
        trainer_of(tmp_path, dataset=image_dataset(8).to_iterable_dataset(), auto_find_batch_size=True)


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
    options |= {"logging_steps": 50}  # what was counted is in no log entry when it is saved
    trainer_of(tmp_path / "b", dataset=dataset, **options).train()
    again = trainer_of(tmp_path / "b", dataset=dataset, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert again.num_corrupt_images == 2
