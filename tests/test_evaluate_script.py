"""examples/evaluate.py and compare.py, as they are called."""

import http.server
import importlib.machinery
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from families import tiny_vit, vit_processor
from images import image_dataset, with_corrupt_image

from singer_hf.evaluation import TASKS, EvaluationResult

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "evaluation"))
from scenes import scenes  # noqa: E402

TWO_PROCESSES = ("--config_file", str(ROOT / "examples" / "accelerate" / "cpu_2_processes.yaml"))


@pytest.fixture
def folder(tmp_path):
    tiny_vit(num_hidden_layers=2).save_pretrained(tmp_path / "model")
    vit_processor().save_pretrained(tmp_path / "model")
    image_dataset(64, classes=5).to_parquet(tmp_path / "train.parquet")
    image_dataset(33, classes=5, seed=1).to_parquet(tmp_path / "test.parquet")
    return tmp_path


def options(folder, **changes):
    merged = {
        "model": folder / "model",
        "kind": "classification",
        "dataset": folder / "train.parquet",
        "test_dataset": folder / "test.parquet",
        "cache_dir": folder / "cache",
        "output_dir": folder / "out",
        "num_workers": 0,
        "epochs": 20,
        "use_cpu": True,
        "disable_tqdm": True,
    } | changes
    return [item for name, value in merged.items() if value is not None for item in (f"--{name}", str(value))]


def script(name):
    """The script as a module; it stands beside nothing that it could hide here."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def launch(*command, launcher=None, **environment):
    start = [sys.executable, "-m", "accelerate.commands.launch", *launcher] if launcher else [sys.executable]
    return subprocess.run(
        [*start, *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def results(folder):
    return {path.stem: EvaluationResult.load(path) for path in sorted(folder.rglob("*.json"))}


def test_two_processes_give_the_scores_of_one(folder):
    """Also where images do not divide evenly, and for the paper's protocol, in which one process trains."""
    example = ROOT / "examples" / "evaluate.py"
    for protocol, extra in (("default", ()), ("paper", ("--views", "2", "--learning_rates", "0.02"))):
        for name, launcher in (
            ("one", ("--num_processes", "1")),
            ("two", (*TWO_PROCESSES, "--main_process_port", "0")),
        ):
            command = options(folder, output_dir=folder / name, cache_dir=folder / f"cache_{name}", protocol=protocol)
            done = launch(example, *command, *extra, launcher=launcher)
            assert done.returncode == 0, done.stderr
    one, two = results(folder / "one"), results(folder / "two")
    assert len(one) == 2 and list(one) == list(two)
    for name, result in one.items():
        assert two[name].environment["processes"] == 2
        assert two[name].scores == pytest.approx(result.scores, abs=1e-6)
        assert two[name].hyperparameters == result.hyperparameters
        assert two[name].seconds["images_extracted"] == result.seconds["images_extracted"]


def test_two_processes_segment_as_one(folder):
    """Five test images for two processes, and one for a third task's two processes, of which one has none."""
    scenes(12).to_parquet(folder / "scenes.parquet")
    scenes(5, seed=1).to_parquet(folder / "five.parquet")
    scenes(1, seed=2).to_parquet(folder / "single.parquet")
    for test in ("five", "single"):
        path = folder / f"{test}.yaml"
        path.write_text(
            f"kind: segmentation\ndataset: {folder}/scenes.parquet\ntest_dataset: {folder}/{test}.parquet\n"
            "num_labels: 3\nignore_label: 9\n"
        )
    files = (str(folder / "five.yaml"), str(folder / "single.yaml"))
    plain = {"kind": None, "dataset": None, "test_dataset": None, "epochs": 5}
    for name, launcher in (("one", ("--num_processes", "1")), ("two", (*TWO_PROCESSES, "--main_process_port", "0"))):
        command = options(folder, output_dir=folder / name, cache_dir=folder / f"cache_{name}", **plain)
        done = launch(ROOT / "examples" / "evaluate.py", *command, "--tasks", *files, launcher=launcher)
        assert done.returncode == 0, done.stderr
    one, two = results(folder / "one"), results(folder / "two")
    assert len(one) == 2 and list(one) == list(two)
    for name, result in one.items():
        for score, value in result.scores.items():
            assert two[name].scores[score] == pytest.approx(value, abs=1e-6, nan_ok=True), (name, score)


def test_a_task_that_cannot_run_is_found_before_any_is_evaluated(folder):
    """The group of the paper's tasks lacks the images of one of them."""
    good, bad = folder / "good.yaml", folder / "bad.yaml"
    good.write_text(f"kind: classification\ndataset: {folder}/train.parquet\ntest_dataset: {folder}/test.parquet\n")
    bad.write_text("kind: classification\ntest_split: null\n")
    command = options(folder, kind=None, dataset=None, test_dataset=None)
    with pytest.raises(SystemExit, match="Task 'bad' needs its images.*--dataset_of bad=IMAGES"):
        script("evaluate").main([*command, "--tasks", str(good), str(bad)])
    assert not (folder / "cache").exists() and not (folder / "out").exists()
    own = f"bad={folder}/train.parquet"
    found = script("evaluate").run([*command, "--tasks", str(good), str(bad), "--dataset_of", own])
    assert [result.task["name"] for result in found] == ["good", "bad"]


