"""What was pushed, opened by a process that has no singer_hf, with the code that its card shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import HubServer
from released import example_images
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from push_to_hub import main as push

WITHOUT_SINGER_HF = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "singer_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NotInstalled())
"""

RUN_THE_CARDS = """
import json
from huggingface_hub import ModelCard, hf_hub_download
from safetensors.torch import save_file
import re

tensors, answers = {}, {}
for name in ("user/student", "user/classifier"):
    text = ModelCard.load(name).text
    scope = {}
    for block in re.findall(r"```python\\n(.*?)```", text, re.S):
        exec(block, scope)
    if "classify" in scope:
        tensors["logits"] = scope["logits"]
        answers["classifier"] = scope["classify"]("image.png")
    else:
        tensors |= {"feature": scope["feature"], "last_hidden_state": scope["outputs"].last_hidden_state,
                    "pipeline": scope["features"]}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, "outputs.safetensors")

from transformers import AutoModel, pipeline
plain = pipeline("image-feature-extraction", model="user/student")
save_file({"plain": plain("image.png", return_tensors=True).contiguous()}, "plain.safetensors")

from peft import PeftModel
try:
    PeftModel.from_pretrained(AutoModel.from_pretrained("user/student"), "user/adapter")
except KeyError as error:
    answers["adapter"] = str(error)
assert not any(name.partition(".")[0] == "singer_hf" for name in sys.modules)
json.dump(answers, open("answers.json", "w"))
"""

REFINED = """
import re
from huggingface_hub import ModelCard
from safetensors.torch import save_file
import torch

scope = {}
for block in re.findall(r"```python\\n(.*?)```", ModelCard.load("user/adapter").text, re.S):
    exec(block, scope)
with torch.no_grad():
    hidden = scope["refined_teacher"](torch.ones(1, 3, 32, 32)).last_hidden_state
save_file({"hidden": hidden.contiguous()}, "refined.safetensors")
"""


@pytest.fixture(scope="module")
def world(run, classifier, tmp_path_factory):
    """A Hub with student, classifier, adapter and teacher, and what a stranger got from it."""
    folder = tmp_path_factory.mktemp("stranger")
    example_images()[0].save(folder / "image.png")
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", hub.token)
        for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True), ("ENDPOINT", hub.url)):
            patch.setattr(huggingface_hub.constants, name, value)
        huggingface_hub.utils.close_session()
        options = ["--run", str(run), "--no_private", "--license", "mit", "--teacher_id", "user/teacher"]
        push([*options, "--repo_id", "user/student", "--adapter_repo_id", "user/adapter"])
        push([*options, "--repo_id", "user/classifier", "--classifier", str(classifier)])
        api = huggingface_hub.HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("user/teacher")
        api.upload_folder(repo_id="user/teacher", folder_path=run.parent / "teacher")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        for script in (WITHOUT_SINGER_HF + RUN_THE_CARDS, REFINED):
            done = subprocess.run(
                [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
        yield hub, folder


def pixels_of(folder, run):
    from PIL import Image

    processor = AutoImageProcessor.from_pretrained(run)
    return processor(images=Image.open(folder / "image.png").convert("RGB"), return_tensors="pt")["pixel_values"]


def test_the_students_outputs_are_identical(world, run):
    _, folder = world
    found, plain = load_file(folder / "outputs.safetensors"), load_file(folder / "plain.safetensors")["plain"]
    torch.set_num_threads(1)
    with torch.no_grad():
        student = AutoModel.from_pretrained(run, add_pooling_layer=False).eval()
        outputs = student(pixels_of(folder, run), output_hidden_states=True)
    assert torch.equal(found["feature"], outputs.hidden_states[-1])
    assert torch.equal(found["last_hidden_state"], outputs.last_hidden_state)
    assert torch.equal(found["pipeline"], outputs.last_hidden_state)
    assert torch.equal(plain, outputs.last_hidden_state)  # with the random pooler that transformers adds, too


def test_the_classifier_answers(world, classifier):
    _, folder = world
    with torch.no_grad():
        model = AutoModelForImageClassification.from_pretrained(classifier).eval()
        logits = model(pixels_of(folder, classifier)).logits
    assert torch.equal(load_file(folder / "outputs.safetensors")["logits"], logits)
    answers = json.loads((folder / "answers.json").read_text())["classifier"]
    assert {answer["label"] for answer in answers} == {"cat", "dog", "bird"}
    assert answers[0]["label"] == model.config.id2label[logits.argmax().item()]


def test_the_adapter_says_what_it_needs(world):
    _, folder = world
    message = json.loads((folder / "answers.json").read_text())["adapter"]
    assert "install singer_hf and `import singer_hf` before PEFT loads this adapter" in message


def test_the_adapters_card_gives_the_refined_teacher(world, run):
    from peft import PeftModel

    _, folder = world
    teacher = AutoModel.from_pretrained(run.parent / "teacher", add_pooling_layer=False)
    refined = PeftModel.from_pretrained(teacher, run / "adapter").eval()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = refined(torch.ones(1, 3, 32, 32)).last_hidden_state
    assert torch.equal(load_file(folder / "refined.safetensors")["hidden"], expected)


def test_only_safetensors_and_no_code_are_published(world):
    hub, _ = world
    files = {name for repo in ("user/student", "user/classifier", "user/adapter") for name in hub.files(repo)}
    assert {re.sub(r".*\.", "", name) for name in files} == {"safetensors", "json", "md"}
    assert not any('auto_map"' in hub.files(repo).get("config.json", b"").decode() for repo in hub.repos)
