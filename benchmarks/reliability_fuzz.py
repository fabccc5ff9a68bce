"""Damaged files of every kind that is read, and options at random: a clear error, or the very result as before."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from peft import PeftModel
from reliability_run import build, tiny_images, tiny_model, write_images
from safetensors import SafetensorError
from transformers.hf_argparser import string_to_bool

from singer_hf import DistillationArguments, load_vision_model
from singer_hf.checkpoints.manifest import CheckpointError, verify_if_listed
from singer_hf.checkpoints.resume import choose_checkpoint
from singer_hf.command_line import parse_options
from singer_hf.data import StreamingDistillationDataset, eval_transform, load_images
from singer_hf.evaluation import EvaluationResult
from singer_hf.evaluation.cache import FeatureCache
from singer_hf.evaluation.head_file import HeadFile
from singer_hf.evaluation.heads import LinearHeads
from singer_hf.evaluation.labels import Labels
from singer_hf.evaluation.task import read_task
from singer_hf.records.run_record import read_record
from singer_hf.release.amend import amend, read_card
from singer_hf.release.amend import sealed as sealed_card

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
import diagnose  # noqa: E402
import distill  # noqa: E402

# By its path, since `evaluate` is the library.
_spec = importlib.util.spec_from_file_location("evaluate_script", EXAMPLES / "evaluate.py")
evaluate_script = importlib.util.module_from_spec(_spec)
sys.modules["evaluate_script"] = evaluate_script
_spec.loader.exec_module(evaluate_script)

CLEAR = (ValueError, OSError, CheckpointError, SafetensorError)
"""What the scripts show as one line."""
MADE_AGAIN = object()
"""What a reader gives for a file that it found damaged and will make again."""


def damaged(content: bytes, chance: random.Random) -> bytes | None:
    """One mutation of a file's bytes; `None` for a file that is gone."""
    kind = chance.choice(("bit", "byte", "cut", "zeros", "more", "doubled", "empty", "gone"))
    place = chance.randrange(max(1, len(content)))
    if kind == "bit":
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if kind == "byte":
        return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
    if kind == "zeros":
        return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
    return {
        "cut": content[:place],
        "more": content + bytes(chance.randrange(256) for _ in range(8)),
        "doubled": content[: place + 1] + content[place:],
        "empty": b"",
        "gone": None,
    }[kind]


def damaged_record(content: bytes, chance: random.Random) -> bytes:
    """One field of a JSON file left out, renamed, or given another value."""
    record = json.loads(content)
    holder = record
    while True:
        name = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[name]
        if not (isinstance(inner, dict | list) and inner and chance.random() < 0.7):
            break
        holder = inner
    kind = chance.choice(("gone", "renamed", "value"))
    if kind == "value" or isinstance(holder, list):
        holder[name] = chance.choice([None, -1, 1e300, "", "x" * 1000, [], {}, True, [[]], {"a": None}, "../../etc"])
    else:
        value = holder.pop(name)
        if kind == "renamed":
            holder[f"{name}_"] = value
    return json.dumps(record).encode()


