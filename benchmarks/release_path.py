"""The whole way of a release, on the demonstration's student, against the tests' stand-in of the Hub.

    python benchmarks/release_path.py --run runs/digits/singer --classifier runs/digits/classifier \
        --results runs/digits/results --diagnosis runs/digits/diagnosis \
        --python ./clean/bin/python --output benchmarks/results/release_path.json

`--python` is that of an environment with transformers, torch, torchvision and pillow, and without this package:

    python -m venv clean && clean/bin/pip install transformers torch torchvision pillow

1. The student's upload is killed in the middle of its weights; nothing may be published then. The same command again
   has to end with every file, each sent once.
2. Classifier and adapter are pushed. The cards' metadata is checked by rules of its own (tests/hub/card_rules.py).
3. The clean environment runs the code of both cards. Its outputs must be those of the run's folder, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "hub"))

import datasets
import torch
from card_rules import metadata_errors
from hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from singer_hf.records.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
STUDENT, CLASSIFIER, ADAPTER = "user/student", "user/classifier", "user/adapter"

STRANGER = """
import importlib.util, json, re
from importlib.metadata import version
from huggingface_hub import ModelCard
from safetensors.torch import save_file

assert importlib.util.find_spec("singer_hf") is None and importlib.util.find_spec("peft") is None
tensors, answers = {}, {}
for name in ("user/student", "user/classifier"):
    scope = {}
    for block in re.findall(r"```python\\n(.*?)```", ModelCard.load(name).text, re.S):
        exec(block, scope)
    if "classify" in scope:
        tensors["logits"] = scope["logits"]
        answers["image-classification"] = scope["classify"]("image.png")
    else:
        tensors |= {"hidden_states[-1]": scope["feature"], "last_hidden_state": scope["outputs"].last_hidden_state,
                    "pipeline": scope["features"]}
answers["image-feature-extraction"] = list(tensors["pipeline"].shape)
answers["versions"] = {name: version(name) for name in ("transformers", "torch", "huggingface_hub")}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "outputs.safetensors")
json.dump(answers, open("answers.json", "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the demonstration's student")
    parser.add_argument("--classifier", type=Path, required=True, help="its classifier")
    parser.add_argument("--results", type=Path, required=True, help="results of evaluate.py")
    parser.add_argument("--diagnosis", type=Path, required=True, help="output of diagnose.py")
    parser.add_argument("--image", type=Path, default=Path("runs/digits/test.parquet"), help="parquet file of images")
    parser.add_argument("--python", type=Path, required=True, help="Python of an environment without this package")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    with HubServer() as hub, TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = {
            "interrupted_upload": interrupted_upload(args, hub, folder),
            "cards": push_the_rest(args, hub),
            "clean_environment": stranger(args, hub, folder),
            "versions": versions(),
        }
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def push(args: argparse.Namespace, hub: HubServer, *options: str, **popen) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "examples" / "push_to_hub.py"), "--run", str(args.run), "--license", "mit"]
    return subprocess.Popen([*command, "--no_private", *options], env=environment(hub, token=True), **popen)


def environment(hub: HubServer, token: bool, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"} | more
    return clean | ({"HF_TOKEN": hub.token, "PYTHONPATH": str(ROOT)} if token else {"PYTHONPATH": ""})


def interrupted_upload(args: argparse.Namespace, hub: HubServer, folder: Path) -> dict:
    options = ["--repo_id", STUDENT, "--onnx", "--results", str(args.results), "--diagnosis", str(args.diagnosis)]
    options += ["--training_data", "1,297 of scikit-learn's handwritten digits, scaled up to 32x32 pixels."]
    shown = push(args, hub, *options, "--dry_run", "--output_dir", str(folder / "shown"), stdout=subprocess.DEVNULL)
    assert shown.wait() == 0 and not hub.repos, "a dry run sends nothing"
    weights = hashlib.sha256((folder / "shown" / "student" / "model.safetensors").read_bytes()).hexdigest()
    hub.fail(f"PUT /lfs/{weights}", way="stall")
    first = push(args, hub, *options, stdout=subprocess.DEVNULL)
    assert hub.reached.wait(300), "the upload never began"
    while len(hub.received) < 2 and first.poll() is None:  # the other large files arrive meanwhile
        hub.released.wait(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    after_the_cut = {"published": sorted(hub.files(STUDENT)), "large_files_there": len(hub.received)}
    assert after_the_cut["published"] == [] and weights not in hub.received, "half-published"
    sent = dict(hub.received)
    second = push(args, hub, *options, "--output_dir", str(folder / "second"), stdout=subprocess.DEVNULL)
    assert second.wait() == 0
    expected = {
        str(path.relative_to(folder / "second" / "student")): path.read_bytes()
        for path in (folder / "second" / "student").rglob("*")
        if path.is_file()
    }
    files = hub.files(STUDENT)
    assert files == expected, "not what was exported"
    assert hub.received[weights] == len(files["model.safetensors"])
    return {
        "after_the_cut": after_the_cut,
        "after_the_second_run": {name: len(content) for name, content in files.items()},
        "bytes_sent_again": sum(hub.received[oid] - size for oid, size in sent.items()),
        "commits": hub.repos[STUDENT].messages[1:],
    }


def push_the_rest(args: argparse.Namespace, hub: HubServer) -> dict:
    options = ["--results", str(args.results)]
    classifier = push(args, hub, "--repo_id", CLASSIFIER, "--classifier", str(args.classifier), *options)
    assert classifier.wait() == 0
    assert push(args, hub, "--adapter_repo_id", ADAPTER, "--diagnosis", str(args.diagnosis)).wait() == 0
    cards = {}
    for name in (STUDENT, CLASSIFIER, ADAPTER):
        card = ModelCard(hub.files(name)["README.md"].decode())
        assert metadata_errors(card.content) == ([], []), name
        cards[name] = {"pipeline_tag": card.data.pipeline_tag, "library_name": card.data.library_name, "errors": []}
    return cards


def stranger(args: argparse.Namespace, hub: HubServer, folder: Path) -> dict:
    image = datasets.load_dataset("parquet", data_files=str(args.image), split="train")[0]["image"]
    image.save(folder / "image.png")
    (folder / "stranger.py").write_text(STRANGER, encoding="utf-8")
    clean = environment(hub, token=False, HF_HOME=str(folder / "home"), OMP_NUM_THREADS="1")
    subprocess.run([str(args.python.absolute()), "stranger.py"], cwd=folder, env=clean, check=True)
    found, answers = load_file(folder / "outputs.safetensors"), json.loads((folder / "answers.json").read_text())
    torch.set_num_threads(1)
    pixels = AutoImageProcessor.from_pretrained(args.run)(images=image.convert("RGB"), return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        student = AutoModel.from_pretrained(args.run, add_pooling_layer=False).eval()
        outputs = student(pixels, output_hidden_states=True)
        logits = AutoModelForImageClassification.from_pretrained(args.classifier).eval()(pixels).logits
    expected = {
        "hidden_states[-1]": outputs.hidden_states[-1],
        "last_hidden_state": outputs.last_hidden_state,
        "pipeline": outputs.last_hidden_state,
        "logits": logits,
    }
    identical = {name: torch.equal(found[name], tensor) for name, tensor in expected.items()}
    assert all(identical.values()), identical
    answers["image-classification"] = answers["image-classification"][:3]
    return answers | {"outputs_identical": identical, "requests_to_the_hub": len(hub.requests)}


if __name__ == "__main__":
    main()
