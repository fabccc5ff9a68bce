from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import PartialState
from head_inputs import blobs, pooled_data
from sklearn.linear_model import LogisticRegression

from singer_hf.evaluation import DivergedError
from singer_hf.evaluation.fit import fit_head, score_heads
from singer_hf.evaluation.head_data import held_out_rows
from singer_hf.evaluation.heads import HeadConfig, LinearHeads, train_heads
from singer_hf.evaluation.probes import ClassificationProbe
from singer_hf.evaluation.protocol import protocol_for

CLASSES = 3
PROBE = ClassificationProbe(CLASSES)
DEFAULT = replace(
    protocol_for("default", "classification"),
    learning_rates=(0.01, 0.3),
    weight_decays=(1e-4, 1e-2),
    epochs=(3, 8),
    batch_size=32,
)
PAPER = replace(protocol_for("paper", "classification"), epochs=(6,), views=0)


def data(count: int = 150, seed: int = 0, **options):
    return pooled_data(*blobs(count, CLASSES, seed=seed, **options))


def fit(protocol, train=None, test=None, probe=PROBE, **options):
    train = data() if train is None else train
    test = data(seed=1) if test is None else test
    return fit_head(probe, train, test, protocol, PartialState(), labels=train.targets, **options)


def accuracy(head: LinearHeads, of) -> float:
    return (head(of.features[0])[0].argmax(1) == of.targets).double().mean().item()


def assert_same_head(a: LinearHeads, b: LinearHeads):
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


# -- scores -----------------------------------------------------------------------------------------------------------
def test_scores_are_each_heads_own_accuracy_and_none_if_it_diverged():
    heads, test = LinearHeads(torch.randn(3, 6, CLASSES), torch.zeros(3, CLASSES)), data(50)
    heads.weight[1, 0, 0] = float("nan")
    scores = score_heads(PROBE, heads, test, 16)
    assert scores[1] is None
    for g in (0, 2):
        assert scores[g] == {"top1_accuracy": pytest.approx(accuracy(heads[g], test))}


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_scores_do_not_depend_on_the_batch_size(batch_size):
    heads = LinearHeads(torch.randn(2, 6, CLASSES), torch.zeros(2, CLASSES))
    assert score_heads(PROBE, heads, data(50), batch_size) == score_heads(PROBE, heads, data(50), 16)


# -- the default protocol ---------------------------------------------------------------------------------------------
def test_nothing_of_the_test_images_reaches_the_head():
    first = fit(DEFAULT)
    test = data(seed=1)
    shuffled = replace(test, targets=test.targets[torch.randperm(len(test))])
    others = pooled_data(1e3 * torch.randn(5, 6), torch.zeros(5, dtype=torch.int64))
    for other in (shuffled, others, None):
        again = fit_head(PROBE, data(), other, DEFAULT, PartialState(), labels=data().targets)
        assert again.config == first.config and again.selection == first.selection
        assert_same_head(again.head, first.head)


def test_a_fit_is_the_same_every_time_and_another_with_another_seed():
    first = fit(DEFAULT)
    torch.rand(3)
    assert_same_head(fit(DEFAULT).head, first.head)
    assert not torch.equal(fit(DEFAULT, replace(data(), seed=1)).head.weight, first.head.weight)


@pytest.mark.parametrize("rates", [(1e-6, 0.3), (0.3, 1e-6)])
def test_validation_chooses_the_learning_rate_that_learns(rates):
    """The first steps go along the difference of the classes' means, in which noise hides them; only a head that
    learns takes the noise, which the second channel holds alone, out of the first."""
    targets, noise = torch.arange(400) % 2, torch.randn(400)
    features = torch.stack([targets - 0.5 + 0.1 * torch.randn(400) + 3 * noise, noise], dim=1)
    protocol = DEFAULT.with_options(learning_rates=rates, weight_decays=(0.0,), epochs=(20,))
    found = fit(protocol, pooled_data(features, targets), probe=ClassificationProbe(2))
    scores = {entry["learning_rate"]: entry["top1_accuracy"] for entry in found.selection["grid"]}
    assert found.config.learning_rate == 0.3
    assert scores[1e-6] < 0.8 < scores[0.3] == found.selection["validation_score"]


def test_a_head_that_diverges_is_never_chosen():
    protocol = DEFAULT.with_options(learning_rates=(30.0, 0.1), weight_decays=(5.0, 1e-3), epochs=(12,))
    found = fit(protocol)
    entries = {(entry["learning_rate"], entry["weight_decay"]): entry for entry in found.selection["grid"]}
    assert entries[30.0, 5.0]["top1_accuracy"] is None
    assert (found.config.learning_rate, found.config.weight_decay) != (30.0, 5.0) and found.head.finite().all()


@pytest.mark.parametrize("protocol", [DEFAULT, PAPER], ids=["default", "paper"])
def test_where_all_heads_diverge_an_error_says_so(protocol):
    protocol = protocol.with_options(learning_rates=(1e6,), weight_decays=(1.0,), epochs=(12,))
    with pytest.raises(DivergedError, match="diverged.*lower learning_rates"):
        fit(protocol)


def test_the_selection_says_what_was_chosen_among():
    found = fit(DEFAULT)
    assert found.selection["validation_images"] == 15
    assert found.selection["rule"].startswith("best top1_accuracy on 0.1 of the training images")
    grid = [{k: v for k, v in entry.items() if k != "top1_accuracy"} for entry in found.selection["grid"]]
    assert [HeadConfig(**entry) for entry in grid] == DEFAULT.grid()
    best = max(entry["top1_accuracy"] for entry in found.selection["grid"])
    assert found.selection["validation_score"] == best


