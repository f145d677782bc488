"""For whom it works: the main figure of every subgroup before and after, the worst one, and who gained less."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.data import groups
from eval.reporting import results
from eval.reporting.verdict import Verdict
from eval.statistics import subgroups
from eval.statistics.subgroups import Group, Small
from meddap.page import dim

_LEVEL = 0.05


@dataclass(frozen=True)
class Table:
    """Groups in one order: the main figure before and after, and its difference; those that were not scored."""

    before: list[Group]
    after: list[Group]
    gains: list[Group]
    small: list[Small]


def of(found: Verdict, before: Path, after: Path) -> Table | None:
    """Return the subgroups of a verdict; None where nobody asked for any, or two probes were compared.

    Raises MeddapError for files that are damaged.
    """
    members = groups.read(after)
    task, theirs = results.read_predictions(after)
    ours = results.read_predictions(before)[1]
    probe, metric = found.row["probe"], found.row["metric"]
    if not members or probe not in ours or probe not in theirs or metric not in theirs[probe].metrics():
        return None
    one, other = ours[probe], theirs[probe]
    rest = (metric, members, task["subgroup_patients"], task["draws"], task["seed"])
    (first, _), (last, small) = (subgroups.figures(each, *rest) for each in (one, other))
    return Table(first, last, subgroups.gains(one, other, *rest)[0], small)


def lines(table: Table, metric: str) -> list[str]:
    """Return the subgroups in sentences: those that are worse than the rest, or gained less; the worst; the small."""
    said = [
        f"Subgroup {_name(each)} ({each.patients} patients) is WORSE than the others by {-each.gap:.3f} "
        f"({-each.gap_high:.3f} to {-each.gap_low:.3f}, p {_p(each.p)}): {metric} {each.value:.3f}."
        for each in table.after
        if each.p < _LEVEL and each.gap < 0
    ]
    said += [
        f"Subgroup {_name(each)} ({each.patients} patients) gained less than the others by {-each.gap:.3f} "
        f"({-each.gap_high:.3f} to {-each.gap_low:.3f}, p {_p(each.p)})."
        for each in table.gains
        if each.p < _LEVEL and each.gap < 0
    ]
    if table.after and not said:
        worst = min(table.after, key=lambda each: each.gap)
        interval = f"{worst.gap_low:+.3f} to {worst.gap_high:+.3f}"
        said.append(
            f"None of {len(table.after)} subgroups is shown to be worse than the others, or to have gained less; the "
            f"lowest is {_name(worst)} ({worst.patients} patients): {metric} {worst.value:.3f}, {worst.gap:+.3f} from "
            f"the others ({interval})."
        )
    if table.small:
        names = ", ".join(f"{each.attribute} {each.name} ({each.patients})" for each in table.small)
        said.append(f"Not scored, too few patients or unknown: {names}.")
    return said


def section(table: Table, metric: str) -> Iterator[str]:
    """Yield the sentences and the table of groups for a page."""
    yield "<h3>For whom</h3>"
    for line in lines(table, metric):
        loud = "WORSE" in line or "gained less than the others by" in line
        yield f'<p class="bad">{html.escape(line)}</p>' if loud else f"<p>{html.escape(line)}</p>"
    if not table.after:
        return
    rows = []
    for one, other, gain in zip(table.before, table.after, table.gains):
        bad = ' class="bad"' if other.p < _LEVEL and other.gap < 0 else ""
        cells = [
            html.escape(other.attribute),
            html.escape(other.name),
            str(other.patients),
            *(f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in (one, other)),
            f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})",
        ]
        gap = f"{other.gap:+.3f} ({other.gap_low:+.3f} to {other.gap_high:+.3f})"
        joined = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr>{joined}<td{bad}>{gap}</td><td>{_p(other.p)}</td></tr>")
    names = ("attribute", "group", "patients", "before", "after", "difference", "against all others", "p")
    head = "".join(f"<th>{name}</th>" for name in names)
    yield f'<div class="wide compact"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    yield dim(
        f"{metric} with 95 % intervals by resampling patients. Against all others: after, positive is better; interval "
        "and p hold for all groups at once (max-T)."
    )


def _name(group: Group) -> str:
    return f"{group.attribute} {group.name}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"