def readers(folder: Path) -> dict[str, tuple[list[Path], Callable[[], Any]]]:
    """Kind of file -> files, and what reads them and gives something comparable."""
    write_images(folder / "images")
    trainer = build(folder / "run", folder / "images", stream=True, max_steps=2, save_steps=2)
    trainer.train()
    trainer.save_model()
    checkpoint, run = folder / "run" / "checkpoint-2", folder / "run"

    def resumed() -> Any:
        path = choose_checkpoint(str(checkpoint), run)
        return {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"}

    def adapter() -> Any:
        verify_if_listed(run / "adapter")
        torch.manual_seed(0)
        model = PeftModel.from_pretrained(tiny_model(32, 3), run / "adapter")
        return {name: t.tolist() for name, t in model.state_dict().items() if "lora_" in name}

    def student() -> Any:
        return {name: t.tolist() for name, t in load_vision_model(str(run)).state_dict().items()}

    cache = FeatureCache(folder / "cache", {"model": "tiny"})
    cache.write(0, range(4), {"features": torch.arange(8.0).view(4, 2)})

    def shard() -> Any:
        tensors = cache.read(0, range(4))
        return MADE_AGAIN if tensors is None else {name: t.tolist() for name, t in tensors.items()}

    head = HeadFile(folder / "head.safetensors", {"model": "tiny"})
    labels = Labels(torch.empty(0, dtype=torch.int64), ("a", "b"), True)
    head.save(LinearHeads(torch.randn(1, 3, 2), torch.zeros(1, 2)), labels)

    def head_weights() -> Any:
        if not head.is_valid():
            return MADE_AGAIN
        loaded, classes = head.load(torch.device("cpu"))
        return loaded.weight.tolist(), loaded.bias.tolist(), classes.names

    result = folder / "result.json"
    empty = {"model": {"name": "tiny"}, "task": {}, "protocol": {}, "hyperparameters": {"lr": 0.1}}
    EvaluationResult(
        **empty, scores={"top1": 0.5}, main_score="top1", seed=0, seconds={"all": 1.0}, environment={}
    ).save(result)
    task = folder / "task.json"
    task.write_text(json.dumps({"kind": "classification", "dataset": "images", "num_labels": 4, "resolution": 32}))

    def task_fields() -> Any:
        found = read_task(task)
        # A description is written by hand and has no checksum: another valid one is another task, not damage.
        return {f.name for f in fields(found)}

    def pixels(parquet: Path) -> Any:
        stream = load_images(parquet, split="train", streaming=True)
        views = StreamingDistillationDataset(stream, eval_transform(8), image_column="image")
        return [item["pixel_values"].tolist() for item in views]

    card = folder / "README.md"
    generated = sealed_card(ModelCard(CARD))
    generated.save(card)

    def amended() -> Any:
        # Whatever a person wrote stays, so text that differs is no damage; what comes out is a card all the same.
        once, _ = amend(read_card(card), generated)
        twice, _ = amend(ModelCard(once.content), generated)
        marks = [once.text.count(f"begin {name}") for name in ("use", "results")]
        return once.content == twice.content, all(count < 2 for count in marks), bool(once.data.to_dict())

    jpegs = folder / "jpegs.parquet"
    write_jpegs(jpegs)
    pngs = folder / "images" / "train-0.parquet"

    def listed(part: Path) -> list[Path]:
        return sorted(path for path in part.rglob("*") if path.is_file())

    student_files = [run / name for name in ("config.json", "model.safetensors", "manifest.json")]
    return {
        "checkpoint": (listed(checkpoint), resumed),
        "adapter": (listed(run / "adapter"), adapter),
        "student": (student_files, student),
        "cache shard": (listed(folder / "cache"), shard),
        "head": ([folder / "head.safetensors"], head_weights),
        "result": ([result], lambda: vars(EvaluationResult.load(result))),
        "run record": ([run / "run.json"], lambda: read_record(run / "run.json")),
        "task": ([task], task_fields),
        "card": ([card], amended),
        "parquet": ([pngs], lambda: pixels(pngs)),
        "parquet of JPEGs": ([jpegs], lambda: pixels(jpegs)),
    }


def fuzz_files(count: int, folder: Path, number: int) -> dict[str, dict[str, int]]:
    """Outcomes of `count` mutations of each kind of file."""
    chance, found = random.Random(number), {}
    datasets.disable_progress_bars()
    for kind, (files, read) in readers(folder).items():
        expected = read()
        outcomes = {"error": 0, "made_again": 0, "identical": 0, "different": 0, "unclear": 0}
        for _ in range(count):
            path = chance.choice(files)
            content = path.read_bytes()
            is_record = path.suffix == ".json" and chance.random() < 0.5
            change = damaged_record(content, chance) if is_record else damaged(content, chance)
            if change is None:
                path.unlink()
            else:
                path.write_bytes(change)
            try:
                value = read()
                same = "identical" if value == expected else "different"
                outcomes["made_again" if value is MADE_AGAIN else same] += 1
            except CLEAR as error:
                outcomes["error" if str(error) else "unclear"] += 1
            except Exception as error:
                outcomes["unclear"] += 1
                print(f"{kind}, {path.name}: {type(error).__name__}: {error}"[:400])
            finally:
                path.write_bytes(content)
        if read() != expected:
            raise RuntimeError(f"{kind}: the undamaged files do not give again what they gave before.")
        found[kind] = outcomes
    return found


CARD = """---
license: mit
tags:
- singer
datasets:
- images
---
# student

<!-- singer_hf begin use -->
How it is used.
<!-- singer_hf end use -->

<!-- singer_hf begin results -->
| task | top-1 |
|---|---|
| images | 75.00 % |
<!-- singer_hf end results -->
"""


def write_jpegs(path: Path) -> None:
    """Images as JPEGs, which, other than PNGs, hold no checksums."""
    images = []
    for row in tiny_images(8):
        row["image"].save(buffer := io.BytesIO(), "JPEG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(path)


# -- options ----------------------------------------------------------------------------------------------------------
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 9),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "no", "true", "1e-3", "nan", "-inf", "../../x", "<script>", "!!python/object:os.system"]),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
SCRIPTS = {
    "distill": (distill.ScriptArguments, DistillationArguments),
    "evaluate": (evaluate_script.EvaluationArguments,),
    "diagnose": (diagnose.DiagnoseArguments,),
}
REQUIRED = {"distill": {}, "evaluate": {}, "diagnose": {"model": "vit", "data": "images"}}
"""Options without a default."""
_OTHERS = {"output_dir", "use_cpu", "report_to", "deepspeed", "fsdp", "accelerator_config", "push_to_hub", "debug"}
"""Trainer's options that open files, reach for a network, or set up the process."""


