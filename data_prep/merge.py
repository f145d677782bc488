"""Name the parts of a sharded data set as one.

python -m data_prep.merge DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep import schema
from data_prep.sharding import archive_parts
from meddap.console import fail, say
from meddap.disk import BusyError
from meddap.settings import SettingsError


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="data_prep.merge", description="Name the parts of a data set as one.")
    parser.add_argument("output", type=Path, metavar="DIR", help="the --output that part=1/N … part=N/N wrote to")
    options = parser.parse_args(arguments)
    try:
        dataset = archive_parts.merge(options.output)
    except (SettingsError, BusyError, schema.SchemaError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}")
    for split, part in dataset["splits"].items():
        say(f"  {split}: {part['samples']} slices of {part['subjects']} patients in {len(part['shards'])} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
