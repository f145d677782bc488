"""Results of several probed encoders side by side: as rows of a CSV, as LaTeX, and as the cells that the page shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.encoders import windows
from eval.reporting import results
from eval.reporting.results import HEADLINE, words
from eval.statistics.bootstrap import shown

_COLUMNS = (
    *("task", "run", "encoder", "probe", "variant", "metric", "label", "value", "low", "high", "patients"),
    *("difference", "difference_low", "difference_high", "p", "seen_in_pretraining", "not_checked", "window"),
)
_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "–": "--", "±": r"$\pm$"}


@dataclass(frozen=True)
class Key:
    """What one line of a table is about."""

    probe: str
    metric: str
    label: str


def read(folders: Iterable[Path]) -> list[dict]:
    """Return the rows of results.jsonl of every folder, `run` being the folder's name."""
    return [{**row, "run": folder.name} for folder in folders for row in results.read_rows(folder)]


def key_of(row: dict) -> Key:
    """Return the line of the table that a row of results belongs to."""
    return Key(row["probe"] + words(row["variant"]), row["metric"], row["label"])


def cells(rows: Sequence[dict]) -> dict[Key, dict[str, dict]]:
    """Return line → run → row, lines in the order of their first rows."""
    found: dict[Key, dict[str, dict]] = {}
    for row in rows:
        found.setdefault(key_of(row), {})[row["run"]] = row
    return found


def joined(rows: Sequence[dict], differences: Sequence[dict]) -> list[dict]:
    """Return rows of results with their difference to the first run, where there is one."""
    known = {(row["after"], row["probe"], row["metric"], row["label"]): row for row in differences}
    found = []
    for row in rows:
        key = key_of(row)
        other = known.get((row["run"], key.probe, key.metric, key.label), {})
        found.append({**row, "difference": other})
    return found


def as_csv(rows: Sequence[dict]) -> str:
    """Return every row of `joined` as CSV."""
    memory = io.StringIO()
    writer = csv.writer(memory, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        other, leaks = row["difference"], row.get("leaks") or {}
        seen = leaks.get("by_id", 0) + leaks.get("by_pixels", 0) > 0 if leaks.get("checked") else ""
        writer.writerow(
            [
                *(row[name] for name in ("task", "run", "encoder", "probe")),
                words(row["variant"]).strip(),
                *(row[name] for name in ("metric", "label", "value", "low", "high", "patients")),
                *(other.get(name, "") for name in ("value", "low", "high", "p")),
                seen,
                leaks.get("unchecked", ""),
                windows.told(row),
            ]
        )
    return memory.getvalue()


def as_latex(rows: Sequence[dict]) -> str:
    """Return the headline figures of each task as LaTeX with booktabs: a line per probe and metric, a column per run;
    † where p < 0.05 against the first run."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task and row["label"] in HEADLINE]
        runs = list(dict.fromkeys(row["run"] for row in mine))
        head = " & ".join(["probe", "metric", *map(_tex, runs)])
        lines = [
            " & ".join([_tex(key.probe), _tex(key.metric), *(_cell(found.get(run)) for run in runs)]) + r" \\"
            for key, found in cells(mine).items()
        ]
        parts.append(
            f"% {task}\n\\begin{{tabular}}{{ll{'r' * len(runs)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
            + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}\n"
        )
    return "\n".join(parts)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    value, interval = shown(row)
    p = row["difference"].get("p")
    mark = r"$^\dagger$" if p is not None and p < 0.05 else ""
    return _tex(value) + mark + (f" ({_tex(interval)})" if row["low"] is not None else "")


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
