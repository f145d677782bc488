"""The rules of layouts: what their files may hold, and what their patterns fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_prep.discovery.layouts import rules

RULES = {
    "title": "Example",
    "commands": ["ct"],
    "has": ["images/{case}.nii"],
    "files": [{"path": "images/{case}.nii", "role": "image", "patient": "{case}"}],
}


@pytest.mark.parametrize("path", sorted(rules.FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_rules_is_read(path: Path) -> None:
    """Each has an image or DICOM files, and beats only layouts that exist."""
    layout = rules.read(path)
    assert {"image", "dicom", "general"} & {entry.role for entry in layout.files}
    assert set(layout.over) <= {other.name for other in rules.every()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"title": 3}, "title"),
        ({"commands": ["pet"]}, "commands"),
        ({"has": ["**/a.nii"]}, "root"),
        ({"hass": []}, "hass"),
        ({"files": [{"path": "a", "role": "picture"}]}, "picture"),
        ({"files": [{"path": "a", "role": "left out"}]}, "reason"),
        ({"files": [{"path": "a", "role": "image", "patient": "{case}"}]}, "case"),
        ({"files": [{"path": "a/{b}", "role": "image", "patient": "{b}", "organs": "a/*"}]}, "organ"),
        ({"files": [{"path": "a", "role": "image", "patient": "p", "orientation": "LAL"}]}, "orientation"),
        ({"files": [{"path": "a", "role": "image", "patient": "p", "channels": 4}]}, "channels"),
        ({"fields": {"case": "("}}, "unterminated"),
    ],
)
def test_wrong_rules_are_one_line(change: dict, says: str, tmp_path: Path) -> None:
    """An error names the file and what is wrong."""
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump({**RULES, **change}))
    with pytest.raises(rules.LayoutError, match=says) as error:
        rules.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "path", "fields"),
    [
        ("a/{case}.nii(.gz|)", "a/x.nii.gz", {"case": "x"}),
        ("a/{case}.nii(.gz|)", "a/x.nii", {"case": "x"}),
        ("a/{case}.nii", "a/b/x.nii", None),
        ("{case}/{case}_t1.nii", "p/p_t1.nii", {"case": "p"}),
        ("{case}/{case}_t1.nii", "p/q_t1.nii", None),
        ("**/._*", "._x", {}),
        ("**/._*", "a/b/._x", {}),
        ("{n}_*.nii", "12_any.nii", {"n": "12"}),
        ("{n}_*.nii", "ab_any.nii", None),
        ("a+b/{case}.nii", "aab/x.nii", None),
    ],
)
def test_patterns_fit_whole_paths(text: str, path: str, fields: dict | None) -> None:
    """Fields bind parts of names, again with the same value; all else is literal."""
    assert rules.pattern(text, {"n": r"\d+"}).fit(path) == fields


def test_an_unknown_layout_names_the_nearest_one() -> None:
    """One line, with what there is."""
    with pytest.raises(rules.LayoutError, match="did you mean nnunet"):
        rules.named("nnU-net")
