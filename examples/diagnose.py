"""Does a ViT have high-norm artifacts, in which layers, and would SiNGER help? And what did an adapter or a run do?

    python examples/diagnose.py --model google/vit-large-patch16-224 --data ./images

    python examples/diagnose.py --model facebook/dinov2-large --data ./images --run runs/dinov2-l-to-s

Writes to --output_dir: report.html (one file, pictures in it), diagnosis.json (every number, with options, versions
and commit), the pictures as PNG files, and closed_form/, the training-free refinement as a PEFT adapter, where there
are outliers.
"""

from __future__ import annotations

import sys
from pathlib import Path

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.append(sys.path.pop(0))  # evaluate.py stands beside this file, see there

import json
import shlex
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Optional

import torch
from peft import PeftConfig, PeftModel
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from singer_hf import load_vision_model, vision_backbone
from singer_hf.checkpoints.folder import ADAPTER_FOLDER, OBJECTIVE_FILE
from singer_hf.checkpoints.manifest import verify_if_listed
from singer_hf.command_line import errors_in_one_line, parse_options, setup
from singer_hf.data import find_processor, load_images
from singer_hf.diagnosis import (
    CLOSED_FORM,
    DiagnosisOptions,
    ImageBatches,
    ModelInput,
    OutlierRule,
    adapter_refinements,
    diagnose,
    load_fit,
    refined_model,
    render_report,
    report_sections,
)
from singer_hf.diagnosis.statistics import as_json
from singer_hf.records.provenance import versions


