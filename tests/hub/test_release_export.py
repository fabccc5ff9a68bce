"""What strangers get: the student, a classifier of it, its teacher's adapter, ONNX."""

import json
import shutil

import pytest
import torch
from families import tiny_model, tiny_vit, vit_processor
from peft import PeftConfig, PeftModel
from released import MIT
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    TimmWrapperImageProcessor,
)

from singer_hf import StudentSize, build_student, vision_backbone
from singer_hf.checkpoints.manifest import DamagedCheckpointError
from singer_hf.data import processor_to_save
from singer_hf.evaluation import FrozenBackbone
from singer_hf.release import (
    CardFacts,
    ExportError,
    OnnxError,
    Run,
    export_adapter,
    export_classifier,
    export_onnx,
    export_student,
    model_card,
)
from singer_hf.release.training import training_release

STUDENT_FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}


def saved(model, folder):
    """A model with an image processor, as a run leaves it."""
    if model.config.model_type == "timm_wrapper":
        settings = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.4, 0.4, 0.4)}
        processor_to_save(TimmWrapperImageProcessor(settings, architecture=model.config.architecture), model.config)
    else:
        vit_processor().save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_nothing_else_of_the_run_is_exported(tmp_path, run):
    assert {"adapter", "distillation.safetensors", "run.json", "training_args.json"} <= names(run)
    model = export_student(run, tmp_path / "student")
    assert names(tmp_path / "student") == STUDENT_FILES
    assert not (tmp_path / "student" / "config.json").read_text().count(str(run.parent))
    original = AutoModel.from_pretrained(run, add_pooling_layer=False)
    student = AutoModel.from_pretrained(tmp_path / "student", **model.load_options)
    for name, tensor in original.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    assert model.fingerprint == FrozenBackbone.load(str(run)).fingerprint()
    assert model.parameters == sum(p.numel() for p in original.parameters())


@pytest.mark.parametrize(
    "family",
    ["vit", "deit", "ijepa", "beit", "dinov2", "dinov3", "clip", "siglip", "timm_augreg", "timm_registers"],
)
def test_automodel_gives_the_distilled_feature_of_every_family(tmp_path, family):
    torch.manual_seed(0)
    model = tiny_model(family).eval()
    exported = export_student(saved(model, tmp_path / "run"), tmp_path / "student")
    loaded, info = AutoModel.from_pretrained(
        tmp_path / "student", output_loading_info=True, trust_remote_code=False, **exported.load_options
    )
    assert not info["missing_keys"]
    pixels = torch.randn(2, 3, 32, 32)
    backbone = vision_backbone(model)
    with torch.no_grad():
        expected = backbone.features(pixels, [2]).hidden[2]
        outputs = loaded.eval()(pixels, output_hidden_states=True)
        original = model(pixels, output_hidden_states=True)
    hidden = outputs.hidden_states[-1]
    if hidden.ndim == 4:
        hidden, expected = hidden.flatten(2).transpose(1, 2), expected[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs.last_hidden_state, original.last_hidden_state)
    assert exported.feature == "hidden_states[-1]" and exported.feature_shape[0] == 1
    assert AutoImageProcessor.from_pretrained(tmp_path / "student") is not None


def test_vit_mae_is_not_said_to_give_its_feature(tmp_path):
    exported = export_student(saved(tiny_model("vit_mae"), tmp_path / "run"), tmp_path / "student")
    assert exported.feature is None


def test_what_the_final_norm_is(tmp_path):
    plain = tiny_vit()
    assert export_student(saved(plain, tmp_path / "a"), tmp_path / "a_out").final_norm == "plain"
    with torch.no_grad():
        plain.layernorm.weight.mul_(2)
    assert export_student(saved(plain, tmp_path / "b"), tmp_path / "b_out").final_norm == "own"
    assert export_student(saved(tiny_model("clip"), tmp_path / "c"), tmp_path / "c_out").final_norm == "none"


def test_a_pooler_that_nobody_trained_is_not_among_the_weights(tmp_path, run):
    exported = export_student(run, tmp_path / "student")
    assert exported.load_options == {"add_pooling_layer": False}
    _, info = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"pooler"}


def test_a_pooling_head_that_nobody_trained_is_not_among_the_weights(tmp_path):
    teacher = tiny_model("siglip")
    assert any(name.startswith("head.") for name in teacher.state_dict())
    for name, student in (("scratch", build_student(teacher.config, StudentSize(16, 2, 2))), ("given", teacher)):
        exported = export_student(saved(student, tmp_path / name), tmp_path / f"{name}_out")
        loaded, info = AutoModel.from_pretrained(tmp_path / f"{name}_out", output_loading_info=True)
        assert not info["missing_keys"] and not any(key.startswith("head.") for key in loaded.state_dict())
        assert exported.parameters == sum(p.numel() for p in loaded.parameters())
        assert exported.fingerprint == FrozenBackbone.load(str(tmp_path / f"{name}_out")).fingerprint()


def test_clips_norm_of_the_pooled_token_is_told(tmp_path, run):
    model = export_student(saved(tiny_model("clip"), tmp_path / "run"), tmp_path / "out")
    card = model_card(CardFacts(repo_id="user/student", run=Run.load(run), license=MIT, model=model))
    assert model.pooled_norm and "CLS token behind `post_layernorm`" in card.text


