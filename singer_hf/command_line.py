"""A script's options, from the command line over a YAML or JSON file, and its set-up errors as one line each."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from .run_record import is_record

logger = logging.getLogger(__name__)


def parse_options(
    classes: Any, argv: list[str], *, description: str | None = None, defaults: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """Options from the command line, over a `--config` file's (YAML or JSON), over `defaults`, over the classes' own.

    All of them go through one parser, so that a file's values are checked as the command line's are.

    Args:
        classes: dataclasses whose fields are the options, each with a `help`.
        argv: the command line without the program's name.
        description: shown by `--help` as it is.
        defaults: option -> value.

    Returns:
        One instance of each class.

    Raises:
        SystemExit: an unknown option or a value of the wrong type, with argparse's message.
    """
    parser = HfArgumentParser(
        classes,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="YAML or JSON file with any of these options.")
    head = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    head.add_argument("--config")
    path = head.parse_known_args(argv)[0].config
    options = dict(defaults or {})
    if path is not None:
        try:
            options |= read_config(path, known={action.dest for action in parser._actions} - {"config", "help"})
        except ConfigError as error:
            parser.error(str(error))
    flags = options_as_flags(parser, options)
    return parser.parse_args_into_dataclasses([*flags, *argv], look_for_args_file=False)


class ConfigError(ValueError):
    """A configuration file that cannot be used."""


def read_config(path: str | Path, known: set[str]) -> dict[str, Any]:
    """Options of a YAML or JSON file, or of a run that its `run.json` records, each with a name in `known`."""
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{path} holds {type(options).__name__}; expected options as `name: value`.")
    if is_record(options):
        if options.get("script") is None:
            raise ConfigError(f"{path} records a run that was started from Python, not by options.")
        options = options["options"]
    unknown = sorted(str(name) for name in set(options) - known)
    if unknown:
        raise ConfigError(f"{path} has unknown options: {', '.join(unknown)}")
    return options


def options_as_flags(parser: argparse.ArgumentParser, options: dict[str, Any]) -> list[str]:
    """What would stand on the command line for these options; None stands for the default.

    A list for an option that takes one value on the command line (report_to) becomes the parser's default instead.
    """
    actions = {action.dest: action for action in parser._actions}
    flags = []
    for name, value in options.items():
        action = actions[name]
        if isinstance(value, bool) and action.choices is not None and "no" in action.choices:
            value = "no" if value is False else value  # eval_strategy: no, which is False in YAML
        if value is None or value == []:
            continue
        if isinstance(value, list) and action.nargs not in ("+", "*"):
            parser.set_defaults(**{name: value})
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


class SetupError(Exception):
    """What is wrong with a run, found before its first step."""


@contextmanager
def setup(*more: type[Exception], only: bool = False) -> Iterator[None]:
    """Errors in here are the user's to mend, not bugs to trace: ValueError, OSError, and those of `more`.

    Args:
        more: classes of errors.
        only: these and OSError alone, where a ValueError may be a bug.
    """
    errors = (OSError, *more) if only else (OSError, ValueError, *more)
    try:
        yield
    except errors as error:
        raise SetupError(str(error)) from error


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program with a [`SetupError`]'s message alone; the whole of it is shown at log level debug."""
    try:
        yield
    except SetupError as error:
        logger.debug("The whole of it:", exc_info=error)
        raise SystemExit(f"error: {error}") from error
