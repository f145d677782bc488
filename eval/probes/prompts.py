"""Prompts of classes and labels for an encoder with a text tower: phrases, the templates around them, attributes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

import torch
import torch.nn.functional as F

from eval.config import TaskConfig
from eval.encoders.language import Language
from meddap.settings import SettingsError

_PLAIN = ("{}",)


@dataclass(frozen=True)
class Prompts:
    """Whole texts by class or label: `present` says that it is there, `absent` that it is not."""

    present: tuple[tuple[str, ...], ...]
    absent: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        """The number of texts that say that something is there."""
        return sum(len(texts) for texts in self.present)


def of_task(task: TaskConfig, names: Sequence[str]) -> Prompts:
    """Return the texts that a task makes of its `prompts`, `absent_prompts`, `templates` and `attributes`.

    A class without `prompts` is called by its name; a label without `absent_prompts` is absent where `absence` of its
    phrases is said. A template in which an attribute stands, like `{shape}`, holds for the classes that have it, with
    each of its values; texts of absence come from templates without attributes.
    Raises SettingsError for names that the task does not have, templates that say nothing of a class, and a class
    without any text.
    """
    for key, given in (
        ("prompts", task.prompts),
        ("absent_prompts", task.absent_prompts),
        ("attributes", task.attributes),
    ):
        if strange := [name for name in given if name not in names]:
            raise SettingsError(f"{key}.{strange[0]}: the task has no such class or label; it has {', '.join(names)}")
    parts = {template: _parts(template) for template in task.templates}
    fields = {field for each in parts.values() for _, field in each if field}
    known = {name for each in task.attributes.values() for name in each}
    if lacking := sorted(fields - known):
        raise SettingsError(
            f"templates: {{{lacking[0]}}} stands in one, but no class has attributes.CLASS.{lacking[0]}"
        )
    if unused := sorted(known - fields):
        raise SettingsError(f"attributes: no template has {{{unused[0]}}}; add one to templates, or drop the attribute")
    bare = [template for template, each in parts.items() if not any(field for _, field in each)] or list(_PLAIN)
    present, absent = [], []
    for name in names:
        phrases = task.prompts.get(name) or [name.replace("_", " ")]
        own = task.attributes.get(name, {})
        texts = [text for template in task.templates for text in _filled(parts[template], phrases, own)]
        if not texts:
            raise SettingsError(
                f"templates: none can be filled for {name}; add one without attributes, or attributes.{name}"
            )
        gone = task.absent_prompts.get(name) or [task.absence.replace("{}", phrase) for phrase in phrases]
        present.append(tuple(dict.fromkeys(texts)))
        absent.append(tuple(text for template in bare for text in _filled(_parts(template), gone, {})))
    return Prompts(tuple(present), tuple(absent))


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Return (text, field behind it) pairs; the field is "" for the phrase and None where there is none."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise SettingsError(f"templates: {template!r}: {error}; {{}} stands for the phrase") from error
    if not any(field is not None for _, field, _, _ in parsed):
        raise SettingsError(f"templates: {template!r} says nothing of a class; put {{}} where its phrase goes")
    if strange := [field for _, field, form, conversion in parsed if form or conversion or (field or "").isdigit()]:
        raise SettingsError(f"templates: {template!r}: write {{}} or {{attribute}}, without {strange[0]!r}'s format")
    return [(text, field) for text, field, _, _ in parsed]


def _filled(parts: Sequence[tuple[str, str | None]], phrases: Sequence[str], own: dict[str, list[str]]) -> list[str]:
    """Return a template with every phrase and every combination of values; none where an attribute is missing."""
    fields = list(dict.fromkeys(field for _, field in parts if field is not None))
    choices = [phrases if field == "" else own.get(field, []) for field in fields]
    found = []
    for combination in itertools.product(*choices):
        said = dict(zip(fields, combination))
        found.append("".join(text + (said[field] if field is not None else "") for text, field in parts))
    return found


def ensemble(language: Language, groups: Sequence[Sequence[str]]) -> torch.Tensor:
    """Return (T, E): of each group of texts the mean of their features of unit length, of unit length again.

    As CLIP's prompt ensembles (arXiv 2103.00020, section 3.1.4).
    """
    features = language.texts([text for group in groups for text in group])
    means = [part.mean(dim=0) for part in features.split([len(group) for group in groups])]
    return F.normalize(torch.stack(means), dim=1)
