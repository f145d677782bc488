"""Rules of layouts: one YAML file each in this folder, whose README.md says what may stand there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from meddap.errors import MeddapError
from meddap.records import misfit

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
FOLDER = Path(__file__).parent
COMMANDS = {"CT": "ct", "MR": "mri", "IMAGE": "images"}  # modality → the command's name in rules
ROLES = ("image", "label map", "organ", "left out", "dicom", "other", "general")
_PIECE = re.compile(r"(?P<any>\*\*/)|(?P<star>\*)|\{(?P<field>[a-z_]+)\}|\((?P<words>[^()/]*\|[^()/]*)\)")
_ENTRY_FORM = {"path": str, "role": str}
_FORM = {"title": str, "commands": [str], "has": list, "files": [dict]}
_KEYS = {*_FORM, *("fields", "lacks", "over", "described_by", "labels", "sequences", "note", "by_name_alone", "across")}
_ENTRY_KEYS = {*_ENTRY_FORM, *("fields", "only", "patient", "study", "sequence", "labels", "organs", "reason")}
_ENTRY_KEYS |= {"beside", "channels", "orientation"}
_AXES = ({"L", "R"}, {"P", "A"}, {"I", "S"})


class LayoutError(MeddapError):
    """A layout that does not exist, does not fit or contradicts another; one line that says why and what to do."""


@dataclass(frozen=True)
class Pattern:
    """A pattern of paths relative to a root.

    expression  what whole paths are compared with, a regular expression
    depth   how many names a path has that fits; 0 if any number (`**/`)
    fields  the names of its fields
    literal the longest text that all paths have that fit
    """

    text: str
    expression: str
    depth: int
    fields: frozenset[str]
    literal: str

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The expression, compiled when it is needed: most layouts are not those of an input. Raises LayoutError."""
        try:
            return re.compile(self.expression)
        except re.error as error:
            raise LayoutError(f"{self.text}: {error}") from error

    def fit(self, path: str) -> dict[str, str] | None:
        """Return the values of the fields, or None if `path` (with /) does not fit."""
        found = self.regex.fullmatch(path) if self.literal in path else None
        return found.groupdict() if found else None

    @property
    def plain(self) -> str:
        """An example of what fits, with * for fields, for people."""
        text = re.sub(r"\{[a-z_]+\}", "*", self.text)
        return re.sub(r"\(([^()/]*\|[^()/]*)\)", lambda words: words[1].partition("|")[0], text)


@dataclass(frozen=True)
class Entry:
    """A line of `files`: what a file is whose path fits.

    beside       files that are read with the image
    channels     whether the fourth axis of an image are the channels of the description
    orientation  where the axes of an image run whose format does not say it ("LAS")
    """

    path: Pattern
    role: str
    only: str = ""
    patient: str = ""
    study: str = ""
    sequence: str = ""
    labels: tuple[Pattern, ...] = ()
    organs: Pattern | None = None
    reason: str = ""
    beside: tuple[Pattern, ...] = ()
    channels: bool = False
    orientation: str = ""


@dataclass(frozen=True, eq=False)
class Layout:
    """The rules of one layout.

    has        groups of patterns, of each of which one must fit a file below the root
    lacks      patterns none of which may fit
    over       less specific layouts
    labels     label value → name
    sequences  value of an entry's `sequence`, lower case → sequence
    note       what the console says of it
    by_name_alone  whether it is for `layout=NAME` alone
    across     whether the images of one study may lie in several roots
    """

    name: str
    title: str
    commands: tuple[str, ...]
    has: tuple[tuple[Pattern, ...], ...]
    files: tuple[Entry, ...]
    lacks: tuple[Pattern, ...] = ()
    over: tuple[str, ...] = ()
    described_by: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    sequences: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    by_name_alone: bool = False
    across: bool = False


