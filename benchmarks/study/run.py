"""Runs a grid of the study, cell by cell; what is done already is left out.

    python benchmarks/study/run.py benchmarks/study/cpu.yaml --images tiny-imagenet --camvid camvid

`--only 'artifacts.singer*'` takes some cells; `--part 0/2` and `--part 1/2` share them out to two processes. Each cell
is one file under benchmarks/results/study/<grid>/; benchmarks/study/summary.py makes tables and figures of them.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from candidates import CandidateLoss, register_projectors
from classifier import new_classifier, train_classifier
from filelock import FileLock
from grid import LABELS, OWN_OBJECTIVES, TEACHER, UNTRAINED, Cell, Grid
from scores import likeness, linear_scores
from starts import started_teacher
from teachers import prepare_teachers
from tiny_imagenet import prepare_images
from transformers import AutoImageProcessor, ViTConfig, ViTModel

from singer_hf import DistillationArguments, DistillationTrainer, NullspaceLoraConfig, load_vision_model
from singer_hf.data import load_images
from singer_hf.objectives import objective_class
from singer_hf.records.provenance import versions

RESULTS = Path(__file__).parents[1] / "results" / "study"
ADAPTER_OPTIONS = ("lora_r", "init_lora_weights", "fold_layer_norm", "adapter_start")


def new_student(grid: Grid, cell: Cell, folder: Path, output: Path, device: torch.device) -> dict[str, Any]:
    """A student that has no teacher, trained on labels or with its first weights; what is to be recorded."""
    train = load_images(str(folder / "train.parquet"), split="train")
    model, processor = new_classifier(grid.student, train.features["label"].names, cell.seed)
    training = {}
    if cell.options["objective"] == LABELS:
        training["losses"] = train_classifier(
            model,
            processor,
            train,
            epochs=cell.options["num_train_epochs"],
            learning_rate=cell.options["learning_rate"],
            batch_size=cell.options["per_device_train_batch_size"],
            weight_decay=grid.teacher["weight_decay"],
            min_crop_scale=cell.options["min_crop_scale"],
            seed=cell.seed,
            num_workers=cell.options.get("dataloader_num_workers", 0),
            device=device,
        )
    model.to("cpu").vit.save_pretrained(output)
    processor.save_pretrained(output)
    return training


def distill(grid: Grid, cell: Cell, folder: Path, output: Path, device: torch.device) -> dict[str, Any]:
    """Distills a cell's student into `output`; what is to be recorded of the training."""
    train = load_images(str(folder / "train.parquet"), split="train")
    options = dict(cell.options)
    adapter = {name: options.pop(name) for name in ADAPTER_OPTIONS if name in options}
    candidate = options.pop("feature_loss", None)
    args = DistillationArguments(
        str(output), seed=cell.seed, report_to="none", save_strategy="no", use_cpu=device.type == "cpu", **options
    )
    teacher = load_vision_model(str(folder / cell.teacher), dtype="float32")
    processor = AutoImageProcessor.from_pretrained(folder / cell.teacher)
    transformers.set_seed(cell.seed)
    student = ViTModel(
        ViTConfig(**grid.student, initializer_range=grid.student["hidden_size"] ** -0.5), add_pooling_layer=False
    )
    kind = objective_class(args.objective)
    config, start = None, adapter.pop("adapter_start", None)
    if start is not None:
        layers = args.teacher_layers or kind.default_teacher_layers(teacher.config.num_hidden_layers)
        rank = adapter.pop("lora_r")
        if adapter:
            raise ValueError(f"{cell.name}: with adapter_start the options {sorted(adapter)} say nothing.")
        teacher = started_teacher(teacher, processor, start, layers=layers, rank=rank, images=train)
    elif kind.uses_adapter:
        adapter = {"init_lora_weights": kind.default_init_lora_weights} | adapter
        config = NullspaceLoraConfig(r=adapter.pop("lora_r"), init_seed=cell.seed, **adapter)
    trainer = DistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=train,
        processing_class=processor,
        teacher_processing_class=processor,
        peft_config=config,
    )
    if candidate is not None:
        trainer.model.objective.feature_loss = CandidateLoss(**candidate)
    trainer.train()
    trainer.save_model()
    training = {"log": [entry for entry in trainer.state.log_history if "loss" in entry]}
    if kind.uses_adapter:
        training["rank"] = trainer.teacher.peft_config["default"].r
    return training


