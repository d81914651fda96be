"""Strict reading of settings: an unknown key is refused, and the nearest valid one is named.

Every TOML file of the project (charter, node, topology, scenario) passes through ``from_toml``.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from node.errors import ConfigError

T = TypeVar("T")

_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `(?P<path>[^`]*)`)?")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$")


def load_toml(path: Path, into: type[T]) -> T:
    """Read ``path`` as TOML into the msgspec struct ``into``. Raises ConfigError in one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return from_toml(text, into, source=str(path))


def from_toml(text: str, into: type[T], *, source: str) -> T:
    """Parse TOML text into ``into``. Raises ConfigError naming source, key, found and right."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    return convert(raw, into, source=source)


def convert(raw: Any, into: type[T], *, source: str) -> T:
    """Convert plain data into ``into``. Raises ConfigError naming source, key, found and right."""
    for path, value in _numbers(raw, "$"):
        if not math.isfinite(value):  # TOML has inf and nan; no setting means either
            raise ConfigError(
                f"{source}: key '{_join(path, '')}': found {value}, expected a finite number"
            )
    try:
        return msgspec.convert(raw, into)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), raw, into)}") from None


def nearest(word: str, valid: typing.Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest valid word, else the list of the valid ones."""
    options = sorted(set(valid))
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid are {', '.join(options)}" if options else ""


def _numbers(raw: Any, path: str) -> typing.Iterator[tuple[str, float]]:
    """Every float in plain data, with its path as msgspec writes it: ``$.event[0].slow``."""
    if isinstance(raw, float):
        yield path, raw
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _numbers(value, f"{path}.{key}")
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            yield from _numbers(value, f"{path}[{index}]")


def _explain(message: str, raw: Any, into: Any) -> str:
    unknown = _UNKNOWN.search(message)
    if unknown:
        key, path = unknown["key"], unknown["path"] or "$"
        options: set[str] = set()
        for kind in _types_at(into, path):
            options |= {field.encode_name for field in msgspec.structs.fields(kind)}
        return f"unknown key '{_join(path, key)}'{nearest(key, options)}"
    match = _AT.match(message)
    assert match is not None
    path = match["path"] or "$"
    found = _value_at(raw, path)
    shown = "" if found is None or isinstance(found, dict | list) else f", found {found!r}"
    where = f"key '{_join(path, '')}': " if path != "$" else ""
    words = [
        w for kind in _kinds_at(into, path) if _is_literal(kind) for w in typing.get_args(kind)
    ]
    if words and isinstance(found, str):
        return f"{where}unknown value '{found}'{nearest(found, words)}"
    return f"{where}{match['what'][:1].lower()}{match['what'][1:]}{shown}"


def _join(path: str, key: str) -> str:
    return ".".join(part for part in [path.removeprefix("$").lstrip("."), key] if part)


def _steps(path: str) -> list[str]:
    return re.findall(r"\[[^\]]*\]|[^.\[\]]+", path.removeprefix("$"))


def _value_at(raw: Any, path: str) -> Any:
    for step in _steps(path):
        if step.startswith("["):
            index = step.strip("[]")
            if not (isinstance(raw, list) and index.isdigit() and int(index) < len(raw)):
                return None
            raw = raw[int(index)]
        elif isinstance(raw, dict) and step in raw:
            raw = raw[step]
        else:
            return None
    return raw


def _types_at(into: Any, path: str) -> list[Any]:
    """The struct types that can stand at a msgspec error path such as ``$.event[...].at``."""
    kinds = _kinds_at(into, path)
    return [k for k in kinds if isinstance(k, type) and issubclass(k, msgspec.Struct)]


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _kinds_at(into: Any, path: str) -> list[Any]:
    """Everything that can stand there."""
    current = [into]
    for step in _steps(path):
        following: list[Any] = []
        for kind in _flatten(current):
            if step.startswith("["):
                following += [a for a in typing.get_args(kind) if a is not Ellipsis][-1:]
            elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                hints = typing.get_type_hints(kind)
                by_name = {f.encode_name: f.name for f in msgspec.structs.fields(kind)}
                if step in by_name:
                    following.append(hints[by_name[step]])
        current = following
    return _flatten(current)


def _flatten(kinds: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin is typing.Annotated:
            flat += _flatten([typing.get_args(kind)[0]])
        elif origin in (typing.Union, types.UnionType):
            flat += _flatten(list(typing.get_args(kind)))
        else:
            flat.append(kind)
    return flat
