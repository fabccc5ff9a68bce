"""What a recorded result was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "peft", "datasets")
_SOURCES = (":/singer_hf", ":/benchmarks", ":(top,exclude)benchmarks/results")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that numbers depend on, and this package's version and commit."""
    from .. import __version__

    return {"singer_hf": __version__, "python": platform.python_version(), "commit": commit()} | {
        package: version(package) for package in _PACKAGES
    }


def commit() -> str | None:
    """The commit of this package's checkout, `None` outside of one.

    "+changes" stands behind it where files of the package or of the benchmarks differ from that commit; of the
    benchmarks' results alone they may.
    """
    here = Path(__file__).parent
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed, perhaps inside some other repository
    head = _git(here, "rev-parse", "HEAD")
    return head and head + ("+changes" if _git(here, "status", "--porcelain", "-uno", "--", *_SOURCES) else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
