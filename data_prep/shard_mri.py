"""Turn MRI studies of one or several sequences into WebDataset shards.

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
from meddap import console


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser(
        "Turn MR studies (DICOM, BIDS, BraTS-like folders of NIfTI, NRRD, MetaImage) into WebDataset shards, the "
        "sequences of a study on one grid. Sequences are recognised by names or headers; the manifest says how.",
        "sequences (in a file: pattern → name), study_from, reference, grid.in_plane_mm, labels.1 …",
    )
    return command.run(parser.parse_intermixed_args(arguments), "MR", MriConfig, convert)


if __name__ == "__main__":
    console.launch(main)