@dataclass
class DiagnoseArguments:
    """Options of the script."""

    model: str = field(metadata={"help": "Teacher: Hub id (timm's too) or local folder."})
    data: str = field(metadata={"help": "Images: Hub id, image folder, parquet file, folder or glob."})
    output_dir: str = field(default="runs/diagnosis", metadata={"help": "Where report, numbers and pictures go."})
    run: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": "Folders of finished distillation runs: their students, and their adapters where they have."
        },
    )
    adapter: Optional[str] = field(
        default=None, metadata={"help": "A nullspace adapter of this model by itself: folder or Hub id."}
    )
    student: Optional[list[str]] = field(
        default=None, metadata={"help": "Students by themselves: Hub ids or folders."}
    )
    model_revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the models' weights."}
    )
    device: Optional[str] = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, … Default: a GPU where there is one."}
    )
    data_config: Optional[str] = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    data_revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    split: str = field(default="train", metadata={"help": "Split of the data."})
    image_column: Optional[str] = field(
        default=None, metadata={"help": "Column of the images. Default: image, else the only column of images."}
    )
    max_images: Optional[int] = field(
        default=1000,
        metadata={"help": "Images, evenly spaced over the data (of a stream the first); 0: all. 1,000 images "
                  "of 196 patches fix a share of 1 %% to ±0.02 %% if patches were independent; those of an image are "
                  "not, so the true error is greater."},
    )  # fmt: skip
    streaming: bool = field(default=False, metadata={"help": "Read the data while diagnosing, without a copy."})
    image_size: Optional[int] = field(
        default=None, metadata={"help": "Side of the models' square input. Default: each image processor's own."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images a forward pass."})
    num_workers: int = field(default=0, metadata={"help": "Processes that decode images; 0: this one."})
    skip_corrupt_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be decoded; else the first one stops."}
    )
    layers: Optional[list[int]] = field(
        default=None,
        metadata={"help": "Blocks to look at closely. Default: the adapters', else the recommended ones."},
    )
    rank: Optional[int] = field(
        default=None, metadata={"help": "Rank of null bases. Default: the adapters', else the recommended one."}
    )
    fold_layer_norm: bool = field(
        default=False, metadata={"help": "Fold LayerNorm's scale and LayerScale into the surrogates."}
    )
    outlier_k: float = field(
        default=5.0, metadata={"help": "Outliers: robust standard deviations of ln‖F‖ above the median (5)."}
    )
    outlier_ratio: float = field(default=2.0, metadata={"help": "Outliers: least multiple of the median norm (2)."})
    closed_form: bool = field(
        default=True, metadata={"help": "Whether to fit and measure the training-free refinement."}
    )
    closed_form_weight: float = field(
        default=1.0, metadata={"help": "ω: how much the training-free refinement leaves other patches alone (1)."}
    )
    perturbation_images: int = field(
        default=64,
        metadata={
            "help": "Images for the perturbation of real blocks (Table 8); 0 leaves it out. Above a width d "
            "of 256 its Jacobian basis takes 4 d products, which is slow on a CPU."
        },
    )
    perturbation_size: float = field(
        default=0.2, metadata={"help": "Norm of a perturbation relative to its patch's (0.2)."}
    )
    shown_images: int = field(default=4, metadata={"help": "Images that are shown."})
    seed: int = field(default=0, metadata={"help": "Of perturbations and random bases."})

    def __post_init__(self):
        for name in ("batch_size", "shown_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("num_workers", "max_images"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")

    @property
    def torch_device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def options(self) -> DiagnosisOptions:
        return DiagnosisOptions(
            rule=OutlierRule(k=self.outlier_k, min_ratio=self.outlier_ratio),
            layers=self.layers,
            rank=self.rank,
            fold_layer_norm=self.fold_layer_norm,
            closed_form=self.closed_form,
            closed_form_weight=self.closed_form_weight,
            perturbation_images=self.perturbation_images,
            perturbation_size=self.perturbation_size,
            shown_images=self.shown_images,
            seed=self.seed,
        )


def load_model(args: DiagnoseArguments, name: str, revision: str | None = None) -> tuple[Any, Any]:
    """A model in eval mode on the device, and its image processor."""
    model = load_vision_model(name, image_size=args.image_size, revision=revision, dtype=args.dtype)
    return model.eval().to(args.torch_device), find_processor(name, model.config, revision=revision)


def load_adapter(args: DiagnoseArguments, model: Any, path: str) -> dict:
    """The refinements of an adapter; the model is as it was afterwards."""
    verify_if_listed(path)
    config, width = PeftConfig.from_pretrained(path), vision_backbone(model).hidden_size
    if getattr(config, "hidden_size", None) not in (None, width):
        raise ValueError(
            f"The adapter {path} is for a width of {config.hidden_size}, {args.model} has {width}: give an adapter of "
            "this model."
        )
    base = config.base_model_name_or_path
    if base and base != args.model and Path(base).resolve() != Path(args.model).resolve():
        print(f"Warning: the adapter {path} was made for {base}, and --model is {args.model}.", file=sys.stderr)
    # low_cpu_mem_usage: without the initial basis, a decomposition a layer, that the loaded one would replace
    carrying = PeftModel.from_pretrained(model, path, low_cpu_mem_usage=True)
    try:
        return adapter_refinements(carrying)
    finally:
        carrying.unload()


def load_parts(args: DiagnoseArguments, model: Any, model_input: ModelInput) -> tuple[dict, dict, dict]:
    """Refinements, students, and what these were trained to, by name, from --adapter, --run and --student."""
    refinements, students, fits, names = {}, {}, {}, _names(args)
    if args.adapter is not None:
        refinements["adapter"] = load_adapter(args, model, args.adapter)
    folders = args.run or []
    for path in folders:
        if not Path(path, "config.json").exists():
            raise ValueError(f"--run {path}: expected the folder of a finished distillation; it holds no config.json.")
    sources = [(path, name) for path, name in zip([*folders, *(args.student or [])], names, strict=True)]
    for path, name in sources:
        student, processor = load_model(args, path)
        takes = ModelInput.of_processor(processor, args.image_size) if processor is not None else model_input
        students[name] = (student, takes)
        if path not in folders:
            continue
        if Path(path, ADAPTER_FOLDER).exists():
            refinements[name] = load_adapter(args, model, str(Path(path, ADAPTER_FOLDER)))
        if Path(path, OBJECTIVE_FILE).exists():
            fits[name] = load_fit(path, vision_backbone(model), vision_backbone(student), refinements.get(name, {}))
    return refinements, students, {name: fit for name, fit in fits.items() if fit is not None}


def _names(args: DiagnoseArguments) -> list[str]:
    """Short names of runs and students: the last part of the path, or all of it where that is not unique."""
    paths = [*(args.run or []), *(args.student or [])]
    short = [Path(path).resolve().name if Path(path).exists() else Path(path).name for path in paths]
    names = [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]
    taken = [*names, *(["adapter"] if args.adapter is not None else [])]
    if twice := sorted({name for name in taken if taken.count(name) > 1}):
        raise ValueError(
            f"Two of --run, --student and --adapter are called {', '.join(map(repr, twice))}: name each once, and "
            "no run or student 'adapter' beside --adapter."
        )
    return names


def write(args: DiagnoseArguments, found: Any, command: str, seconds: float) -> dict[str, Any]:
    """diagnosis.json, pictures, report and closed form."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    made_with = versions()
    result = found.summary() | {
        "config": as_json(asdict(args)),
        "versions": made_with,
        "device": args.torch_device,
        "seconds": seconds,
    }
    (folder / "diagnosis.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    sections = report_sections(found, result)
    for section in sections:
        for picture in section.pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
    html = render_report(
        f"Diagnosis of {args.model}",
        found.recommendation.sentence,
        sections,
        verdict="artifacts" if found.recommendation.helps else "none",
        facts={
            "model": args.model,
            "images": f"{found.teacher.images} of {args.data}, split {args.split}",
            "tokens": f"{found.teacher.layout.num_patches} patches and {found.teacher.layout.num_prefix_tokens} "
            "prefix tokens an image",
            "command": command,
            "seed": str(args.seed),
            "versions": ", ".join(f"{name} {value}" for name, value in made_with.items() if value),
            "time": f"{seconds:.0f} s on {result['device']}",
        },
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    closed_form = found.refinements.get(CLOSED_FORM)
    if closed_form:
        refined_model(found.backbone.model, closed_form).save_pretrained(folder / "closed_form")
    return result


def run(argv: list[str]) -> None:
    start = time.perf_counter()
    with setup():
        (args, *_) = parse_options(DiagnoseArguments, argv, description=__doc__)
    set_seed(args.seed)
    transformers_logging.set_verbosity_error()  # of heads and poolers that are left out on purpose
    with setup():
        options = args.options()
        model, processor = load_model(args, args.model, args.model_revision)
        vision_backbone(model)  # an unknown family is named before any image is read
        if processor is None:
            raise ValueError(
                f"{args.model} comes without an image processor, which says how images are resized and normalised: "
                "save one beside it (AutoImageProcessor.save_pretrained)."
            )
        model_input = ModelInput.of_processor(processor, args.image_size)
        images = load_images(
            args.data,
            split=args.split,
            config_name=args.data_config,
            revision=args.data_revision,
            streaming=args.streaming,
            max_samples=args.max_images or None,
        )
        batches = ImageBatches(
            images,
            model_input,
            image_column=args.image_column,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            device=args.torch_device,
            skip_corrupt_images=args.skip_corrupt_images,
        )
        refinements, students, fits = load_parts(args, model, model_input)
        found = diagnose(
            model, batches, refinements=refinements, students=students, fits=fits, options=options, report=print
        )
    command = shlex.join(["python", "examples/diagnose.py", *argv])
    write(args, found, command, time.perf_counter() - start)
    print(f"\n{found.recommendation.sentence}\n\nReport, numbers and pictures: {args.output_dir}")


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line():
        run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
