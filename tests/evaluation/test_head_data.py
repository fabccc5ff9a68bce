from collections import Counter

import numpy as np
import pytest
import torch
from head_inputs import cached, pooled_data

from singer_hf.evaluation.head_data import (
    PooledData,
    Standardization,
    TokenData,
    channel_statistics,
    held_out_rows,
)

CPU = torch.device("cpu")
VIEWS, COUNT, TOKENS, WIDTH = 3, 10, 4, 5


def numbered(kind: str, **options):
    """Data whose first channel is 100 · view + image, and whose targets are the image."""
    number = 100.0 * torch.arange(VIEWS)[:, None] + torch.arange(COUNT)
    if kind == "pooled":
        features = torch.randn(VIEWS, COUNT, WIDTH)
        features[..., 0] = number
        return PooledData(features, torch.arange(COUNT), options.pop("rows", torch.arange(COUNT)), 0, CPU, **options)
    tokens = torch.randn(VIEWS, COUNT, TOKENS, WIDTH)
    tokens[..., 0] = number[..., None]
    target = torch.arange(COUNT, dtype=torch.int16)[None, :, None, None].expand(VIEWS, COUNT, 6, 8).clone()
    features = cached({"tokens": tokens, "cls": torch.randn(VIEWS, COUNT, WIDTH), "target": target}, 4)
    return TokenData(features, options.pop("rows", torch.arange(COUNT)), 0, CPU, **options)


def seen(batch) -> list[tuple[int, int]]:
    """(view, image) of a batch."""
    features = batch[0] if batch[0].ndim == 2 else batch[0][:, 0]
    return [divmod(int(number), 100) for number in features[:, 0].round().tolist()]


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 4, 5, 9])])
@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_in_as_many_epochs_as_views_each_image_is_seen_in_each_view_once(kind, rows):
    data = numbered(kind) if rows is None else numbered(kind, rows=rows)
    images = range(COUNT) if rows is None else rows.tolist()
    for start in (0, 1, 6):
        counts = Counter()
        for epoch in range(start, start + VIEWS):
            keys = [key for batch in data.batches(epoch, 4) for key in seen(batch)]
            assert sorted(image for _, image in keys) == sorted(images)
            counts.update(keys)
        assert counts == Counter({(view, image): 1 for view in range(VIEWS) for image in images})


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_an_epoch_mixes_views_and_has_an_order_of_its_own(kind):
    data = numbered(kind)
    epochs = [[key for batch in data.batches(epoch, 4) for key in seen(batch)] for epoch in (0, 1, 0)]
    assert len({view for view, _ in epochs[0]}) > 1
    assert epochs[0] == epochs[2] and [i for _, i in epochs[0]] != [i for _, i in epochs[1]] != list(range(COUNT))


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_features_keep_their_targets(kind):
    for batch in numbered(kind).batches(2, 4):
        targets = batch[1] if batch[1].ndim == 1 else batch[1][:, 0, 0]
        assert targets.tolist() == [image for _, image in seen(batch)]


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_only_the_last_batch_is_smaller(kind):
    data = numbered(kind)
    assert [len(batch[0]) for batch in data.batches(0, 4)] == [4, 4, 2]
    assert [len(batch[0]) for batch in data.in_order(4)] == [4, 4, 2]


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_in_order_is_view_0_in_the_order_of_the_rows(kind):
    rows = torch.tensor([7, 2, 9, 0, 5])
    batches = list(numbered(kind).subset(rows).in_order(2))
    assert all(len(batch) == 2 for batch in batches)
    assert [key for batch in batches for key in seen(batch)] == [(0, image) for image in rows.tolist()]


def test_seeds_differ_in_order():
    def order(seed):
        return torch.cat([t for _, t in pooled_data(torch.randn(50, 2), torch.arange(50), seed).batches(0, 7)])

    assert torch.equal(order(3), order(3)) and not torch.equal(order(3), order(4))


def test_half_precision_features_come_as_float32():
    data = pooled_data(torch.randn(6, 2).bfloat16(), torch.arange(6))
    assert next(data.batches(0, 4))[0].dtype == next(data.in_order(4))[0].dtype == torch.float32


