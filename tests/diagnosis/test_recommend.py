import pytest
import torch
from families import tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis import diagnose_teacher, recommend
from singer_hf.diagnosis.recommend import looked_at_sentence, named_blocks, null_rank
from singer_hf.diagnosis.spectrum import effective_nullity


def test_advice_for_a_teacher_with_artifacts(artifact_teacher, images):
    found = diagnose_teacher(vision_backbone(artifact_teacher), images.split(16))
    advice = recommend(found)
    assert advice.helps and advice.layers == [2, 3]
    assert advice.rank == max(1, effective_nullity(found.spectra[3].values))
    assert advice.sentence.startswith("This teacher has artifacts in blocks 2 and 3 of 4: in block ")
    assert "SiNGER would help: distill blocks 2 and 3" in advice.sentence
    assert "three quarters" in advice.layers_reason and "singular values" in advice.rank_reason


def test_advice_for_a_clean_teacher(images):
    torch.manual_seed(0)
    found = diagnose_teacher(vision_backbone(tiny_vit(num_hidden_layers=8).eval()), images.split(16))
    advice = recommend(found)
    assert not advice.helps and advice.layers == [5, 7]
    assert "no artifacts" in advice.sentence and "little to repair" in advice.sentence


def test_the_rank_of_layers_is_what_their_surrogates_allow(artifact_teacher, images):
    found = diagnose_teacher(vision_backbone(artifact_teacher), images.split(16))
    assert null_rank(found, [0])[0] == max(1, effective_nullity(found.spectra[1].values))


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([0], "block 0 with rank 5, which has no artifacts"),
        ([0, 1], "blocks 0 and 1 with rank 5, none of which has artifacts"),
        ([0, 3], "blocks 0 and 3 with rank 5, of which only block 3 has artifacts"),
        ([2, 3], "blocks 2 and 3 with rank 5, all of which have artifacts"),
    ],
)
def test_other_layers_than_the_advised_ones_are_said_to_be_looked_at(artifact_teacher, images, layers, text):
    found = diagnose_teacher(vision_backbone(artifact_teacher), images.split(16))
    assert text in looked_at_sentence(found, layers, 5, recommend(found))


def test_nothing_is_said_where_the_advised_layers_are_looked_at(artifact_teacher, images):
    found = diagnose_teacher(vision_backbone(artifact_teacher), images.split(16))
    advice = recommend(found)
    assert looked_at_sentence(found, advice.layers, advice.rank, advice) is None


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([5], "block 5"),
        ([1, 2], "blocks 1 and 2"),
        ([2, 3, 4, 7], "blocks 2 to 4 and 7"),
        ([0, 2, 4], "blocks 0, 2 and 4"),
    ],
)
def test_blocks_in_words(layers, text):
    assert named_blocks(layers) == text
