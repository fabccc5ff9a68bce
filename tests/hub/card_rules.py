"""The Hub's rules for a card's metadata, as far as its documentation states them; independent of what writes cards."""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

# https://huggingface.co/docs/hub/model-cards and repositories-licenses; the licences are those that tests use.
LICENSES = {
    "mit",
    "apache-2.0",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
    "bsd-3-clause",
    "openrail",
    "other",
    "unknown",
}
RELATIONS = {"finetune", "adapter", "quantized", "merge"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TEXTS = ("library_name", "pipeline_tag", "license_name", "license_link", "base_model_relation", "license")
LISTS = ("tags", "datasets", "metrics", "base_model", "language")


def metadata_errors(card: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card's YAML block."""
    block = REGEX_YAML_BLOCK.search(card)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"], []
    if not isinstance(data, dict):
        return [f"the metadata is {type(data).__name__}, expected a mapping"], []
    errors = [f'"{name}" must be a string' for name in TEXTS if not isinstance(data.get(name, ""), str)]
    for name in LISTS:
        values = data.get(name, [])
        if not all(isinstance(value, str) for value in (values if isinstance(values, list) else [values])):
            errors.append(f'"{name}" must be a string or an array of strings')
        elif name in ("base_model", "datasets"):
            for value in values if isinstance(values, list) else [values]:
                if not HUB_ID.fullmatch(value):
                    errors.append(f'"{name}" with value "{value}" is not valid. Use an id of the Hub.')
    if data.get("license", "mit") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    for index, example in enumerate(data.get("widget", [])):
        if not isinstance(example, dict) or not isinstance(example.get("src", ""), str):
            errors.append(f'"widget[{index}]" must be an object with texts')
    return errors + _model_index_errors(data.get("model-index", [])), []


def _model_index_errors(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        if not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'"model-index[{i}].name" is required')
        for j, result in enumerate(model.get("results", [])):
            where = f"model-index[{i}].results[{j}]"
            for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance(result.get(path[0], {}).get(path[1]), str):
                    errors.append(f'"{where}.{".".join(path)}" is required and a string')
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or isinstance(metric.get("value", True), bool):
                    errors.append(f'"{where}.metrics" needs a type and a value')
    return errors
