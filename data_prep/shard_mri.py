"""MRI studies of one or several sequences to WebDataset shards.

python data_prep/shard_mri.py --input DIR --output DIR [--masks DIR] [--config FILE] [key=value …]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: this folder must not shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import command
from data_prep.config import MriConfig
from data_prep.sharding.convert_mri import convert


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = command.parser(
        "shard_mri.py",
        "Turn MR studies (DICOM, BIDS, BraTS-like folders of NIfTI, NRRD, MetaImage) into WebDataset shards, the "
        "sequences of a study on one grid. Sequences are told by names or headers; the manifest says how.",
        "sequences (in a file: pattern → name), study_from, reference, grid.in_plane_mm, labels.1 …",
    )
    return command.run(parser.parse_intermixed_args(arguments), "MR", MriConfig, convert)


if __name__ == "__main__":
    sys.exit(main())
