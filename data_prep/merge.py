"""Name the parts of a sharded data set as one.

python -m data_prep.merge DIR
"""

from __future__ import annotations

from pathlib import Path

from data_prep.sharding import archive_parts
from meddap.console import command, launch, parser, say
from meddap.disk import disk_errors


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options_parser = parser("Name the parts of a data set as one. Shards stay where they are.")
    options_parser.add_argument("output", type=Path, metavar="DIR", help="the --output of part=1/N … part=N/N")
    options = options_parser.parse_args(arguments)
    with disk_errors(options.output):
        dataset = archive_parts.merge(options.output)
    for split, part in dataset["splits"].items():
        say(f"  {split}: {part['samples']} slices of {part['subjects']} patients in {len(part['shards'])} shards")
    for line in dataset["warnings"]:
        say(f"warning: {line}")
    return 0


if __name__ == "__main__":
    launch(main)