def test_tokens_with_cls_have_it_beside_each_token():
    data = numbered("tokens", with_cls=True)
    assert data.width == 2 * WIDTH and numbered("tokens").width == WIDTH
    rows = torch.tensor([8, 1])
    features, _ = next(data.subset(rows).in_order(2))
    assert torch.equal(features[..., :WIDTH], data.features.rows("tokens", rows))
    for token in range(TOKENS):
        assert torch.equal(features[:, token, WIDTH:], data.features.rows("cls", rows))


def test_cls_is_of_the_same_view_as_its_tokens():
    data = numbered("tokens", with_cls=True)
    for features, _ in data.batches(1, 4):
        for row, (view, image) in enumerate(seen((features,))):
            assert torch.equal(
                features[row, 0, WIDTH:], data.features.rows("cls", *torch.tensor([[image], [view]]))[0]
            )


def test_pixels_are_drawn_anew_for_each_batch_and_epoch_and_the_same_each_time():
    data = numbered("tokens", pixels=16)
    drawn = {epoch: [batch[2] for batch in data.batches(epoch, 4)] for epoch in (0, 1)}
    assert [tuple(part.shape) for part in drawn[0]] == [(4, 16), (4, 16), (2, 16)]
    everything = torch.cat([part.flatten() for parts in drawn.values() for part in parts])
    assert everything.min() >= 0 and everything.max() < 6 * 8 and everything.dtype == torch.int64
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0][0], drawn[1][0])
    again = [batch[2] for batch in data.batches(0, 4)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], again, strict=True))
    assert len({tuple(row) for row in drawn[0][0].tolist()}) == 4  # other pixels in each image


def test_every_pixel_is_drawn_equally_often():
    data = numbered("tokens", pixels=48)
    drawn = torch.cat([batch[2].flatten() for epoch in range(100) for batch in data.batches(epoch, 4)])
    counts = drawn.bincount(minlength=48)
    assert (counts / 1000 - 1).abs().max() < 0.2  # 6 deviations of a Poisson variable of mean 1000


def test_no_pixels_are_drawn_for_scores():
    assert len(next(numbered("tokens", pixels=16).in_order(4))) == 2
    assert len(next(numbered("tokens").batches(0, 4))) == 2


# -- statistics -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("parts", [1, 7])
def test_statistics_are_numpys_in_float64(offset, parts):
    values = (torch.randn(1000, 4) * torch.tensor([1.0, 10.0, 0.5, 3.0]) + offset).float()
    found = channel_statistics(iter(values.tensor_split(parts)))
    exact = values.double().numpy()
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(found.scale, exact.std(0), rtol=1e-6)


def test_parts_of_unequal_means_and_sizes_count_by_their_rows():
    parts = [torch.randn(3, 2) + 1e4, torch.randn(100, 2), torch.randn(1, 2) - 1e4]
    found, exact = channel_statistics(iter(parts)), torch.cat(parts).double().numpy()
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.scale, exact.std(0), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678, -1e6])
def test_a_constant_channel_has_scale_1(value):
    values = torch.randn(1000, 3)
    values[:, 1] = value
    found = channel_statistics(iter(values.split(300)))
    assert found.scale[1] == 1 and found.mean[1].item() == pytest.approx(value)
    assert (found.scale[[0, 2]] != 1).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_where_all_channels_are_constant_all_scales_are_1(value):
    found = channel_statistics(iter(torch.full((999, 3), value).split(300)))
    assert found.scale.tolist() == [1, 1, 1]


def test_statistics_of_half_precision_do_not_overflow():
    values = (torch.randn(5000, 2) * 100 + 500).half()
    found = channel_statistics(iter([values]))
    np.testing.assert_allclose(found.mean, values.double().mean(0), rtol=1e-6)


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_statistics_are_of_all_images_and_views(kind):
    data = numbered(kind)
    everything = data.features if kind == "pooled" else data.features.all("tokens")
    exact = everything.flatten(0, -2).double()
    np.testing.assert_allclose(data.statistics().mean, exact.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data.statistics().scale, exact.std(0, correction=0), rtol=1e-5)


