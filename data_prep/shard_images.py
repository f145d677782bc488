"""Turn radiographs, pictures and PET into WebDataset shards: DICOM, PNG, JPEG, TIFF, BMP, WebP, GIF, MedMNIST files.

python data_prep/shard_images.py --input DIR --output DIR [--labels CSV] [--config FILE] [key=value …]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: this folder must not shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import command
from data_prep.config import ImagesConfig
from data_prep.discovery.picture_sources import discover
from data_prep.sharding.convert_images import convert
from meddap import console


@console.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser(
        "Turn radiographs and PET (DICOM) and pictures (PNG, JPEG, TIFF, BMP, WebP, GIF, MedMNIST .npz) into "
        "WebDataset shards, grey on one scale. Splits of the data's own are kept, classes are folders or a CSV.",
        "patient, class_from, split_from, longest, range, sequence …",
        masks=False,
    )
    return command.run(parser.parse_intermixed_args(arguments), "IMAGE", ImagesConfig, convert, discover)


if __name__ == "__main__":
    console.launch(main)
