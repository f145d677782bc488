"""Turn CT, a folder of DICOM series and image files, into WebDataset shards.

python data_prep/shard_ct.py --input DIR --output DIR [--masks DIR] [--config FILE] [key=value …]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: this folder must not shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import command
from data_prep.config import CtConfig
from data_prep.sharding.convert_ct import convert
from meddap import console


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser(
        "Turn CT (DICOM, NIfTI, NRRD, MetaImage) into WebDataset shards. A label map lies beside its image "
        "(seg.nii.gz, NAME_seg.nii.gz) or is a DICOM-SEG of the series.",
        "air.threshold_hu, geometry.tilt, grid.in_plane_mm, labels.1 …",
    )
    return command.run(parser.parse_intermixed_args(arguments), "CT", CtConfig, convert)


if __name__ == "__main__":
    console.launch(main)