def own_options(script: str) -> list[str]:
    """Every option that a script adds to Trainer's."""
    inherited = {f.name for f in fields(DistillationArguments.__mro__[1])}
    return sorted({f.name for each in SCRIPTS[script] for f in fields(each) if f.init} - inherited - _OTHERS)


def try_options(script: str, options: dict[str, Any]) -> str:
    """The outcome of a config file with these options."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as message:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(REQUIRED[script] | options))
        argv = ["--config", str(path)]
        argv += ["--output_dir", folder, "--use_cpu", "--report_to", "none"] if script == "distill" else []
        try:
            parsed = parse_options(SCRIPTS[script], argv)
        except SystemExit:
            return "error" if message.getvalue() else "unclear"
        except CLEAR as error:
            return "error" if str(error) else "unclear"
    values = {name: value for each in parsed for name, value in vars(each).items()}
    for name, given_value in options.items():
        if given_value is None or given_value == []:
            continue  # stands for the default
        value = values[name]
        if not _same(value, given_value):
            return "different"
    return "identical"


def _same(value: Any, given_value: Any) -> bool:
    """Whether an option's value is what stood in the file, or the text, number or switch that it says."""
    if isinstance(value, bool):
        return value == string_to_bool(str(given_value))
    if value == given_value or str(value) == str(given_value):
        return True
    with contextlib.suppress(TypeError, ValueError):
        first, second = float(value), float(given_value)
        return first == second or (first != first and second != second)
    if not isinstance(value, list):
        return False
    given_values = given_value if isinstance(given_value, list) else [given_value]
    return len(value) == len(given_values) and all(map(_same, value, given_values))


def fuzz_options(count: int, number: int) -> dict[str, dict[str, int]]:
    """Outcomes of `count` configurations of each script."""
    return {script: _fuzz_script(script, count, number) for script in SCRIPTS}


def _fuzz_script(script: str, count: int, number: int) -> dict[str, int]:
    outcomes = {"error": 0, "identical": 0, "different": 0, "unclear": 0}
    if try_options(script, {}) != "identical":
        raise RuntimeError(f"{script} refuses its own required options, so all that follows would be an error.")

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from([*own_options(script), "unknown"]), VALUES, min_size=1, max_size=3))
    def one(options: dict[str, Any]) -> None:
        try:
            outcome = try_options(script, options)
        except Exception as error:
            outcome = "unclear"
            print(f"{script} {options}: {type(error).__name__}: {error}"[:400])
        if outcome == "different":
            print(f"{script} {options}: accepted as something else"[:400])
        outcomes[outcome] += 1

    one()
    return outcomes


def fuzz(count: int, folder: Path, number: int) -> dict[str, Any]:
    """All of it; `silent` counts what was neither a clear error nor the same result."""
    files, options = fuzz_files(count, folder, number), fuzz_options(count, number)
    rows = {**files, **{f"options of {name}": row for name, row in options.items()}}
    # A flipped byte of a JPEG is often another valid JPEG, and parquet files of others carry no checksums.
    undetectable = rows["parquet of JPEGs"].pop("different")
    return {
        "mutations": sum(sum(row.values()) for row in rows.values()) + undetectable,
        "silent": sum(row.get("different", 0) + row["unclear"] for row in rows.values()),
        "parquet_pixels_changed": undetectable,
        "fuzz": rows,
    }