def test_statistics_of_tokens_with_cls_are_of_both():
    data = numbered("tokens", with_cls=True)
    mean = torch.cat(
        [data.features.all("tokens").flatten(0, 2).mean(0), data.features.all("cls").flatten(0, 1).mean(0)]
    )
    torch.testing.assert_close(data.statistics().mean, mean, rtol=1e-5, atol=1e-5)
    assert data.statistics().scale.shape == (2 * WIDTH,)


@pytest.mark.parametrize("options", [{}, {"with_cls": True}])
@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_standardized_batches_have_mean_0_and_deviation_1(kind, options):
    if kind == "pooled" and options:
        pytest.skip("no CLS beside a pooled feature")
    data = numbered(kind, **options)
    standardized = data.standardized(data.statistics())
    parts = [batch[0].flatten(0, -2) for epoch in range(VIEWS) for batch in standardized.batches(epoch, 4)]
    everything = torch.cat(parts)
    torch.testing.assert_close(everything.mean(0), torch.zeros(data.width), atol=1e-5, rtol=0)
    torch.testing.assert_close(everything.std(0, correction=0), torch.ones(data.width), atol=1e-5, rtol=0)
    assert data.standardization is None


def test_standardizing_and_choosing_rows_go_together():
    data, scale = numbered("pooled"), Standardization(torch.full((WIDTH,), 2.0), torch.full((WIDTH,), 4.0))
    rows = torch.tensor([3, 8])
    found = next(data.standardized(scale).subset(rows).in_order(2))[0]
    torch.testing.assert_close(found, (data.features[0, rows] - 2) / 4)


# -- held-out images --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_held_out_and_kept_images_are_all_images_once(fraction, labelled):
    labels = torch.arange(120) % 3 if labelled else None
    kept, held_out = held_out_rows(120, fraction, 0, labels)
    assert len(held_out) == round(120 * fraction)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(120))
    assert kept.tolist() == sorted(kept.tolist()) and held_out.tolist() == sorted(held_out.tolist())


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_each_class_gives_its_share_whatever_its_size_and_order(fraction):
    sizes = torch.tensor([100, 40, 20, 7, 1])
    labels = torch.arange(5).repeat_interleave(sizes)[torch.randperm(168)]
    _, held_out = held_out_rows(168, fraction, 0, labels)
    assert ((labels[held_out].bincount(minlength=5) - fraction * sizes).abs() <= 1).all()


def test_classes_smaller_than_one_in_a_fraction_take_turns():
    labels = torch.arange(60) % 20  # three images a class, of which 0.1 is less than one
    _, held_out = held_out_rows(60, 0.1, 0, labels)
    assert len(held_out) == len(labels[held_out].unique()) == 6


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_one_image_of_each_class_stays_in_training(fraction):
    labels = torch.tensor([0] * 10 + [1] + [2] * 3)
    kept, _ = held_out_rows(14, fraction, 0, labels)
    assert labels[kept].unique().tolist() == [0, 1, 2]


def test_at_least_one_image_is_held_out():
    assert len(held_out_rows(3, 0.01, 0)[1]) == len(held_out_rows(3, 0.01, 0, torch.tensor([0, 0, 1]))[1]) == 1


def test_the_seed_alone_determines_what_is_held_out():
    labels = torch.arange(60) % 2
    first = held_out_rows(60, 0.2, 1, labels)[1]
    torch.rand(5)
    assert torch.equal(first, held_out_rows(60, 0.2, 1, labels)[1])
    assert not torch.equal(first, held_out_rows(60, 0.2, 2, labels)[1])


def test_held_out_images_are_drawn_not_the_first_or_last():
    drawn = torch.cat([held_out_rows(40, 0.25, seed, torch.arange(40) % 2)[1] for seed in range(200)])
    counts = drawn.bincount(minlength=40)  # 50 each are expected
    assert counts.min() > 20 and counts.max() < 85


@pytest.mark.parametrize(("count", "labels"), [(1, None), (3, torch.arange(3))])
def test_no_image_can_be_held_out(count, labels):
    with pytest.raises(ValueError, match=f"None of {count} training images can be held out.*take more images"):
        held_out_rows(count, 0.1, 0, labels)
