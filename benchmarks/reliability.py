"""Kills, soak and damaged files: whether a run survives what happens in days.

    python benchmarks/reliability.py kills                 50 kills, half of them in the middle of a save
    python benchmarks/reliability.py soak                  2,000 steps; memory and open files
    python benchmarks/reliability.py fuzz                  damaged files of every kind, and options at random
    python benchmarks/reliability.py replay                what passing over a stream's images costs at a resume

Each adds its figures to benchmarks/results/reliability.json. Run with OMP_NUM_THREADS=1: processes are forked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import torch
from PIL import Image
from reliability_fuzz import fuzz
from reliability_run import PARTS, build, drain, forked, kill, live, run_forked, write_images
from safetensors.numpy import load_file
from transformers import TrainerCallback

from singer_hf.data import StreamingDistillationDataset, train_transform
from singer_hf.data.training_stream import Dealing, StreamPosition, TrainingStream
from singer_hf.records.provenance import versions

RESULTS = Path(__file__).parent / "results" / "reliability.json"

RUNS = (
    {"stream": False, "eval_strategy": "steps", "eval_steps": 6, "metric_for_best_model": "gram_distance"},
    {"stream": True, "dataloader_num_workers": 2},
    {"stream": False, "dataloader_num_workers": 1, "gradient_accumulation_steps": 2, "objective": "singer"},
)
"""What is killed, in turns."""


# -- kills ------------------------------------------------------------------------------------------------------------
def kills(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """Kills runs `count` times by SIGKILL, half of them in saves, resumes each, and compares what they end with."""
    chance, images = random.Random(seed), folder / "images"
    run_forked(lambda pipe: write_images(images))
    expected = {}
    for number, options in enumerate(RUNS):
        start = time.monotonic()
        whole = folder / f"whole-{number}"
        run_forked(lambda pipe, o=options, f=whole: live(f, images, pipe, **o), log=folder / "whole.log")
        expected[number] = (_digests(whole), time.monotonic() - start)
    done = {"kills": 0, "kills_in_saves": 0, "kills_between_saves": 0, "failed_resumes": 0, "runs": 0}
    done |= {"runs_identical": 0, "steps_done_again": 0}
    while done["kills"] < count:
        options, number = RUNS[done["runs"] % len(RUNS)], done["runs"] % len(RUNS)
        run, ended = folder / f"killed-{done['runs']}", False
        while not ended:
            left = {
                "save": count - count // 2 - done["kills_in_saves"],
                "any": count // 2 - done["kills_between_saves"],
            }
            kinds = [kind for kind, number_left in left.items() if number_left > 0]
            kind = chance.choice(kinds) if kinds else None
            random_seed = chance.randrange(1 << 30)
            log = folder / "life.log"

            def life(pipe: int, options=options, run=run, kind=kind, random_seed=random_seed) -> None:
                live(run, images, pipe, kill_in_save=random.Random(random_seed) if kind == "save" else None, **options)

            child, pipe = forked(life, log=log)
            if kind == "any":
                told = drain(pipe, chance.uniform(0, expected[number][1]))
                code = kill(child)
                told += drain(pipe)
            else:
                told = drain(pipe)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.close(pipe)
            in_save = told.count(b"(") > told.count(b")")
            if code == -9:
                done["kills"] += 1
                done["kills_in_saves" if in_save else "kills_between_saves"] += 1
                done["steps_done_again"] += len(told.rsplit(b")", 1)[-1].replace(b"(", b""))
            elif code == 0:
                ended = True
            else:
                done["failed_resumes"] += 1
                print(log.read_text()[-3000:])
                break
        done["runs"] += 1
        done["runs_identical"] += ended and _digests(run) == expected[number][0]
        print(done, flush=True)
    return done | {"weights_identical": done["runs_identical"] == done["runs"]}


def _digests(run: Path) -> list[str]:
    """Of every trained tensor; not of the files, in which safetensors orders metadata at random."""
    tensors = {f"{part}:{name}": tensor for part in PARTS for name, tensor in load_file(run / part).items()}
    return [name + hashlib.sha256(tensors[name].tobytes()).hexdigest() for name in sorted(tensors)]


# -- soak -------------------------------------------------------------------------------------------------------------
class Measure(TrainerCallback):
    """Resident memory and open files of this process and its workers, every few steps."""

    def __init__(self, every: int):
        self.every, self.rows = every, []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            process = psutil.Process()
            family = [process, *process.children(recursive=True)]
            memory = sum(member.memory_full_info().pss for member in family) / 2**20
            self.rows.append((state.global_step, memory, process.num_fds(), len(family)))


def soak(steps: int, folder: Path) -> dict[str, Any]:
    """A run of `steps` steps with a worker, evaluations and saves; growth by a line fitted behind a warm-up."""
    found = {}
    for name, options in {
        "map_style": {"stream": False, "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        "stream": {"stream": True, "dataloader_num_workers": 1},
    }.items():
        print(name, flush=True)
        rows = json.loads(run_forked(lambda pipe, o=options, n=name: _soak(steps, folder / n, pipe, o)))
        warm = steps // 5
        step, memory, files, members = np.array([row for row in rows if row[0] >= warm]).T
        slope = np.polyfit(step, memory, 1)[0]
        found[name] = {
            "memory_growth_mb": round(float(slope * (steps - warm)), 3),
            "memory_mb": [round(float(value), 1) for value in (memory.min(), memory.max())],
            "open_files": [int(files.min()), int(files.max())],
            "open_files_growth": round(float(np.polyfit(step, files, 1)[0] * (steps - warm)), 3),
            "processes": [int(members.min()), int(members.max())],
            "warm_up_steps": warm,
        }
    worst = max(run["memory_growth_mb"] for run in found.values())
    return {"soak_steps": steps, "memory_growth_mb": worst, "soak": found}


def _soak(steps: int, folder: Path, pipe: int, options: dict[str, Any]) -> None:
    write_images(folder / "images")
    measure = Measure(every=20)
    often = {"max_steps": steps, "save_steps": 100, "eval_strategy": "steps", "eval_steps": 100, "logging_steps": 50}
    build(folder / "run", folder / "images", callbacks=[measure], **often, **options).train()
    os.write(pipe, json.dumps(measure.rows).encode())


# -- replay -----------------------------------------------------------------------------------------------------------
def replay(count: int, folder: Path) -> dict[str, Any]:
    """Images a second of a stream passed over at a resume, and decoded and cropped, on one thread."""
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((400, 400), Image.Resampling.BICUBIC).save(buffer := io.BytesIO(), "JPEG", quality=90)
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image()})
    path = folder / "images.parquet"
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(path)

    def seconds(begin: int, end: int) -> float:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        views = StreamingDistillationDataset(rows, train_transform(224), shuffle_buffer_size=256)
        stream = TrainingStream(views, Dealing(batch_size=1))
        if begin:
            stream.resume(StreamPosition(batches=begin, last={0: (0, begin - 1)}), workers=0)
        start = time.perf_counter()
        for _ in itertools.islice(stream, end - begin):
            pass
        return time.perf_counter() - start

    seconds(0, 1)
    decoding, passing = seconds(0, count), seconds(count - 1, count)
    return {
        "replay": {
            "images": count,
            "bytes_an_image": round(path.stat().st_size / count),
            "passed_over_per_second": round(count / passing),
            "decoded_per_second": round(count / decoding),
        }
    }


# -- command line -----------------------------------------------------------------------------------------------------
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("kills", "soak", "fuzz", "replay"))
    parser.add_argument(
        "--count", type=int, help="Kills (50), steps (2,000), mutations a kind of file (200), images (2,000)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the moments of the kills and of the damage.")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file that the figures are added to.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if args.command == "kills":
            found = kills(args.count or 50, Path(folder), args.seed)
        elif args.command == "soak":
            found = soak(args.count or 2000, Path(folder))
        elif args.command == "replay":
            found = replay(args.count or 2000, Path(folder))
        else:
            found = fuzz(args.count or 200, Path(folder), args.seed)
    print(json.dumps(found, indent=2))
    record = json.loads(args.output.read_text()) if args.output.exists() else {}
    made = {"seconds": round(time.monotonic() - start), "seed": args.seed, "versions": versions()}
    record |= found | {"versions": made["versions"], "made": record.get("made", {}) | {args.command: made}}
    args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
