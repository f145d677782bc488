"""One way to read a configuration: dataclass defaults, then a YAML file, then `key=value` words.

The dataclass is the schema. A key that it does not have is an error that names the nearest one. A file may say
`base: OTHER.yaml` (beside it) and then holds only what differs from that one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from meddap.errors import MeddapError

T = TypeVar("T")
_BASE = "base"


class SettingsError(MeddapError, ValueError):
    """A configuration that cannot be used; one line that names the key, the value and what to do."""


def load(schema: type[T], file: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `schema` from its defaults, `file` and `overrides`, in this order.

    Raises SettingsError for a file that cannot be read, a word without `=`, an unknown key, a value
    of the wrong type or a required key that nobody gave.
    """
    layers = [] if file is None else _files(Path(file), ())
    layers += [(word, _word(word)) for word in overrides]
    return merge(schema, *layers)


def merge(schema: type[T], *layers: tuple[str, Mapping[str, Any]]) -> T:
    """An instance of `schema` from its defaults and `layers`: (where it comes from, mapping); the last one wins."""
    merged = OmegaConf.structured(schema)
    for where, layer in layers:
        layer = OmegaConf.create(layer)
        _check_keys(where, layer, merged)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            key = f"{error.full_key}: " if error.full_key else ""
            raise SettingsError(f"{where}: {key}{_first_line(error)}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise SettingsError(
            f"{layers[0][0] if layers else schema.__name__}: {missing[0]} is required; give {missing[0]}=VALUE"
        )
    return OmegaConf.to_object(merged)


def _files(file: Path, above: tuple[Path, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    """The layers of a file: those of its base first. `above` are the files that named it."""
    if file.resolve() in above:
        raise SettingsError(f"{above[-1]}: base: {file.name} leads back to itself; leave it out")
    layer = _read(file)
    base = layer.pop(_BASE, None)
    below = [] if base is None else _files(file.parent / str(base), (*above, file.resolve()))
    return [*below, (str(file), layer)]


def _read(file: Path) -> Mapping[str, Any]:
    try:
        layer = OmegaConf.load(file)
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name an existing configuration") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: is no YAML: {_first_line(error)}") from error
    if not OmegaConf.is_dict(layer):
        raise SettingsError(f"{file}: holds no mapping of keys to values")
    return layer


def _word(word: str) -> Mapping[str, Any]:
    key, equals, _ = word.partition("=")
    if not equals or not key:
        raise SettingsError(f"{word!r}: expected key=value")
    try:
        return OmegaConf.from_dotlist([word])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise SettingsError(f"{word!r}: {_first_line(error)}") from error


def _check_keys(where: str, layer: Mapping[str, Any], known: Any, prefix: str = "") -> None:
    """Find the first key of `layer` that `known` lacks. Mappings that the schema leaves open are not looked into."""
    names = [str(name) for name in known.keys()]  # noqa: SIM118 `in` would not count a key that is still to be given
    for key in layer:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
            raise SettingsError(f"{where}: unknown key {prefix}{key}; did you mean {prefix}{near[0]}?")
        value, inner = layer[key], known._get_node(key)
        if OmegaConf.is_dict(value) and is_dataclass(OmegaConf.get_type(inner)):
            _check_keys(where, value, inner, f"{prefix}{key}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