@cache
def every() -> tuple[Layout, ...]:
    """Return all layouts, sorted by name."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.yaml")))


def named(name: str) -> Layout:
    """Return a layout by its name. Raises LayoutError that names the nearest one."""
    names = {layout.name: layout for layout in every()}
    if name not in names:
        near = difflib.get_close_matches(name.lower(), names, 1, 0.5)
        which = f"did you mean {near[0]}?" if near else f"there are auto, none, {', '.join(names)}"
        raise LayoutError(f"layout={name}: no such layout; {which}")
    return names[name]


def read(path: Path) -> Layout:
    """Read the rules of one layout and try its expressions. Raises LayoutError, one line."""
    layout = _read(path)
    own = [entry.path for entry in layout.files] + [one for line in layout.has for one in line] + [*layout.lacks]
    for entry in layout.files:
        own += [*entry.labels, *entry.beside, *([entry.organs] if entry.organs else [])]
    try:
        for one in own:
            _ = one.regex
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error
    return layout


def _read(path: Path) -> Layout:
    try:
        content = yaml.load(path.read_text("utf-8"), _LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LayoutError(f"{path}: cannot be read as YAML ({type(error).__name__})") from error
    try:
        return _layout(path.stem, content)
    except ValueError as error:
        raise LayoutError(f"{path}: {error}") from error


def _layout(name: str, content: Any) -> Layout:
    _check(content, _FORM, _KEYS, "the file")
    fields = content.get("fields") or {}
    strange = {*content["commands"]} - {*COMMANDS.values()}
    if strange or not content["commands"] or not content["has"]:
        raise ValueError("commands are ct, mri or images, and has may not be empty")
    has = tuple(
        tuple(pattern(text, fields) for text in (line if isinstance(line, list) else [line])) for line in content["has"]
    )
    if any(one.depth == 0 for line in has for one in line):
        raise ValueError("has: a root cannot be told from a pattern with **/")
    return Layout(
        name=name,
        title=content["title"],
        commands=tuple(content["commands"]),
        has=has,
        files=tuple(_entry(entry, fields) for entry in content["files"]),
        lacks=tuple(pattern(text, fields) for text in content.get("lacks") or ()),
        over=tuple(content.get("over") or ()),
        described_by=content.get("described_by") or "",
        labels={str(value): str(label) for value, label in (content.get("labels") or {}).items()},
        sequences={str(key).lower(): str(value) for key, value in (content.get("sequences") or {}).items()},
        note=content.get("note") or "",
        by_name_alone=content.get("by_name_alone") is True,
        across=content.get("across") is True,
    )


def _entry(content: Any, common: Mapping[str, str]) -> Entry:
    _check(content, _ENTRY_FORM, _ENTRY_KEYS, f"files: {content}")
    fields = {**common, **(content.get("fields") or {})}
    path = pattern(content["path"], fields)
    if content["role"] not in ROLES:
        raise ValueError(f"role {content['role']}: is one of {', '.join(ROLES)}")
    if content["role"] == "left out" and not content.get("reason"):
        raise ValueError(f"{path.text}: a file that is left out needs a reason")
    if content.get("only", "") not in ("", *COMMANDS.values()):
        raise ValueError(f"{path.text}: only is ct, mri or images")
    templates = {key: str(content.get(key) or "") for key in ("patient", "study", "sequence")}
    for key, template in templates.items():
        if unknown := set(re.findall(r"\{([a-z_]+)\}", template)) - path.fields:
            raise ValueError(f"{path.text}: {key} names {sorted(unknown)}, which its path has not")
    if content.get("channels", "described") != "described":
        raise ValueError(f"{path.text}: channels can only be described")
    orientation = content.get("orientation") or ""
    if orientation and not all(sum(axis in pair for axis in orientation) == 1 for pair in _AXES):
        raise ValueError(f"{path.text}: orientation names the ends of three axes, as in LAS")
    organs = pattern(content["organs"], fields) if content.get("organs") else None
    if organs and "organ" not in organs.fields:
        raise ValueError(f"{path.text}: organs needs the field organ")
    return Entry(
        path=path,
        role=content["role"],
        only=content.get("only", ""),
        labels=tuple(pattern(text, fields) for text in content.get("labels") or ()),
        organs=organs,
        reason=content.get("reason") or "",
        beside=tuple(pattern(text, fields) for text in content.get("beside") or ()),
        channels="channels" in content,
        orientation=orientation,
        **templates,
    )


def _check(content: Any, form: Mapping[str, Any], keys: set[str], what: str) -> None:
    if not isinstance(content, dict) or (wrong := misfit(content, form)):
        raise ValueError(f"{what}: {wrong if isinstance(content, dict) else 'expected keys'}")
    if unknown := set(content) - keys:
        raise ValueError(f"{what}: unknown key {sorted(unknown, key=str)[0]}")


def pattern(text: str, fields: Mapping[str, str]) -> Pattern:
    """Return a pattern; `fields`: field → regular expression."""
    regex, literals, seen, end = "", [], set(), 0
    for piece in _PIECE.finditer(text):
        literals.append(text[end : piece.start()])
        regex += re.escape(literals[-1])
        end = piece.end()
        if piece["any"]:
            regex += "(?:[^/]+/)*"
        elif piece["star"]:
            regex += "[^/]*"
        elif piece["words"] is not None:
            regex += f"(?:{'|'.join(re.escape(word) for word in piece['words'].split('|'))})"
        elif piece["field"] in seen:
            regex += f"(?P={piece['field']})"
        else:
            seen.add(piece["field"])
            regex += f"(?P<{piece['field']}>{fields.get(piece['field'], '[^/]+')})"
    literals.append(text[end:])
    regex += re.escape(literals[-1])
    depth = 0 if "**/" in text else text.count("/") + 1
    return Pattern(text, regex, depth, frozenset(seen), max(literals, key=len))
