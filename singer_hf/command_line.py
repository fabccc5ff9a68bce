"""A script's options, from the command line over a YAML or JSON file, and its set-up errors as one line each."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from safetensors import SafetensorError
from transformers import HfArgumentParser

from .checkpoints.manifest import CheckpointError
from .records.run_record import is_record, read_record
from .records.secrets import LEFT_OUT

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
    try:
        if path is not None:
            options |= read_config(path, known={action.dest for action in parser._actions} - {"config", "help"})
        given = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
        flags = options_as_flags(parser, {name: value for name, value in options.items() if name not in given})
    except ConfigError as error:
        parser.error(str(error))
    return parser.parse_args_into_dataclasses([*flags, *argv], look_for_args_file=False)


class ConfigError(ValueError):
    """A configuration file that cannot be used."""


def read_config(path: str | Path, known: set[str]) -> dict[str, Any]:
    """Options of a YAML or JSON file, or of a run that its `run.json` records, each with a name in `known`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        try:
            options = json.loads(text)  # as YAML, which JSON almost is, its escapes beyond 16 bits would be misread
        except json.JSONDecodeError:
            options = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{path} holds {type(options).__name__}; expected options as `name: value`.")
    if is_record(options):
        try:
            options = read_record(path)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if options.get("script") is None:
            raise ConfigError(
                f"{path} records a run whose options do not say its models and images: it was started from Python, or "
                "by the demonstration (which starts again without --config)."
            )
        options = options["options"]
    unknown = sorted(str(name) for name in set(options) - known)
    if unknown:
        raise ConfigError(f"{path} has unknown options: {', '.join(unknown)}")
    return options


def options_as_flags(parser: argparse.ArgumentParser, options: dict[str, Any]) -> list[str]:
    """What would stand on the command line for these options; None and an empty list stand for the default.

    A list for an option that takes one value on the command line (report_to) becomes the parser's default instead.

    Raises:
        ConfigError: a list or a mapping for an option that takes none, or a value that a token was taken out of.
    """
    actions = {action.dest: action for action in parser._actions}
    hints = {name: hint for each in parser.dataclass_types for name, hint in get_type_hints(each).items()}
    flags = []
    for name, value in options.items():
        action = actions[name]
        _check_shape(name, value, hints[name])
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


def _check_shape(name: str, value: Any, hint: Any) -> None:
    """That a value of a file is as an option's type has it, as far as words on the command line could not tell."""
    parts = (hint, *get_args(hint))
    for kind, what in ((list, "a list"), (dict, "a mapping")):
        if isinstance(value, kind) and not any(part is kind or get_origin(part) is kind for part in parts):
            raise ConfigError(f"{name} is {value!r}; expected one value, not {what}.")
    if LEFT_OUT in str(value):
        raise ConfigError(f"{name} is recorded without the token that it held: give --{name} on the command line.")
    for item in value if isinstance(value, list) else ():
        # Behind an option of several values, such a word would be another option.
        is_option = isinstance(item, str) and item.startswith("-") and not re.match(r"-[\d.]", item)
        if is_option or not isinstance(item, str | int | float):
            raise ConfigError(f"{name} holds {item!r}; expected text without a leading dash, or numbers.")


class SetupError(Exception):
    """What is wrong with a run, found before its first step."""


@contextmanager
def setup(*more: type[Exception], only: bool = False) -> Iterator[None]:
    """Errors in here are the user's to mend, not bugs to trace: ValueError, OSError, damaged files, and `more`.

    Args:
        more: classes of errors.
        only: without ValueError, which may be a bug.
    """
    files = (OSError, CheckpointError, SafetensorError)
    errors = (*files, *more) if only else (*files, ValueError, *more)
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
