"""Small runs of the trainer for the tests."""

import torch
from families import tiny_vit, vit_processor
from images import image_dataset
from peft import PeftModel, get_peft_model

from singer_hf import (
    DistillationArguments,
    DistillationTrainer,
    NullspaceLoraConfig,
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


def two_adapters():
    teacher = get_peft_model(
        tiny_vit(hidden_size=32, num_hidden_layers=4), NullspaceLoraConfig(r=2, layers_to_transform=[0, 3])
    )
    teacher.add_adapter("mine", NullspaceLoraConfig(r=3, layers_to_transform=[1, 2]))
    teacher.set_adapter("mine")
    return teacher
