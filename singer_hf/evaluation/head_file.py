"""A trained classification head on disk, with what it was trained on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .heads import LinearHeads
from .labels import Labels


class HeadFile:
    """Weight (C, d) and bias (C,) of an `nn.Linear`, and its classes.

    Args:
        path: the safetensors file.
        origin: whatever the head depends on, as JSON: a head of another origin is not used.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any]):
        self.path, self.origin = path, json.dumps(dict(origin), sort_keys=True)

    def save(self, head: LinearHeads, labels: Labels) -> None:
        """Writes the file, whole or not at all; `labels` of the training images."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        tensors = {"weight": head.weight[0].T.contiguous().cpu(), "bias": head.bias[0].contiguous().cpu()}
        classes = json.dumps({"names": labels.names, "named": labels.named})
        header = {"origin": self.origin, "classes": classes}
        save_file(tensors, part, metadata=header | {"checksum": _checksum(tensors, header)})
        os.replace(part, self.path)

    def is_valid(self) -> bool:
        """Whether there is a head of this origin, undamaged."""
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return False
        checksum = header.pop("checksum", None)
        return header.get("origin") == self.origin and checksum == _checksum(tensors, header)

    def load(self, device: torch.device) -> tuple[LinearHeads, Labels]:
        """The head and its classes (without values); check `is_valid` first."""
        with safe_open(self.path, framework="pt") as file:
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            classes = json.loads(file.metadata()["classes"])
        labels = Labels(torch.empty(0, dtype=torch.int64), tuple(classes["names"]), classes["named"])
        return LinearHeads(weight.T[None].contiguous().to(device), bias[None].to(device)), labels


def _checksum(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
