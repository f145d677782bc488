"""Paired difference of two probed encoders, or of two probes, on the same patients.

python -m eval.compare --runs BEFORE AFTER --output comparison.jsonl
python -m eval.compare --runs RUN RUN --probes segmentation lora
"""

from __future__ import annotations

from pathlib import Path

from eval.data import files
from eval.reporting import comparison, results, verdict, verdict_page
from eval.statistics import bootstrap
from meddap import console, disk


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| probe | metric | label | difference | 95 % interval | p | patients |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        figure = " | ".join(bootstrap.shown(row, "+"))
        names = " | ".join([row["probe"], results.with_unit(row["metric"]), row["label"]])
        lines.append(f"| {names} | {figure} | {bootstrap.shown_p(row)} | {row['patients']} |")
    return "\n".join(lines)


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
    options = parser.parse_args(arguments)
    before, after = options.runs
    if options.output:
        with files.output_errors(options.output):
            disk.check_output(options.output)
    rows = comparison.compare(before, after, tuple(options.probes) if options.probes else None)
    if options.output:
        with files.output_errors(options.output):
            files.write_rows(options.output, rows)
    found = verdict.judge(before, after, rows)
    console.show("\n".join([*(verdict_page.lines(found) if found else []), "", table(rows)]).lstrip("\n"))
    return 0


if __name__ == "__main__":
    console.launch(main)
