"""A short version of `benchmarks/reliability.py fuzz`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import reliability_fuzz  # noqa: E402


def test_damaged_files_are_clear_errors_or_change_nothing(tmp_path):
    for kind, outcomes in reliability_fuzz.fuzz_files(12, tmp_path, 3).items():
        assert outcomes["unclear"] == 0, kind
        assert outcomes["different"] == 0 or kind == "parquet of JPEGs", kind
        assert outcomes["error"] + outcomes["made_again"] > 0, kind


def test_options_at_random_are_clear_errors_or_what_was_given():
    for script, outcomes in reliability_fuzz.fuzz_options(12, 3).items():
        assert outcomes["unclear"] == outcomes["different"] == 0, script
        assert outcomes["error"] > 0, script


def test_every_own_option_is_tried():
    assert {"nonfinite", "stream_split", "lora_r"} <= set(reliability_fuzz.own_options("distill"))
    assert "tasks" in reliability_fuzz.own_options("evaluate")