def test_processes_that_do_not_see_each_other_are_refused(folder):
    launcher = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    command = [item for item in options(folder) if item not in ("--use_cpu", "True")]
    done = launch(ROOT / "examples" / "evaluate.py", *command, launcher=launcher, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert "2 processes were launched but they do not see each other" in done.stderr


def test_the_script_does_not_hide_the_library_of_its_name(folder):
    done = launch("evaluate.py", "--help", PYTHONPATH="")
    assert done.returncode != 0  # there is no such file here
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--help"], cwd=ROOT / "examples", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the paper's Table 1" in done.stdout


def test_no_test_file_lets_the_script_hide_the_library_from_spawned_processes():
    """They start with this process's path: a test file that puts examples/ first on it breaks others' tests."""
    spec = importlib.machinery.PathFinder.find_spec("evaluate")
    assert Path(spec.origin).name == "__init__.py", spec.origin


def test_tasks_from_files_options_and_the_registry(folder):
    evaluate = script("evaluate")
    parse = lambda *argv: evaluate.tasks_of(  # noqa: E731
        evaluate.parse_options(evaluate.EvaluationArguments, list(argv))[0]
    )
    path = folder / "mine.yaml"
    path.write_text(f"kind: segmentation\ndataset: {folder}\nnum_labels: 3\nreduce_labels: true\n")
    (task,) = parse("--tasks", str(path), "--ignore_label", "255")
    assert (task.name, task.kind, task.ignore_label, task.reduce_labels) == ("mine", "segmentation", 255, True)
    assert [task.name for task in parse("--tasks", "fg", "pets")] == ["aircraft", "pets", "food101", "flowers102"]
    (task,) = parse("--tasks", "inat2019", "--dataset", "./inat")
    assert (task.dataset, task.num_labels) == ("./inat", 1010)
    (task,) = parse("--kind", "depth", "--dataset", "./rooms", "--depth_scale", "0.001")
    assert (task.name, task.depth_scale, task.test_split) == ("rooms", 0.001, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "--model is missing"),
        ({"kind": None, "dataset": None, "test_dataset": None}, "Name the tasks"),
        ({"dataset": None}, "--kind needs --dataset"),
        ({"tasks": "pets"}, "use one of them"),
        ({"kind": None, "tasks": "petss", "dataset": None, "test_dataset": None}, "Unknown task 'petss'"),
        ({"kind": None, "tasks": "inat2019", "dataset": None, "test_dataset": None}, "needs its images"),
        ({"kind": None, "tasks": "fg", "dataset": None, "test_dataset": None, "dataset_of": "petz=x"}, "got petz=x"),
        ({"export_classifier": "out"}, "leave --output_dir out"),
        ({"export_classifier": "out", "adapter": "some/adapter"}, "--export_classifier does not read --adapter"),
        ({"protocol": "paper", "validation_fraction": 0.2}, "leave validation_fraction out"),
        ({"kind": None, "tasks": "fg"}, "name one task"),
        ({"kind": "segmentation"}, "set num_labels"),
        ({"model": "nowhere"}, "'nowhere' is no folder here"),
        ({"epochs": "0"}, "epochs must be at least 1"),
        ({"learning_rates": "-1"}, "learning_rates must be positive"),
        ({"learning_rates": "1e30"}, "heads diverged"),
        ({"layer": 7}, "layer 7 is out of range: the model has 2 blocks"),
        ({"num_labels": 3}, "labels are out of range"),
        ({"target_column": "imag"}, "no column 'imag'"),
        ({"test_dataset": "nowhere.parquet"}, "No such file"),
        ({"batch_size": "0"}, "batch_size must be at least 1"),
        (
            {"export_classifier": "out", "output_dir": None, "kind": None, "tasks": "ade20k"}
            | {"dataset": None, "test_dataset": None},
            "one cla",
        ),
        ({"image_processor": None, "pooling": "cls", "kind": "depth"}, "no column 'depth'"),
    ],
)
def test_mistakes_are_one_line(folder, changes, message):
    with pytest.raises(SystemExit, match=message) as error:
        script("evaluate").main(options(folder, **changes))
    assert str(error.value).startswith("error: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_in_one_line(folder, workers):
    with_corrupt_image(image_dataset(64, classes=5), 7).to_parquet(folder / "train.parquet")
    with pytest.raises(SystemExit, match=r"^error: Image 7 cannot be read: [^\n]*$"):
        script("evaluate").main(options(folder, num_workers=workers))


def test_a_model_without_an_image_processor(folder):
    (folder / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(SystemExit, match="comes without an image processor"):
        script("evaluate").main(options(folder))
    vit_processor().save_pretrained(folder / "processor")
    assert script("evaluate").main(options(folder, image_processor=folder / "processor")) is None


def test_an_export_by_one_command(folder):
    script("evaluate").main(options(folder, export_classifier=folder / "classifier", output_dir=None))
    assert json.loads((folder / "classifier" / "config.json").read_text())["architectures"] == [
        "ViTForImageClassification"
    ]


def test_a_gated_set_without_a_token(folder):
    """Against a stand-in of the Hub on loopback that answers as it does for a gated dataset."""

    class Gated(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to dataset ILSVRC/imagenet-1k is restricted.")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = options(folder, kind=None, tasks="imagenet-1k", dataset=None, test_dataset=None)
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        home = {"HF_HOME": str(folder / "home"), "HF_DATASETS_CACHE": str(folder / "home" / "datasets")}
        done = launch(ROOT / "examples" / "evaluate.py", *command, **hub, **home)
    finally:
        server.shutdown()
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 'ILSVRC/imagenet-1k' is gated") and "hf auth login" in last, done.stderr


def test_several_models_side_by_side(folder, capsys):
    for name in ("first", "second"):
        tiny_vit(num_hidden_layers=1).save_pretrained(folder / name)
        vit_processor().save_pretrained(folder / name)
        script("evaluate").main(options(folder, model=folder / name))
    capsys.readouterr()
    script("compare").main([str(folder / "out"), "--markdown", str(folder / "table.md")])
    shown = capsys.readouterr().out
    assert "first" in shown and "second" in shown and "%" in shown
    table = (folder / "table.md").read_text()
    assert table.splitlines()[0].split("|")[2].strip() == "train"
    with pytest.raises(SystemExit, match="needs at least 3 axes"):
        script("compare").main([str(folder / "out"), "--radar", str(folder / "radar.png")])


def test_results_beside_the_papers_figures(folder, capsys):
    """Three results under the names of the paper's tasks, with scores that can be recognised."""
    script("evaluate").main(options(folder))
    result = next(iter(results(folder / "out").values()))
    for name, value in {"imagenet-1k": 0.5, "imagenet-r": 0.25, "imagenet-v2": 0.35, "ade20k": 0.2, "mine": 1}.items():
        dataset = TASKS[name].dataset if name in TASKS else "./mine"
        record = EvaluationResult(
            **{
                **{key: getattr(result, key) for key in result.__dataclass_fields__},
                "task": result.task | {"name": name, "dataset": dataset},
                "scores": {"top1_accuracy": value},
            }
        )
        record.save(folder / "paper" / f"{name}.json")
    capsys.readouterr()
    picture = folder / "radar.png"
    script("compare").main([str(folder / "paper"), "--paper", "ViT-L → ViT-T", "--radar", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["IN-val", "ADE20K", "NYUd", "iNat2019", "DS", "FG"]
    ours = next(line for line in lines if "model (default)" in line).split()
    assert ours[-6:] == ["50.00", "20.00", "–", "–", "30.00", "–"]
    singer = next(line for line in lines if "SiNGER" in line).split()
    assert singer[-6:] == ["70.59", "21.76", "0.9406", "41.11", "38.87", "64.61"]
    assert picture.stat().st_size > 10_000
    assert "100.00 %" in lines[-2]  # the task that the paper does not have, in a table of its own


def test_no_results(folder):
    with pytest.raises(SystemExit, match="No evaluation results in"):
        script("compare").main([str(folder / "model")])


def test_the_test_split_of_a_folder_is_found_or_asked_for(folder):
    evaluate = script("evaluate")

    def task(**changes):
        (found,) = evaluate.tasks_of(
            evaluate.parse_options(evaluate.EvaluationArguments, options(folder, test_dataset=None, **changes))[0]
        )
        return found

    def image_folder(*splits):
        for split in splits:
            for label in ("cat", "dog"):
                path = folder / "-".join(splits) / split / label
                path.mkdir(parents=True)
                image_dataset(1)["image"][0].save(path / "0.png")
        return folder / "-".join(splits)

    assert task().test_split is None  # one parquet file
    assert task(dataset=image_folder("train", "test")).test_split == "test"
    two = image_folder("train", "validation")
    with pytest.raises(ValueError, match="has the splits train, validation: name one"):
        task(dataset=two)
    assert task(dataset=two, test_split="validation").test_split == "validation"


def test_a_test_folder_that_lacks_a_class(folder):
    """The image folder's own numbers of the classes then differ from those of the training images."""
    for index, row in enumerate(image_dataset(60, classes=3)):
        for split in ("train", "test"):
            if split == "train" or row["label"] != 0:
                path = folder / split / f"class_{row['label']}"
                path.mkdir(parents=True, exist_ok=True)
                row["image"].save(path / f"{index}.png")
    (result,) = script("evaluate").run(options(folder, dataset=folder / "train", test_dataset=folder / "test"))
    assert result.value > 0.9
