"""One way to read a configuration: dataclass defaults, then a YAML file, then `key=value` overrides.

The dataclass is the schema. An unknown key is an error that names the nearest one. A file may say `base: OTHER.yaml`
(beside it) and then holds only what differs from that one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meddap.errors import MeddapError

T = TypeVar("T")
_BASE = "base"
# ValueError: not UTF-8, a number of thousands of digits; RecursionError: thousands of brackets
_UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError)


class SettingsError(MeddapError, ValueError):
    """A configuration that cannot be used; one line that names the key, the value and what to do."""


def load(schema: type[T], file: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Return an instance of the dataclass `schema` from its defaults, `file` and `overrides`, in this order.

    Raises SettingsError for a file that cannot be read, an override without `=`, an unknown key, a value of the wrong
    type or a required key that is missing.
    """
    return merge(schema, *_all_layers(file, overrides))


def is_given(key: str, file: str | Path | None, overrides: Sequence[str] = ()) -> bool:
    """Return whether `file` or `overrides` give a value to a dotted key, rather than its default."""
    found = (OmegaConf.select(OmegaConf.create(dict(layer)), key) for _, layer in _all_layers(file, overrides))
    return any(value is not None for value in found)


def is_line(text: str) -> bool:
    """Whether a text is one line that says something, as what is written into tables and model cards has to be."""
    return bool(text.strip()) and text.isprintable()


def _all_layers(file: str | Path | None, overrides: Sequence[str]) -> list[tuple[str, Mapping[Any, Any]]]:
    layers: list[tuple[str, Mapping[Any, Any]]] = [] if file is None else _files(Path(file), ())
    return layers + [(override, _override(override)) for override in overrides]


def merge(schema: type[T], *layers: tuple[str, Mapping[Any, Any]]) -> T:
    """Return an instance of `schema` from its defaults and `layers`: (origin, mapping); the last one wins."""
    merged = OmegaConf.structured(schema)
    for where, mapping in layers:
        layer = mapping if isinstance(mapping, DictConfig) else OmegaConf.create(dict(mapping))
        with _named(where):
            _check_keys(where, layer, merged)
            merged = cast(DictConfig, OmegaConf.merge(merged, layer))
    first = layers[0][0] if layers else schema.__name__
    with _named(first):  # an interpolation that leads nowhere is only found here
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise SettingsError(f"{first}: {missing[0]} is required; give {missing[0]}=VALUE")
        return cast(T, OmegaConf.to_object(merged))


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Raise SettingsError, in one line that names `where` and the key, for what OmegaConf will not take."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise SettingsError(f"{where}: {key}{_reason(error)}") from error
    except TypeError as error:  # a list where a mapping belongs, below a mapping with free keys
        raise SettingsError(f"{where}: {_reason(error)}") from error


def _files(file: Path, above: tuple[Path, ...]) -> list[tuple[str, Mapping[Any, Any]]]:
    """Return the layers of a file, those of its base first. `above` are the files that named it."""
    if file.resolve() in above:
        raise SettingsError(f"{above[-1]}: base: {file.name} leads back to itself; leave it out")
    layer = _read(file)
    base = layer.pop(_BASE, None)
    below = [] if base is None else _files(file.parent / str(base), (*above, file.resolve()))
    return [*below, (str(file), layer)]


def _read(file: Path) -> DictConfig:
    try:
        layer = OmegaConf.load(file)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name an existing configuration") from error
    except _UNREADABLE as error:
        raise SettingsError(f"{file}: not valid YAML: {_reason(error)}") from error
    if not isinstance(layer, DictConfig):
        raise SettingsError(f"{file}: does not hold a mapping of keys to values")
    return layer


def _override(text: str) -> Mapping[Any, Any]:
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise SettingsError(f"{text!r}: expected key=value")
    try:
        return OmegaConf.from_dotlist([text])
    except _UNREADABLE as error:
        raise SettingsError(f"{text!r}: {_reason(error)}") from error


def _check_keys(where: str, layer: DictConfig, known: Any, prefix: str = "") -> None:
    """Raise SettingsError for the first key of `layer` that `known` lacks; mappings with free keys are not checked."""
    names = [str(name) for name in known.keys()]  # noqa: SIM118 iterating skips keys that are still to be given
    for key in map(str, layer):
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)
            raise SettingsError(f"{where}: unknown key {prefix}{key}; did you mean {prefix}{near[0]}?")
        value, inner, there = layer[key], known._get_node(key), f"{prefix}{key}"
        if is_dataclass(keys := OmegaConf.get_type(inner)):
            if isinstance(value, DictConfig):
                _check_keys(where, value, inner, f"{there}.")
            elif value is not None:
                raise SettingsError(_not_keys(where, there, keys, value))
        elif is_dataclass(element := _element_type(inner)):  # free keys, each with an entry of one form
            if value is None:
                continue
            if not isinstance(value, DictConfig):
                raise SettingsError(f"{where}: {there}: expected names, each with keys of its own, not {value}")
            for name in map(str, value):
                if isinstance(value[name], DictConfig):
                    _check_keys(where, value[name], OmegaConf.structured(element), f"{there}.{name}.")
                elif value[name] is not None:
                    raise SettingsError(_not_keys(where, f"{there}.{name}", element, value[name]))


def _not_keys(where: str, key: str, schema: Any, value: object) -> str:
    """Return what to say of a value where keys are expected."""
    first = fields(schema)[0].name
    return f"{where}: {key}: expected keys, e.g. {key}.{first}=VALUE, not {value}"


def _element_type(node: Any) -> Any:
    """Return the type of the entries of a mapping with free keys, or None."""
    return node._metadata.element_type if isinstance(node, DictConfig) else None


def _reason(error: Exception) -> str:
    """Return the first line of an error's text; of a YAML error, what is wrong and in which line of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).partition("\n")[0] or type(error).__name__
