"""examples/diagnose.py as users run it, on tiny models."""

import json
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_vit, vit_processor
from peft import PeftModel
from runs import trainer_of
from transformers import AutoModel, ResNetConfig

pytest.importorskip("matplotlib")
sys.path.append(str(Path(__file__).parents[1] / "examples"))
sys.path.append(str(Path(__file__).parent / "diagnosis"))
import diagnose  # noqa: E402
from artifact_models import noise_dataset, with_artifacts  # noqa: E402

from singer_hf.command_line import parse_options  # noqa: E402
from singer_hf.diagnosis import ModelInput  # noqa: E402


@pytest.fixture
def command(tmp_path):
    torch.manual_seed(0)
    with_artifacts(tiny_vit(hidden_size=32, num_hidden_layers=4), 2).save_pretrained(tmp_path / "teacher")
    vit_processor().save_pretrained(tmp_path / "teacher")
    noise_dataset(64).to_parquet(tmp_path / "images.parquet")

    def build(**changes):
        options = {
            "model": tmp_path / "teacher",
            "data": tmp_path / "images.parquet",
            "output_dir": tmp_path / "out",
            "perturbation_images": 4,
            "shown_images": 2,
            "device": "cpu",
        } | changes
        flags = []
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *map(str, values)] if value is not None else []
        return flags

    build.folder = tmp_path
    return build


def result_of(folder):
    return json.loads((folder / "out" / "diagnosis.json").read_text())


def test_a_teacher_is_diagnosed(command, capsys):
    diagnose.main(command())
    out = command.folder / "out"
    result = result_of(command.folder)
    assert result["teacher"]["artifact_layers"] == [2, 3] and result["teacher"]["images"] == 64
    assert result["config"]["seed"] == 0 and result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["recommendation"]["sentence"] in capsys.readouterr().out
    assert result["recommendation"]["sentence"] in (out / "report.html").read_text()
    assert {path.stem for path in out.glob("*.png")} >= {"layers", "spectra", "norm_maps", "similarity_maps"}
    teacher = AutoModel.from_pretrained(command.folder / "teacher", add_pooling_layer=False)
    assert PeftModel.from_pretrained(teacher, out / "closed_form").active_peft_config.layers_to_transform == [2, 3]


def test_a_finished_run_and_a_student_by_itself_from_a_stream_and_a_config_file(command):
    teacher = AutoModel.from_pretrained(command.folder / "teacher", add_pooling_layer=False)
    trainer = trainer_of(command.folder / "run", teacher)
    trainer.train()
    trainer.save_model()
    tiny_vit(hidden_size=16).save_pretrained(command.folder / "other")
    (command.folder / "options.yaml").write_text("streaming: true\nclosed_form: false\nperturbation_images: 9\n")
    flags = command(run=[command.folder / "run"], student=[command.folder / "other"], perturbation_images=0)
    diagnose.main([*flags, "--config", str(command.folder / "options.yaml")])
    result = result_of(command.folder)
    assert list(result["students"]) == ["run", "other"]
    assert list(result["refinements"]) == ["run", "untrained (F N Nᵀ)"]
    assert result["layers"] == [2, 3] and result["rank"] == 4
    assert result["students"]["run"][0]["gram_distance_to_refined"]["count"] == 64
    assert 0 <= result["students"]["run"][0]["remaining_loss_on_outliers"] <= 1
    assert result["students"]["other"][0]["remaining_loss_on_outliers"] is None
    assert result["perturbations"] == {}  # the command line wins over the file


def test_names_that_collide(command):
    tiny_vit(hidden_size=16).save_pretrained(command.folder / "a")
    with pytest.raises(SystemExit, match="error: Two of --run, --student and --adapter are called "):
        diagnose.main(command(student=[command.folder / "a", command.folder / "a"]))
    with pytest.raises(SystemExit, match="error: Two of .* are called 'adapter'"):
        diagnose.main(command(student=[command.folder / "x" / "adapter"], adapter=command.folder / "a"))


def test_an_adapter_of_another_model_is_warned_of_or_refused(command, capsys):
    wide = command.folder / "wide"
    tiny_vit(hidden_size=32, num_hidden_layers=4).save_pretrained(command.folder / "twin")
    trainer_of(wide, AutoModel.from_pretrained(command.folder / "twin")).save_model()
    (wide / "adapter" / "manifest.json").unlink()  # it is changed on purpose below
    (args, *_) = parse_options(diagnose.DiagnoseArguments, command(adapter=wide / "adapter"))
    model, _ = diagnose.load_model(args, args.model)
    config = json.loads((wide / "adapter" / "adapter_config.json").read_text())
    for base, warned in (("some/other-vit", True), (str(command.folder / "teacher"), False), (None, False)):
        (wide / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        diagnose.load_adapter(args, model, str(wide / "adapter"))
        assert ("was made for some/other-vit" in capsys.readouterr().err) == warned
    (wide / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(ValueError, match="is for a width of 48, .* has 32"):
        diagnose.load_adapter(args, model, str(wide / "adapter"))


def test_an_adapter_by_itself_leaves_the_model_as_it_was(command):
    trainer = trainer_of(command.folder / "run", AutoModel.from_pretrained(command.folder / "teacher"))
    trainer.save_model()
    (args, *_) = parse_options(diagnose.DiagnoseArguments, command(adapter=command.folder / "run" / "adapter"))
    model, processor = diagnose.load_model(args, args.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refinements, students, fits = diagnose.load_parts(args, model, ModelInput.of_processor(processor))
    assert sorted(refinements["adapter"]) == [2, 3] and students == fits == {}
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_images": 20}, "20 images of 16 patches are 320 patches.*give at least 63 images"),
        ({"data": "no/such/folder/x"}, "No such file or folder"),
        ({"layers": [9]}, "layer 9 is out of range"),
        ({"outlier_ratio": 0.5}, "must be above 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"run": ["no_such_run"]}, "--run no_such_run: expected the folder of a finished distillation"),
        ({"image_column": "picture"}, "no column 'picture'"),
    ],
)
def test_mistakes_are_one_line(command, changes, message):
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        diagnose.main(command(**changes))
    assert not (command.folder / "out").exists()


def test_a_model_without_patch_tokens(command):
    model = AutoModel.from_config(ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8))
    model.save_pretrained(command.folder / "resnet")
    vit_processor().save_pretrained(command.folder / "resnet")
    with pytest.raises(SystemExit, match="error: ResNetModel .*is not a ViT that singer_hf knows"):
        diagnose.main(command(model=command.folder / "resnet"))


def test_a_model_without_an_image_processor(command):
    (command.folder / "teacher" / "preprocessor_config.json").unlink()
    with pytest.raises(SystemExit, match="comes without an image processor"):
        diagnose.main(command())


@pytest.mark.slow
def test_planted_artifacts_of_the_demonstrations_teacher_are_found(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import planted_artifacts

    result = planted_artifacts.run(seed=0)
    assert result["planted"]["blocks_with_artifacts"] == [2, 3, 4, 5]
    blocks = result["planted"]["blocks"]
    assert all(block["precision"] > 0.99 and block["recall_of_strong"] > 0.7 for block in blocks)
    assert blocks[0]["recall_of_strong"] > 0.85
    assert result["clean"]["blocks_with_artifacts"] == [] and sum(result["clean"]["outliers"]) == 0
