"""Configurations in layers: a file, the file that it is based on, words; and what is no configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meddap.settings import SettingsError, load


@dataclass
class Inner:
    size: int = 1
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Outer:
    title: str = "none"
    inner: Inner = field(default_factory=Inner)
    open: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, **files: str) -> Path:
    """Files by name; the folder."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_holds_what_differs_from_its_base(tmp_path: Path) -> None:
    """Base of the base first, then each file, then words; lists are replaced, open mappings merged."""
    write(
        tmp_path,
        lowest="title: low\ninner: {size: 2, names: [x, y]}\nopen: {stage: {steps: 5, lr: 1}}",
        middle="base: lowest.yaml\ninner: {size: 3}\nopen: {stage: {steps: 6}}",
        top="base: middle.yaml\ntitle: high\ninner: {names: [z]}",
    )
    found = load(Outer, tmp_path / "top.yaml", ["open.stage.lr=2"])
    assert found == Outer("high", Inner(3, ["z"]), {"stage": {"steps": 6, "lr": 2}})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"top": "base: gone.yaml"}, "gone.yaml: No such file or directory"),
        ({"top": "base: other.yaml", "other": "base: top.yaml"}, "other.yaml: base: top.yaml leads back to itself"),
        ({"top": "base: other.yaml", "other": "inner: {sise: 3}"}, "other.yaml: unknown key inner.sise; did you mean"),
        ({"top": "- 1"}, "top.yaml: does not hold a mapping"),
        ({"top": "title: a\ntitle: b"}, "top.yaml: not valid YAML: line 2: found duplicate key title"),
        ({"top": "title: ${gone}"}, "top.yaml: title: Interpolation key 'gone' not found"),
        ({"top": "inner: {size: '${inner}'}"}, "top.yaml: inner.size: "),
        ({"top": "open: {a: '${b}'}"}, "top.yaml: open.a: Interpolation key 'b' not found"),
        ({"top": "inner: {names: {a: b}}"}, "top.yaml: "),
        ({"top": "inner: {size: 1" + "0" * 5000 + "}"}, "top.yaml: not valid YAML: Exceeds the limit"),
        ({"top": "open: " + "[" * 5000}, "top.yaml: not valid YAML: "),
        ({"top": "inner: {size: many}"}, "top.yaml: inner.size: Value 'many' of type 'str' could not be converted"),
    ],
)
def test_what_is_no_configuration_is_one_line(files: dict[str, str], expected: str, tmp_path: Path) -> None:
    """A base that is missing or leads back, an unknown key in it (named by its own file), no mapping, a wrong type."""
    write(tmp_path, **files)
    with pytest.raises(SettingsError) as caught:
        load(Outer, tmp_path / "top.yaml")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["title=${gone}", "title=${oc.env:NO_SUCH_VARIABLE}", "title=???", "inner=[]", "open=[1]", "title=[[["]
)
def test_an_override_that_cannot_be_used_is_one_line(override: str) -> None:
    """References that lead nowhere, a value that is still to be given, lists for mappings, no YAML: it is named."""
    with pytest.raises(SettingsError) as caught:
        load(Outer, None, [override])
    assert override in str(caught.value) and "\n" not in str(caught.value)
