"""JSON that we wrote and read again: whole, and of the form that its reader expects. Standard library only.

A form is a type, {key: form} for required keys, {...: form} for any keys, or [form] for each item; float takes whole
numbers too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meddap.errors import MeddapError

_NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class RecordError(MeddapError):
    """A file of ours that is missing, damaged or of another form; one line that names it."""


def read_json(path: Path, form: Any, remedy: str, error: type[MeddapError] = RecordError) -> Any:
    """Return what a JSON file holds. Raises `error`, ending with `remedy`, if missing, damaged or not of `form`."""
    return _parsed(_text(path, remedy, error), form, str(path), remedy, error)


def read_json_lines(path: Path, form: Any, remedy: str, error: type[MeddapError] = RecordError) -> list[Any]:
    """Return the rows of a file with a JSON value per line. Raises `error`, which names the line, as `read_json`."""
    lines = _text(path, remedy, error).splitlines()
    return [_parsed(line, form, f"{path}: line {number}", remedy, error) for number, line in enumerate(lines, 1)]


def misfit(value: Any, form: Any, key: str = "") -> str:
    """Return what in `value` is not of `form`, as words for an error; "" if all of it is."""
    kind = form if isinstance(form, type) else type(form)
    kinds: Any = (int, float) if kind is float else kind
    if not isinstance(value, kinds):
        return f"{key or 'its content'} is not {_NAMES[kind]}"
    if isinstance(form, dict) and (missing := [name for name in form if name is not ... and name not in value]):
        return f"{key or 'its content'} has no {missing[0]!r}"
    problems = (misfit(item, inner, name) for name, item, inner in _items(value, form, key))
    return next(filter(None, problems), "")


def _items(value: Any, form: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, item, form of the item) for what lies in a list or mapping."""
    if isinstance(form, list):
        yield from ((f"{key}[{place}]", item, form[0]) for place, item in enumerate(value))
    elif isinstance(form, dict):
        names: Any = value if ... in form else form
        yield from ((f"{key}.{name}".lstrip("."), value[name], form.get(name, form.get(...))) for name in names)


def _text(path: Path, remedy: str, error: type[MeddapError]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"{path}: {problem.strerror or problem}; {remedy}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: damaged (not valid UTF-8); {remedy}") from problem


def _parsed(text: str, form: Any, where: str, remedy: str, error: type[MeddapError]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: cut or damaged (not valid JSON); {remedy}") from problem
    if words := misfit(value, form):
        raise error(f"{where}: {words}; {remedy}")
    return value
