"""Scores of held-out images, and the best checkpoint by them."""

import datasets
import pytest
from images import image_dataset
from runs import arguments, assert_same_weights, trainer_of, weights
from transformers import (
    EarlyStoppingCallback,
)


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
