"""The layouts of folders below the input: where each has its root, and what its rules say of every file."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from data_prep.discovery.layouts import rules
from data_prep.discovery.layouts.rules import Entry, Layout, LayoutError, Pattern

_LEAST_KNOWN = 0.5  # share of the image files below a root that its rules must know, unless the user names the layout


@dataclass(frozen=True)
class Root:
    """A folder with a layout. `start`: what the names of its files begin with, "" or ending with /."""

    layout: Layout
    start: str


@dataclass(frozen=True)
class Known:
    """A file with the rule that fits it: the entry, and the values of the fields in its path."""

    root: Root
    entry: Entry
    fields: Mapping[str, str]

    @property
    def patient(self) -> str:
        """The patient, the same one in all roots that name it; "" if the path names it as without a layout."""
        return self.entry.patient.format_map(self.fields)

    @property
    def study(self) -> str:
        """The study, by a name that no other root has, unless studies of the layout lie in several."""
        start = "" if self.root.layout.across else self.root.start
        return f"{self.root.layout.name}:{start}{self.entry.study.format_map(self.fields)}"

    @property
    def channel(self) -> str:
        """The sequence as named in the path: a word of the layout's `sequences`, or the number of a channel."""
        return self.entry.sequence.format_map(self.fields)


@dataclass
class Recognised:
    """The layouts recognised below an input and their files. `doubts`: warnings about choices between layouts."""

    roots: list[Root] = field(default_factory=list)
    files: dict[str, Known] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    _indices: dict[tuple[str, str, frozenset[str]], dict[tuple[str, ...], list[str]]] = field(default_factory=dict)
    _below: dict[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def _by_start(self) -> dict[str, Root]:
        return {root.start: root for root in self.roots}

    def root_of(self, name: str) -> Root | None:
        """Return the innermost root that holds a file."""
        folder = name
        while folder:
            folder = folder.rpartition("/")[0]
            if root := self._by_start.get(f"{folder}/" if folder else ""):
                return root
        return None

    def known(self, name: str) -> Known | None:
        """Return what is known of any file, one of many DICOM files as well."""
        if name in self.files:
            return self.files[name]
        root = self.root_of(name)
        return _known(root, [name]).get(name) if root else None

    def is_image(self, name: str) -> bool:
        """Return whether a layout's rules say that a file is an image, and of whom."""
        return name in self.files and self.files[name].entry.role == "image"

    def beside(self, name: str) -> list[str]:
        """Return the files that are read with an image."""
        return [file for pattern in self.files[name].entry.beside for file in self._fitting(name, pattern)]

    def labels_of(self, name: str) -> list[str]:
        """Return the label maps of an image: of the first pattern of its entry that any file fits."""
        for pattern in self.files[name].entry.labels:
            if found := self._fitting(name, pattern):
                return found
        return []

    def organs_of(self, name: str) -> dict[str, str]:
        """Return file → organ of the binary label maps of an image."""
        pattern = self.files[name].entry.organs
        if pattern is None:
            return {}
        start = self.files[name].root.start
        fits = {file: pattern.fit(file[len(start) :]) for file in self._fitting(name, pattern)}
        return {file: fields["organ"] for file, fields in fits.items() if fields}

    def _fitting(self, name: str, pattern: Pattern) -> list[str]:
        known = self.files[name]
        shared = pattern.fields & set(known.fields)
        start = known.root.start
        key = start, f"{known.root.layout.name}:{pattern.text}", frozenset(shared)
        if key not in self._indices:
            index = self._indices[key] = defaultdict(list)
            for other in self._below[start]:
                if fields := pattern.fit(other[len(start) :]):
                    index[tuple(fields[one] for one in sorted(shared))].append(other)
        return self._indices[key].get(tuple(known.fields[one] for one in sorted(shared)), [])


def recognise(
    files: Iterable[str],
    images: Sequence[str],
    several: bool,
    setting: str,
    command: str,
    exists: Callable[[str], bool],
) -> Recognised:
    """Return the layouts of an input.

    files    names of all files, at least one of every folder with DICOM files
    images   those that are image files
    several  whether names begin with that of an input folder, above which no root lies
    setting  auto, none or a layout's name
    command  ct or mri: rules for the other one are not considered
    exists   whether the input has a file of this name

    Raises LayoutError if the layout that the setting names does not fit.
    """
    if setting == "none":
        return Recognised()
    layouts = candidates(setting, command)
    tails = _Tails(sorted(set(files)), several)
    images = sorted(images)
    fitting: list[Root] = []
    for layout in layouts:
        fitting += [Root(layout, start) for start in _roots(layout, tails, exists)]
    if setting != "auto" and not fitting:
        raise LayoutError(_missing(layouts[0], tails))
    if not fitting:
        return Recognised()
    known = {root: _known(root, _below(tails.names, root.start)) for root in fitting}
    found = Recognised()
    weak = [root for root in fitting if setting == "auto" and _share(root, known[root], images) < _LEAST_KNOWN]
    found.roots = _chosen([root for root in fitting if root not in weak], known, found.doubts)
    taken = {root.start for root in found.roots}
    for layout in {root.layout.name: root.layout for root in weak if root.start not in taken}.values():
        found.doubts.append(
            f"layout: {layout.title} fits, but knows fewer than half of the image files there, so it is not taken; "
            f"layout={layout.name} takes it"
        )
    for root in sorted(found.roots, key=lambda root: len(root.start)):  # a file belongs to the innermost root
        found._below[root.start] = _below(tails.names, root.start)
        for name in found._below[root.start]:
            found.files.pop(name, None)
        found.files.update(known[root])
    return found


def candidates(setting: str, command: str) -> list[Layout]:
    """Return the layouts that a setting allows. Raises LayoutError for one that is unknown, or of another command."""
    if setting == "none":
        return []
    if setting == "auto":
        return [layout for layout in rules.every() if command in layout.commands and not layout.by_name_alone]
    layout = rules.named(setting)
    if command not in layout.commands:
        raise LayoutError(f"layout={setting}: {layout.title} is for {' and '.join(layout.commands)}; use that command")
    return [layout]


class _Tails:
    """Names without the folders above a root, for patterns of any depth, made once."""

    def __init__(self, names: Sequence[str], several: bool) -> None:
        self.names, self._least = names, int(several)
        self._by_depth: dict[int, list[tuple[str, str]]] = {}

    def of(self, depth: int) -> list[tuple[str, str]]:
        """Return (root, the last `depth` parts) of every name that is long enough."""
        if depth not in self._by_depth:
            split = [name.rsplit("/", depth) for name in self.names]
            self._by_depth[depth] = [
                ("" if len(parts) == depth else f"{parts[0]}/", "/".join(parts[-depth:]))
                for parts in split
                if len(parts) > depth or (len(parts) == depth and not self._least)
            ]
        return self._by_depth[depth]


def _roots(layout: Layout, tails: _Tails, exists: Callable[[str], bool]) -> list[str]:
    """Return the folders below which each line of `has` is fitted, its shared fields by equal values."""
    values: dict[str, list[dict[str, set[str]]]] = {}
    for place, line in enumerate(layout.has):
        for start, fields in _fits(line, tails):
            if place and start not in values:
                continue
            lines = values.setdefault(start, [{} for _ in layout.has])
            lines[place].setdefault("", set()).add("")  # fitted, whatever its fields
            for name, value in fields.items():
                lines[place].setdefault(name, set()).add(value)
        if not values:
            return []
    return [
        start
        for start, lines in sorted(values.items())
        if all(lines) and _agree(lines) and not any(_present(one, start, tails.names, exists) for one in layout.lacks)
    ]


def _fits(line: Sequence[Pattern], tails: _Tails) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (root, fields that all patterns of the line have) for files that fit one of them."""
    common = frozenset.intersection(*(pattern.fields for pattern in line))
    for pattern in line:
        for start, tail in tails.of(pattern.depth):
            if (fields := pattern.fit(tail)) is not None:
                yield start, {key: fields[key] for key in common}


def _agree(lines: list[dict[str, set[str]]]) -> bool:
    names = {name for line in lines for name in line}
    return all(set.intersection(*(line[name] for line in lines if name in line)) for name in names)


def _present(pattern: Pattern, start: str, files: Sequence[str], exists: Callable[[str], bool]) -> bool:
    if not pattern.fields and not set("*(") & set(pattern.text):
        return exists(start + pattern.text)
    return any(pattern.fit(name[len(start) :]) is not None for name in _below(files, start))


def _missing(layout: Layout, tails: _Tails) -> str:
    """Return the error for a layout that does not fit: what its best root lacks."""
    roots = [{start for start, _ in _fits(line, tails)} for line in layout.has]
    best = max({start for found in roots for start in found}, key=lambda s: sum(s in r for r in roots), default="")
    lacking = [" or ".join(one.plain for one in line) for line, found in zip(layout.has, roots) if best not in found]
    what = f"no folder of the input has {', '.join(lacking)}" if lacking else "its files do not belong together"
    return f"layout={layout.name}: {what}; give the folder above, or layout=auto"


def _known(root: Root, files: Sequence[str]) -> dict[str, Known]:
    found = {}
    for name in files:
        path = name[len(root.start) :]
        for entry in root.layout.files:
            if (fields := entry.path.fit(path)) is not None:
                found[name] = Known(root, entry, fields)
                break
    return found


def _below(names: Sequence[str], start: str) -> Sequence[str]:
    """Return those of sorted `names` that begin with `start`."""
    first = bisect_left(names, start)
    return names[first : bisect_left(names, start[:-1] + chr(ord("/") + 1), lo=first)] if start else names


def _share(root: Root, known: Mapping[str, Known], images: Sequence[str]) -> float:
    """Return the share of the image files below a root that its rules know; 1 if there is none."""
    below = _below(images, root.start)
    return sum(name in known for name in below) / len(below) if below else 1.0


def _chosen(fitting: list[Root], known: Mapping[Root, Mapping[str, Known]], doubts: list[str]) -> list[Root]:
    """Return one layout for each root, the more specific; inside a root only what its own rules do not know."""

    claimed: dict[str, set[str]] = defaultdict(set)  # layout → files that more specific ones know
    for root in fitting:
        for name in root.layout.over:
            claimed[name].update(known[root])

    def merit(root: Root) -> tuple[int, int, str, str]:
        return -len(known[root]), len(root.start), root.start, root.layout.name

    chosen: dict[str, Root] = {}
    taken: set[str] = set()
    for root in sorted(fitting, key=merit):
        if 2 * len(claimed[root.layout.name].intersection(known[root])) > len(known[root]):
            continue
        if other := chosen.get(root.start):
            doubt = (
                f"layout: {root.layout.title} fits as well as {other.layout.title}, which is taken; "
                f"layout={root.layout.name} takes the former"
            )
            if doubt not in doubts:
                doubts.append(doubt)
        elif 2 * len(taken.intersection(known[root])) <= len(known[root]):
            chosen[root.start] = root
            taken.update(known[root])
    return sorted(chosen.values(), key=lambda root: root.start)
