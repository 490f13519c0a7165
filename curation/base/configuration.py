"""Typed configuration: dataclasses that check themselves on construction, read from YAML or a command line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from curation.base.errors import CocuError, one_line, quoted

Config = TypeVar("Config")


def option(default: Any, text: str) -> Any:
    """A dataclass field with its default and the line that ``--help`` prints."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


# --- checks -------------------------------------------------------------------------------------------------------------


def require(condition: bool, message: str) -> None:
    """Raises CocuError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise CocuError(message)


def require_one_of(key: str, value: object, choices: Iterable[str]) -> None:
    """Raises CocuError naming ``key``, the choices and the nearest one, unless ``value`` is among them."""
    known = list(choices)
    require(value in known, f"{key}: {quoted(value)} is not one of {', '.join(known)}{did_you_mean(value, known)}")


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """The nearest of the choices, ready to end a message with; nothing where none is near.

    >>> did_you_mean("visoin", ["vision", "text"])
    " (did you mean 'vision'?)"
    >>> did_you_mean("zebra", ["vision", "text"])
    ''
    >>> did_you_mean("--cuont", ["-h", "--count"]), did_you_mean("--key", ["-h", "--help"])
    (" (did you mean '--count'?)", '')
    """
    names = {str(choice).lstrip("-"): choice for choice in choices}  # hyphens make no two options alike
    close = difflib.get_close_matches(str(word).lstrip("-")[:100], names, n=1, cutoff=0.5)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


@contextlib.contextmanager
def errors_naming(where: str) -> Iterator[None]:
    """Put ``where``, a file or an option, in front of the message of every CocuError of the block."""
    try:
        yield
    except CocuError as error:
        raise type(error)(f"{where}: {error}") from None


def parse_bytes(text: str, key: str) -> int:
    """The bytes of a size such as 16G, 512M, 1.5T or 1000, in powers of 1024.

    Raises CocuError naming ``key`` for anything else.

    >>> parse_bytes("1.5T", "memory") == 1536 * 2**30
    True
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if size is None or not 0 < float(size[1]) < 1e18:
        raise CocuError(f"{key}: {quoted(text)} is not a size; write 16G, 512M or 1.5T")
    return int(float(size[1]) * 1024 ** " KMGT".index(size[2].upper() or " "))


# --- reading ------------------------------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises CocuError naming the file when it is missing or holds anything else."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CocuError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a huge number
        raise CocuError(f"{path}: cannot be read as YAML ({one_line(error)})") from None
    require(isinstance(values, dict), f"{path}: expected keys and values at the top")
    return values


def read_overrides(overrides: Mapping[str, str]) -> dict[str, Any]:
    """Nested values from dotted keys with YAML text, as given on a command line: {"archive.seed": "1"}.

    Raises CocuError naming the key for text that is not YAML, and for a section that is given a value of its own.
    """
    values: dict[str, Any] = {}
    for dotted, text in overrides.items():
        *sections, last = dotted.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
            require(isinstance(section, dict), f"{dotted}: {name} is also set as a whole")
        try:
            section[last] = yaml.safe_load(text)
        except (ValueError, RecursionError, yaml.YAMLError):
            raise CocuError(f"{dotted}: {quoted(text)} cannot be read as YAML") from None
    return values


def overlay(below: Any, above: Any) -> Any:
    """Nested mappings, those of ``above`` over those of ``below``; anything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {key: overlay(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}
    return above


# --- from values to dataclasses -----------------------------------------------------------------------------------------


def build(cls: type[Config], values: Any, prefix: str = "") -> Config:
    """The dataclass ``cls`` with these values, nested mappings for nested dataclasses; ``prefix`` names it in errors.

    Raises CocuError for unknown keys (with the nearest known one), missing ones and wrong types, and what the dataclasses
    themselves find wrong.

        >>> @dataclasses.dataclass
        ... class Crop:
        ...     size: int = 224
        >>> build(Crop, {"size": 96})
        Crop(size=96)
    """
    require(
        isinstance(values, Mapping), f"{prefix.rstrip('.') or 'file'}: expected keys and values, found {quoted(values)}"
    )
    hints = typing.get_type_hints(cls)
    for key in values:
        require(key in hints, f"unknown key {prefix}{_short(key)}{did_you_mean(_short(key), hints)}")

    for item in dataclasses.fields(cls):  # type: ignore[arg-type]  # mypy cannot say "a type of a dataclass"
        has_default = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        require(has_default or item.name in values, f"{prefix}{item.name}: missing")

    return cls(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def _short(key: Any) -> str:
    return key if isinstance(key, str) and len(key) <= 100 else quoted(key)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type: mappings become dataclasses, whole numbers real ones where those are meant."""
    if dataclasses.is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
        return build(hint, value, f"{key}.")  # type: ignore[arg-type]
    alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    require(
        any(_fits(value, kind) for kind in alternatives),
        f"{key}: expected {' or '.join(map(_type_name, alternatives))}, found {quoted(value)}",
    )
    return float(value) if type(value) is int and float in alternatives and int not in alternatives else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value read from YAML is of the annotated type; whole numbers count as real ones, true is not a number."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is float:
        return type(value) in (int, float)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        return False
    if arguments and isinstance(value, Mapping):
        return all(_fits(item, arguments[1]) for item in value.values())
    if arguments and isinstance(value, Sequence):
        return all(_fits(item, arguments[0]) for item in value)
    return True


def _type_name(kind: Any) -> str:
    return "nothing" if kind is type(None) else getattr(kind, "__name__", str(kind))


def options(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every (dotted key, default, help line) of a configuration, in order."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from options(hints[item.name], f"{prefix}{item.name}.")
        else:
            factory = item.default_factory
            default = item.default if factory is dataclasses.MISSING else factory()
            yield prefix + item.name, default, item.metadata["help"]


def attribute_docs(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each of its attributes, in a section ``Attributes:``, by name.

    >>> class Crop:
    ...     '''A crop.
    ...
    ...     Attributes:
    ...         size: pixels of
    ...             its side.
    ...     '''
    >>> attribute_docs(Crop)
    {'size': 'pixels of its side.'}
    """
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        begins = re.match(r"    (\w+): (.*)", line)
        if begins:
            name = begins[1]
            texts[name] = begins[2]
        elif name and line.startswith("        "):
            texts[name] += " " + line.strip()
    return texts