def test_held_out_images_are_scored_as_test_images_are_seen():
    """With augmented views, from `plain`: here its features are useless, and so are all scores."""
    train = data()
    plain = replace(train, features=torch.zeros_like(train.features))
    scores = {entry["top1_accuracy"] for entry in fit(DEFAULT, train, plain=plain).selection["grid"]}
    assert max(scores) <= 0.4 < 0.8 < fit(DEFAULT, train).selection["validation_score"]
    assert_same_head(
        fit(DEFAULT.with_options(learning_rates=(0.3,), weight_decays=(1e-4,), epochs=(8,)), train, plain=plain).head,
        fit(DEFAULT.with_options(learning_rates=(0.3,), weight_decays=(1e-4,), epochs=(8,)), train).head,
    )


def test_the_chosen_head_is_trained_again_on_all_training_images():
    """An image that was held out pulls on the head, too."""
    protocol = DEFAULT.with_options(learning_rates=(0.3,), weight_decays=(1e-4,), epochs=(3,), standardize=False)
    features, targets = blobs(150, CLASSES)
    before = fit(protocol, pooled_data(features, targets))
    _, held_out = held_out_rows(150, protocol.validation_fraction, 0, targets)
    features[held_out[0]] += 5
    after = fit(protocol, pooled_data(features, targets), plain=data())
    assert after.selection == before.selection
    assert not torch.equal(after.head.weight, before.head.weight)


def test_heads_are_of_raw_features_whatever_their_offset_and_size():
    features, targets = blobs(150, CLASSES)
    offset, size = torch.tensor([0.0, 100.0, -50.0, 3.0, 0.0, 7.0]), torch.tensor([1.0, 10.0, 0.01, 5.0, 1.0, 100.0])
    plain, moved = fit(DEFAULT), fit(DEFAULT, pooled_data(features * size + offset, targets))
    assert moved.config == plain.config
    torch.testing.assert_close(moved.head(features * size + offset), plain.head(features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_the_accuracy_is_that_of_scikit_learns_logistic_regression(spread):
    train, test = data(400, spread=spread), data(3000, seed=1, spread=spread)
    found = fit(
        DEFAULT.with_options(learning_rates=(0.03, 0.1), weight_decays=(1e-3, 1e-2), epochs=(10,)), train, test
    )
    features = train.features[0]
    mean, scale = features.mean(0), features.std(0)
    reference = LogisticRegression(C=1.0, max_iter=1000).fit((features - mean) / scale, train.targets)
    expected = reference.score((test.features[0] - mean) / scale, test.targets)
    assert 1 / CLASSES + 0.2 < expected < 0.999
    assert accuracy(found.head, test) == pytest.approx(expected, abs=0.01)


# -- the paper's protocol ---------------------------------------------------------------------------------------------
def test_the_papers_protocol_takes_the_best_epoch_on_the_test_images_and_says_so():
    train, test = data(60, spread=3.0), data(200, seed=1, spread=3.0)
    found = fit(PAPER, train, test)
    by_epoch = []
    for epochs in range(6):
        heads = []

        def keep(epoch, active, wanted=epochs, heads=heads):
            if epoch == wanted:
                heads.append(active.clone())

        train_heads(
            PAPER.grid(), 6, CLASSES, partial(train.batches, batch_size=64), 1, PROBE.gradients, after_epoch=keep
        )
        by_epoch.append(accuracy(heads[0], test))
    assert found.selection["best_epoch"] == by_epoch.index(max(by_epoch))
    assert found.selection["last_epoch_score"] == pytest.approx(by_epoch[-1])
    assert accuracy(found.head, test) == pytest.approx(max(by_epoch))
    assert "best epoch on the test images" in found.selection["rule"] and "optimistic" in found.selection["rule"]
    assert len(set(by_epoch)) > 1


def test_the_papers_protocol_is_swayed_by_the_test_images():
    """What the default protocol forbids: the reason why both are told apart in a result."""
    train = data(60, spread=3.0)
    epochs = {fit(PAPER, train, data(40, seed=seed, spread=3.0)).selection["best_epoch"] for seed in range(1, 5)}
    assert len(epochs) > 1


# -- scores that are no numbers ---------------------------------------------------------------------------------------
class SometimesUndefined(ClassificationProbe):
    """The first head of the grid has a score that is not a number."""

    def metric(self, **options):
        metric = super().metric(**options)
        if not getattr(self, "asked", False):
            self.asked, compute = True, metric.compute
            metric.compute = lambda: compute() | {"top1_accuracy": float("nan")}
        return metric


def test_a_score_that_is_no_number_is_never_the_best():
    found = fit(DEFAULT, probe=SometimesUndefined(CLASSES))
    assert found.config != DEFAULT.grid()[0]


def test_a_head_that_diverges_when_trained_again_is_an_error():
    features, targets = blobs(150, CLASSES)
    train = pooled_data(features, targets)
    protocol = DEFAULT.with_options(standardize=False)
    _, held_out = held_out_rows(150, protocol.validation_fraction, 0, targets)
    features[held_out[0]] = 3e38  # within float32, and beyond it after one step
    try:
        found = fit(protocol, train, plain=data())
    except DivergedError:
        return
    assert found.head.finite().all()
