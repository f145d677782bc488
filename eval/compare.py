"""Paired difference of two probed encoders, or of two probes, on the same patients.

python -m eval.compare --runs BEFORE AFTER --output comparison.jsonl
python -m eval.compare --runs RUN RUN --probes segmentation lora
"""

from __future__ import annotations

from pathlib import Path

from eval.data import files
from eval.reporting import comparison, published, results, verdict, verdict_page
from eval.statistics import bootstrap
from meddap import console, disk
from meddap.settings import SettingsError


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| probe | metric | label | difference | 95 % interval | p | patients |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        figure = " | ".join(bootstrap.shown(row, "+"))
        probe = f"{row['task']}: {row['probe']}" if row.get("elsewhere") else row["probe"]
        names = " | ".join([probe, results.with_unit(row["metric"]), row["label"]])
        lines.append(f"| {names} | {figure} | {bootstrap.shown_p(row)} | {row['patients']} |")
    return "\n".join(lines)


def _same_encoders(*pairs: tuple[Path, Path]) -> None:
    """Raise SettingsError where two folders do not probe the same weights, as far as their results say."""
    for here, there in pairs:
        one, other = ({str(row.get("encoder")) for row in results.read_rows(folder)} for folder in (here, there))
        if one != other:
            names = " and ".join(sorted(other)), " and ".join(sorted(one))
            raise SettingsError(
                f"--elsewhere {there}: probes {names[0]}, but {here} {names[1]}; probe the same checkpoint there"
            )


def _said(before: Path, after: Path, rows: list[dict] | None = None) -> list[str]:
    """Return the verdict as lines; a line on why there is none where a folder has predictions and no results."""
    if missing := [folder for folder in (before, after) if not (folder / "results.jsonl").is_file()]:
        return [f"No verdict: {missing[0]}: has no results.jsonl; probe again"]
    found = verdict.judge(before, after, rows)
    return verdict_page.lines(found) if found is not None else []


@console.command
def main(arguments: list[str] | None = None) -> int:
    parser = console.parser(
        "Say whether two probed encoders, or two probes, really differ: the difference on the same test patients, its "
        "95 % interval over resampled patients, and a p-value. Prints the verdict in words, then a table.",
        "BEFORE and AFTER are folders that eval.probe wrote for the same task; name one folder twice to compare two of "
        "its probes.",
    )
    parser.add_argument(
        "--runs", nargs=2, required=True, type=Path, metavar=("BEFORE", "AFTER"), help="the two folders"
    )
    parser.add_argument(
        "--probes", nargs=2, metavar=("BEFORE", "AFTER"), help="a probe of each; without it, each probe with itself"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON lines: a row per probe, metric and label")
    parser.add_argument(
        "--elsewhere",
        nargs=2,
        action="append",
        default=[],
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="the same two encoders on a domain that was not adapted to: what was forgotten; may be repeated",
    )
    options = parser.parse_args(arguments)
    before, after = options.runs
    if options.output:
        with files.output_errors(options.output):
            disk.check_output(options.output)
    rows = comparison.compare(before, after, tuple(options.probes) if options.probes else None)
    own = list(rows)
    away = options.elsewhere
    for mine, its in away:
        _same_encoders((before, mine), (after, its))
        for row in comparison.compare(mine, its):
            rows.append(row | {"task": results.read_predictions(its)[0]["name"], "elsewhere": True})
    if options.output:
        with files.output_errors(options.output):
            files.write_rows(options.output, rows)
    said = _said(before, after, own)
    for mine, its in away:
        said += [f"Elsewhere: {line}" for line in _said(mine, its)]
    beside = published.lines(after)
    console.show("\n".join([*said, "", table(rows), *(["", *beside] if beside else [])]).lstrip("\n"))
    return 0


if __name__ == "__main__":
    console.launch(main)
