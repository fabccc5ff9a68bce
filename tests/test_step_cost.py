"""What a step computes: the floor, and beside it the projectors, the adapters and the Gram matrices, nothing else."""

import pytest
import torch
from families import tiny_vit
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from singer_hf import Distiller, NullspaceLoraConfig, vision_backbone
from singer_hf.backbones import plain_block
from singer_hf.data import PixelNormalization
from singer_hf.objectives import SingerObjective

BATCH, RANK = 2, 4


def make_distiller(layers):
    # Eager attention: torch counts nothing for its fused one on the CPU, and Q Kᵀ and A V belong to the count.
    teacher = tiny_vit(hidden_size=32, num_hidden_layers=6, attn_implementation="eager")
    teacher = get_peft_model(teacher, NullspaceLoraConfig(r=RANK, layers_to_transform=layers))
    student = tiny_vit(hidden_size=16, num_hidden_layers=4, attn_implementation="eager")
    objective = SingerObjective(vision_backbone(teacher), vision_backbone(student), teacher_layers=layers)
    normalization = PixelNormalization.imagenet()
    return Distiller(
        teacher, student, objective, teacher_normalization=normalization, student_normalization=normalization
    ).train()


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def pixels():
    return torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize("layers", [[2, 5], [1, 2, 5], [3]])
def test_a_steps_matrix_products_are_the_floors_and_the_methods_own(layers):
    distiller = make_distiller(layers)
    teacher, student, objective = distiller.teacher_backbone, distiller.student_backbone, distiller.objective
    batch = pixels()
    images = distiller.student_normalization(batch)

    @torch.no_grad()
    def run_teacher():
        return teacher.features(images, objective.teacher_features, adapters=False)

    def run_extra_blocks():
        for layer in [layer for layer in layers if layer + 1 < teacher.num_blocks]:
            hidden = features.hidden[layer].detach().requires_grad_()
            output = teacher.run_block(layer + 1, hidden, adapters=False)
            output.backward(torch.ones_like(output))  # frozen weights: the gradient of hidden alone

    def run_student():
        hidden = list(student.features(images, objective.student_layers).hidden.values())
        torch.autograd.backward(hidden, [torch.ones_like(tensor) for tensor in hidden])

    features = run_teacher()
    floor = flops(run_teacher) + flops(run_extra_blocks) + flops(run_student)

    patches, tokens = features.layout.num_patches, features.layout.num_patches + 1
    width, student_width = teacher.hidden_size, student.hidden_size
    projector = 3 * 2 * BATCH * tokens * width * student_width  # output, gradients of input and weight
    adapter = 5 * 2 * BATCH * patches * width * RANK  # the same of both factors, but of the first one's input
    gram = 4 * 2 * BATCH * patches**2 * width  # of F and F̂; the gradient of F̂ from both sides
    expected = floor + len(layers) * (projector + adapter + gram)
    assert flops(lambda: distiller(batch)["loss"].backward()) == expected


@pytest.mark.parametrize("layers", [[2, 4], [1]])
def test_the_teacher_runs_each_block_once_and_stops_at_the_last_one_needed(layers):
    distiller = make_distiller(layers)
    calls = []
    for index, block in enumerate(distiller.teacher_backbone.blocks):
        plain_block(block).mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    distiller(pixels())
    last_needed = max(layers) + 1
    assert calls == [*range(last_needed + 1), *(layer + 1 for layer in layers)]


def test_the_teacher_keeps_nothing_for_backward_but_at_its_extra_block():
    distiller = make_distiller([2, 5])
    features = []
    original = distiller.objective.forward
    distiller.objective.forward = lambda step: features.append(step.teacher) or original(step)
    distiller(pixels())["loss"].backward()
    assert sorted(features[0].hidden) == [2, 3, 5]
    assert not any(hidden.requires_grad for hidden in features[0].hidden.values())
    trained = {name for name, p in distiller.teacher.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