def test_a_damaged_adapter_is_not_released(tmp_path, run):
    damaged = shutil.copytree(run, tmp_path / "run")
    weights = damaged / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="adapter_model.safetensors is damaged"):
        export_adapter(damaged, tmp_path / "adapter", None)
    (damaged / "manifest.json").unlink()  # an adapter has its own, too
    with pytest.raises(DamagedCheckpointError, match="adapter_model.safetensors is damaged"):
        export_adapter(damaged, tmp_path / "again", None)
    shutil.copy(run / "adapter" / "adapter_model.safetensors", weights)
    shutil.copy(run / "manifest.json", damaged)
    (damaged / "distillation.safetensors").write_bytes(b"x")
    with pytest.raises(DamagedCheckpointError, match="distillation.safetensors"):
        training_release(damaged, "user/student")


def test_a_teachers_labels_do_not_name_the_outputs_of_a_student_without_head(tmp_path):
    student = tiny_vit(id2label={0: "cat", 1: "dog", 2: "bird"}, label2id={"cat": 0, "dog": 1, "bird": 2})
    export_student(saved(student, tmp_path / "run"), tmp_path / "student")
    assert "cat" not in (tmp_path / "student" / "config.json").read_text()


def test_a_classifier_is_the_student_with_its_head(tmp_path, run, classifier, exported):
    model = export_classifier(classifier, run, tmp_path / "out")
    assert names(tmp_path / "out") == STUDENT_FILES and model.is_classifier
    assert model.labels == ("cat", "dog", "bird") and model.fingerprint == exported.fingerprint
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(classifier).eval()(pixels).logits
        logits = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()(pixels).logits
    assert torch.equal(logits, expected)


def test_another_models_classifier_is_refused(tmp_path, run, classifier):
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("manifest.json"))
    model = AutoModel.from_pretrained(run, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.cls_token.add_(1)
    model.save_pretrained(other)
    with pytest.raises(ExportError, match="no classifier of the student in .*differ in embeddings.cls_token"):
        export_classifier(classifier, other, tmp_path / "out")
    with pytest.raises(ExportError, match="has no trained classifier"):
        export_classifier(run, run, tmp_path / "out2")


def test_the_adapter_is_a_peft_repository_of_its_own(tmp_path, run):
    config = export_adapter(run, tmp_path / "adapter", "user/teacher")
    assert names(tmp_path / "adapter") == {"adapter_config.json", "adapter_model.safetensors"}
    assert PeftConfig.from_pretrained(tmp_path / "adapter").peft_type == "NULLSPACE_LORA"
    assert config["base_model_name_or_path"] == "user/teacher"
    teacher = AutoModel.from_pretrained(run.parent / "teacher", add_pooling_layer=False)
    refined = PeftModel.from_pretrained(teacher, tmp_path / "adapter").eval()
    pixels = torch.randn(2, 3, 32, 32)
    again = AutoModel.from_pretrained(run.parent / "teacher", add_pooling_layer=False)
    expected = PeftModel.from_pretrained(again, run / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(refined(pixels).last_hidden_state, expected(pixels).last_hidden_state)


def test_a_run_without_adapter(tmp_path):
    with pytest.raises(ExportError, match="has no adapter"):
        export_adapter(saved(tiny_vit(), tmp_path / "run"), tmp_path / "adapter", None)


def test_a_run_without_image_processor_and_a_folder_in_use(tmp_path, run):
    tiny_vit().save_pretrained(tmp_path / "run")
    with pytest.raises(ExportError, match="holds no image processor"):
        export_student(tmp_path / "run", tmp_path / "out")
    with pytest.raises(ExportError, match="is not empty"):
        export_student(run, run)


@pytest.mark.parametrize("is_classifier", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_gives_the_same_outputs_at_any_batch(tmp_path, run, classifier, is_classifier):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if is_classifier:
        model = AutoModelForImageClassification.from_pretrained(classifier).eval()
    else:
        model = AutoModel.from_pretrained(run, add_pooling_layer=False).eval()
    exported = export_onnx(model, tmp_path, (32, 32), is_classifier=is_classifier)
    session = runtime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        outputs = model(pixels, output_hidden_states=True)
    expected = [outputs.logits] if is_classifier else [outputs.last_hidden_state, outputs.hidden_states[-1]]
    found = session.run(list(exported.outputs), {"pixel_values": pixels.numpy()})
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4)
    assert exported.difference < 1e-4 and [path.name for path in (tmp_path / "onnx").iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["as they are", "nan"])
def test_onnx_with_other_outputs_is_not_left_behind(tmp_path, run, monkeypatch, weights):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = AutoModel.from_pretrained(run, add_pooling_layer=False)
    if weights == "nan":
        torch.nn.init.constant_(model.layernorm.weight, float("nan"))
    else:
        monkeypatch.setattr("singer_hf.release.onnx.TOLERANCE", 0.0)
    with pytest.raises(OnnxError, match="differ from torch's"):
        export_onnx(model, tmp_path, (32, 32), is_classifier=False)
    assert not list((tmp_path / "onnx").iterdir())


def test_the_configuration_of_an_exported_adapter_names_the_package(tmp_path, run):
    export_adapter(run, tmp_path / "adapter", None)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "install singer_hf" in config["peft_type"] and config["base_model_name_or_path"] is None
