import pytest
import torch

from singer_hf.backbones import TokenLayout
from singer_hf.objectives.tokens import TokenAligner, resize_patches, shared_prefix


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (("cls",), ("cls",), ([0], [0])),
        (("cls",), ("cls", "register", "register"), ([0], [0])),
        (("cls", "distillation"), ("cls",), ([0], [0])),
        (("register", "register"), ("cls", "register"), ([0], [1])),
        ((), ("cls",), ([], [])),
    ],
)
def test_prefix_tokens_meet_by_role(student, teacher, expected):
    layouts = TokenLayout(student, (2, 2)), TokenLayout(teacher, (2, 2))
    assert shared_prefix(*layouts) == expected


def test_equal_layouts_pass_unchanged():
    layout = TokenLayout(("cls",), (2, 3))
    aligner = TokenAligner(layout, layout)
    tokens = torch.randn(1, 7, 4)
    assert aligner.align_student(tokens) is tokens
    assert aligner.align_teacher(tokens) is tokens


def test_other_layouts_meet_in_the_teachers_grid():
    aligner = TokenAligner(TokenLayout(("cls", "distillation"), (4, 4)), TokenLayout(("cls", "register"), (2, 2)))
    student, teacher = torch.randn(1, 18, 3), torch.randn(1, 6, 5)
    aligned = aligner.align_student(student)
    assert aligned.shape == (1, 5, 3) and torch.equal(aligned[:, 0], student[:, 0])
    assert torch.equal(aligner.align_teacher(teacher), teacher[:, [0, 2, 3, 4, 5]])


def test_resizing_keeps_constants_and_orientation():
    rows = torch.arange(4.0)[:, None].expand(4, 6)  # value = row index
    patches = rows.reshape(1, 24, 1)
    resized = resize_patches(patches, (4, 6), (2, 3)).reshape(2, 3)
    assert (resized[1] > resized[0]).all()
    assert torch.allclose(resized[:, :1].expand(2, 3), resized)
    torch.testing.assert_close(resize_patches(torch.ones(1, 24, 2), (4, 6), (3, 5)), torch.ones(1, 15, 2))


def test_resizing_commutes_with_a_linear_projector():
    projector = torch.nn.Linear(3, 5)
    patches = torch.randn(1, 16, 3)
    torch.testing.assert_close(
        projector(resize_patches(patches, (4, 4), (3, 5))), resize_patches(projector(patches), (4, 4), (3, 5))
    )