def run_cell(grid: Grid, cell: Cell, folder: Path, camvid: str | None, device: torch.device) -> dict[str, Any]:
    """Trains and scores; the cell's result."""
    start = time.perf_counter()
    objective, model, training = cell.options["objective"], folder / "students" / cell.name, {}
    if objective == TEACHER:
        model = folder / cell.teacher
    elif objective in (LABELS, UNTRAINED):
        training = new_student(grid, cell, folder, model, device)
    else:
        training = distill(grid, cell, folder, model, device)
    trained = time.perf_counter()
    scores = linear_scores(model, folder, camvid=camvid, camvid_size=grid.data["camvid_size"], device=device)
    alike = {}
    if objective not in OWN_OBJECTIVES:
        own_loss = "feature_loss" not in cell.options
        alike = likeness(folder / cell.teacher, model, folder, own_loss=own_loss, device=device)
    if objective != TEACHER:
        shutil.rmtree(model)
    return {
        "cell": {"teacher": cell.teacher, "recipe": cell.recipe, "seed": cell.seed, "options": cell.options},
        "setting": grid.setting,
        "scores": scores,
        "likeness": alike,
        "training": training,
        "seconds": {"training": trained - start, "scores": time.perf_counter() - trained},
        "device": str(device),
        "versions": versions(),
    }


def finished(path: Path, grid: Grid, cell: Cell) -> bool:
    """Whether the cell's result is there. Raises ValueError where it is one of other options or of another setting."""
    if not path.exists():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    for name, found, expected in (
        ("options", result["cell"]["options"], cell.options),
        ("setting", result.get("setting", grid.setting), grid.setting),  # the first results carry none
    ):
        if found != expected:
            raise ValueError(
                f"{path} is a result of another {name} than the grid's: {found}, not {expected}. Move the results and "
                "the work folder away, or name the changed recipe differently."
            )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="YAML file")
    parser.add_argument("--images", type=Path, required=True, help="folder of Tiny ImageNet's parquet files")
    parser.add_argument("--camvid", help="folder of CamVid's parquet files; without it that score is left out")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/study"),
        help="images and teachers; students, each until it is scored (runs/study)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="one file a cell, below it by grid")
    parser.add_argument("--candidates", action="store_true", help="the cells of its `candidates` too, one seed each")
    parser.add_argument("--seeds", type=int, help="the grid's first so many seeds alone")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of cells, teacher.recipe.seed")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th cell, from i on")
    parser.add_argument("--limit", type=int, help="stop after so many new cells")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    args = parser.parse_args()
    share = re.fullmatch(r"(\d+)/(\d+)", args.part)
    if share is None or not int(share[1]) < int(share[2]):
        parser.error(f"--part {args.part}: expected i/n with i from 0 to n - 1, e.g. 0/2")
    grid, part, parts = Grid.read(args.grid), int(share[1]), int(share[2])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    register_projectors()
    folder, results = args.work / grid.name, args.results / grid.name
    cells = grid.cells(candidates=args.candidates, seeds=args.seeds)
    cells = [cell for cell in cells if any(fnmatch.fnmatch(cell.name, each) for each in args.only)][part::parts]
    if not cells:
        parser.error(f"no cell of {args.grid} is {' or '.join(args.only)} (--candidates: the cells of one seed too)")
    missing = [cell for cell in cells if not finished(results / f"{cell.name}.json", grid, cell)]
    if not missing:
        print(f"All {len(cells)} cells are in {results}; --results names another folder, to run them again.")
        return
    data = {name: grid.data[name] for name in ("classes", "train_images", "test_images")}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "preparation.lock"):  # of several processes one prepares, the others wait
        prepare_images(folder, args.images, **data)
        prepare_teachers(grid, folder, results, device)
    torch.set_num_threads(args.threads)  # of the cells alone: teachers are prepared with all
    for number, cell in enumerate(missing[: args.limit], len(cells) - len(missing) + 1):
        path = results / f"{cell.name}.json"
        result = run_cell(grid, cell, folder, args.camvid, device)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)
        scores = ", ".join(f"{name} {value:.3f}" for name, value in result["scores"].items())
        print(f"[{number}/{len(cells)}] {cell.name}: {scores} ({sum(result['seconds'].values()):.0f} s)", flush=True)


if __name__ == "__main__":
    main()
