"""The opening of the page: what was adapted to what, what it bought, above which floor, and what to beware."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.schema import Split
from eval.reporting import beside, forest, print_figures, results, subgroup_table, verdict
from eval.reporting.page_files import PageFiles
from eval.reporting.results import with_unit
from eval.reporting.verdict import Verdict
from eval.statistics.bootstrap import shown, shown_p
from meddap.errors import MeddapError
from meddap.page import dim, figure
from pretrain.config import load, recorded, sources_of
from pretrain.runtime import checkpoint

_KINDS = {"GAIN": "good", "LOSS": "bad", "no difference shown": ""}

_NO_FLOOR = "No floor: what the pixels give without a network was not measured"
_LOUD = ("LEAK", "not shown to be above the floor", "mixed up")


def verdicts(folders: Sequence[Path]) -> list[Verdict]:
    """Return the verdict on every probed encoder against the first one of its task; pixels are the floor."""
    found: list[Verdict] = []
    for mine in _by_task(folders).values():
        sources = {folder: _source(folder) for folder in mine}
        networks = [folder for folder in mine if sources[folder] != beside.PIXELS]
        floor = next((folder for folder in mine if sources[folder] == beside.PIXELS), None) or beside.floor(mine[0])
        for after in networks[1:]:
            if sources[after].startswith("random"):
                continue
            try:
                one = verdict.judge(networks[0], after, floor=floor)
            except MeddapError:  # other patients: nothing is paired
                continue
            if one is not None:
                found.append(one)
    return found


def section(folders: Sequence[Path], run: Path | None = None, attached: PageFiles | None = None) -> Iterator[str]:
    """Yield three sentences, the table and the warnings; a remark where there is nothing to compare.

    run       the run that the folders belong to, which says what was adapted to what
    attached  takes the forest plot of several tasks for print, which is then linked
    """
    found = verdicts(folders)
    if not found:
        yield dim("No verdict: it takes the probes of two encoders on the same task, before and after.")
        return
    if run is not None:
        try:
            yield f"<p>{html.escape(adapted(run))}</p>"
        except MeddapError as error:  # a damaged configuration takes no verdict away
            yield dim(f"Missing: {error}")
    yield "".join(f'<p class="verdict {_KINDS[each.call]}">{html.escape(each.sentence())}.</p>' for each in found)
    others = "; ".join(each.about_others() for each in found)
    lost = any(each.lost for each in found)
    yield f'<p class="verdict{" bad" if lost else ""}">{html.escape(others)}.</p>'
    yield _table(found)
    if len(found) > 1 and (rows := forest.of_tasks(found)):
        yield figure(forest.picture(rows), "The main figure of every task: difference with its 95 % interval.")
        if attached is not None:
            yield attached.links("Forest plot for print", "tasks-forest", print_figures.forest(rows))
    warnings = list(dict.fromkeys(f"{each.task}: {text}" for each in found for text in each.warnings))
    if floorless := [each.task for each in found if each.floor is None]:
        names = ", ".join(dict.fromkeys(floorless))
        warnings.append(f"{names}: {_NO_FLOOR[0].lower()}{_NO_FLOOR[1:]}; probe --checkpoint pixels beside the others")
    for each in found:
        for about in (verdict.about_windows(*each.folders), verdict.about_site(*each.folders)):
            if about:
                yield f"<p>{html.escape(each.task)}: {html.escape(about)}.</p>"
    for text in warnings:
        loud = ' class="bad"' if any(word in text for word in _LOUD) else ""
        yield f"<p{loud}>Beware: {html.escape(text)}.</p>"
    for each in found:
        if (table := subgroup_table.of(each, *each.folders)) is not None:
            yield from subgroup_table.section(table, verdict.name_of(each.row))


def lines(found: Verdict) -> list[str]:
    """Return a verdict as lines for a console."""
    said = [f"{found.sentence()}.", f"{found.about_others()}."]
    table = subgroup_table.of(found, *found.folders)
    about = subgroup_table.lines(table, verdict.name_of(found.row)) if table is not None else []
    both = (verdict.about_windows(*found.folders), verdict.about_site(*found.folders))
    about += [f"{text}." for text in both if text]
    floor = f"Floor: {found.about_floor()}." if found.floor else f"{_NO_FLOOR}; --floor DIR probes them there."
    return [*said, floor, *about, *(f"Beware: {text}." for text in found.warnings)]


def adapted(run: Path) -> str:
    """Return in a sentence what a run adapted to which data; less where its data have moved."""
    config = load(run / "config.yaml")
    first = next(iter(config.stages))
    start = recorded(config, first).init_from
    planned = sum(recorded(config, name).steps for name in config.stages)
    taken = sum(_taken(run / name) for name in config.stages)
    steps = f"{taken:,} steps" if taken == planned else f"{taken:,} of {planned:,} planned steps"
    began = f"weights of {Path(start).name}" if start else "untrained weights"
    data = " and ".join(_data(name, each.root, config.data.split) for name, each in sources_of(config.data).items())
    return f"{config.name}: {began} were adapted in {steps} to {data}."


def _taken(stage: Path) -> int:
    """Return the step of a stage's newest checkpoint, which is what can be probed; 0 where it keeps none."""
    return max((int(path.name) for path in checkpoint.steps(stage)), default=0)


def _data(name: str, root: str, split: str) -> str:
    try:
        part = Split(Path(root), split).dataset["splits"][split]
    except (MeddapError, OSError, KeyError):
        return name or Path(root).name
    return f"{name or Path(root).name} ({part['subjects']:,} patients, {part['samples']:,} slices)"


def _table(found: Sequence[Verdict]) -> str:
    lines = []
    for each in found:
        one, other = (shown(end)[0] for end in each.ends)
        value, interval = shown(each.row, "+")
        probe = html.escape(each.row["probe"])
        lines.append(
            f'<tr><td class="{_KINDS[each.call]}">{each.call}</td><td>{html.escape(each.task)}</td>'
            f"<td>{html.escape(each.after)}</td><td>{probe} {with_unit(each.row['metric'])}</td>"
            f'<td class="n">{one}</td><td class="n">{other}</td><td class="n {_KINDS[each.call]}">{value}</td>'
            f'<td>{interval}</td><td class="n">{html.escape(shown_p(each.row))}</td>'
            f'<td class="n">{each.row["patients"]}</td><td>{html.escape(each.about_floor())}</td></tr>'
        )
    names = ("verdict", "task", "encoder", "main figure", "before", "after", "difference", "95 % interval", "p")
    head = "".join(f"<th>{name}</th>" for name in (*names, "patients", "floor"))
    return f'<div class="wide compact"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _by_task(folders: Sequence[Path]) -> dict[tuple[str, str], list[Path]]:
    """Return folders by task and by what is tested: with each site in turn, other patients are."""
    found: dict[tuple[str, str], list[Path]] = {}
    for folder in folders:
        if rows := results.read_rows(folder):
            found.setdefault((rows[0]["task"], rows[0].get("tested", "")), []).append(folder)
    return found


def _source(folder: Path) -> str:
    return str(results.read_rows(folder)[0].get("encoder", ""))
