import itertools

import pytest

from singer_hf.layers import default_teacher_layers, match_layers


@pytest.mark.parametrize(
    ("layers", "teacher", "student", "expected"),
    [([17, 23], 24, 12, [8, 11]), ([8, 11], 12, 12, [8, 11]), ([0, 1, 11], 12, 12, [0, 1, 11]), ([0], 1, 3, [0])],
)
def test_the_papers_matching(layers, teacher, student, expected):
    assert match_layers(layers, teacher, student) == expected


@pytest.mark.parametrize(
    ("layers", "teacher", "student", "expected"), [([17, 23], 24, 12, [8, 11]), ([8, 11], 12, 12, [7, 10])]
)
def test_the_released_codes_matching(layers, teacher, student, expected):
    assert match_layers(layers, teacher, student, matching="reference") == expected


@pytest.mark.parametrize(("teacher", "student"), [(24, 12), (12, 6), (7, 5), (32, 12)])
def test_matching_is_the_best_of_all_assignments(teacher, student):
    layers = [teacher // 3, teacher // 2, teacher - 1]

    def cost(blocks):
        return sum(abs(t / (teacher - 1) - s / (student - 1)) for t, s in zip(layers, blocks, strict=True))

    best = min(itertools.permutations(range(student), 3), key=cost)
    assert cost(match_layers(layers, teacher, student)) == pytest.approx(cost(best))


def test_the_last_block_meets_the_last_block():
    for teacher, student in itertools.product(range(2, 33), range(2, 13)):
        assert match_layers([teacher - 1], teacher, student) == [student - 1]


def test_layers_named_by_the_user_win():
    assert match_layers([1, 3], 4, 4, student_layers=[0, 2]) == [0, 2]
    assert match_layers([1, 3], 4, 4, student_layers=[2, 0]) == [2, 0]


def test_a_student_layer_may_be_named_for_several_teacher_layers():
    assert match_layers([1, 2, 3], 4, 4, student_layers=[0, 3, 3]) == [0, 3, 3]


def test_pairs_named_by_the_user_stay_pairs():
    """The result goes with the sorted teacher layers."""
    assert match_layers([3, 1], 4, 4, student_layers=[2, 0]) == [0, 2]


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([24], {}, "teacher layer 24 is out of range: the model has 24 blocks, 0 to 23"),
        ([1, 2], {"student_layers": [0]}, "1 student layers .* for 2 teacher layers"),
        ([1], {"student_layers": [12]}, "student layer 12 is out of range"),
        ([1], {"matching": "best"}, "expected one of paper, reference"),
        (range(13), {}, "need as many distinct student blocks"),
    ],
)
def test_impossible_matchings(layers, options, message):
    with pytest.raises(ValueError, match=message):
        match_layers(list(layers), 24, 12, **options)


@pytest.mark.parametrize(("blocks", "layers"), [(24, [17, 23]), (12, [8, 11]), (32, [23, 31]), (1, [0])])
def test_default_layers(blocks, layers):
    assert default_teacher_layers(blocks) == layers
