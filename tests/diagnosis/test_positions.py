import torch
from scipy.stats import rankdata

from singer_hf.diagnosis.positions import border_mask, map_cells, map_shape, variance_rank


def test_the_border_is_the_outermost_ring():
    assert border_mask((4, 5)).view(4, 5).int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1],
    ]
    assert border_mask((1, 3)).all()


def test_a_small_grid_is_its_own_map_and_a_large_one_is_pooled():
    assert map_cells((3, 4)).tolist() == list(range(12))
    cells = map_cells((37, 37))
    assert map_shape((37, 37)) == (16, 16) and cells.min() == 0 and cells.max() == 255
    assert torch.bincount(cells).min() >= 4  # every cell has patches


def test_ranks_are_scipys_average_ranks():
    variance = torch.tensor([[0.5, 0.1, 0.1, 2.0, 0.7], [1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = (rankdata(variance.numpy(), axis=1) - 0.5) / 5
    assert torch.allclose(variance_rank(variance), torch.as_tensor(expected))
