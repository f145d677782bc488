"""The command line that shard_ct.py and shard_mri.py share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from data_prep import identity, schema
from data_prep.config import PrepConfig
from data_prep.sharding import run as sharding
from data_prep.sharding.staging import Job, Record
from meddap.console import fail
from meddap.disk import BusyError
from meddap.settings import SettingsError, load


def parser(program: str, description: str, keys: str) -> argparse.ArgumentParser:
    """The options; `keys` names the settings most often given."""
    options = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"A second start continues. Keys: workers, part, samples_per_shard, split.train, {keys} "
        "(data_prep/config.py lists them all).",
    )
    options.add_argument("--input", required=True, type=Path, metavar="DIR", help="folder of images, DICOM or files")
    options.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the shards")
    options.add_argument("--masks", type=Path, metavar="DIR", help="label maps in a tree laid out like the input")
    options.add_argument("--labels", type=Path, metavar="CSV", help="class labels by patient or study, a column each")
    options.add_argument("--config", metavar="FILE", help="YAML with the keys below")
    options.add_argument(
        "--salt-file", metavar="FILE", help=f"salt of the hashed ids; else the environment's {identity.VARIABLE}"
    )
    options.add_argument(
        "--show-names", action="store_true", help="name files on the console: keep its log as safe as the images"
    )
    options.add_argument("overrides", nargs="*", metavar="key=value")
    return options


def run(
    options: argparse.Namespace, modality: str, schema_of: type[PrepConfig], convert: Callable[[Job], Record]
) -> int:
    """Shard as the options say; the exit status."""
    try:
        config = load(schema_of, options.config, options.overrides)
        salt = identity.read_salt(options.salt_file)
        sharding.run(
            sharding.Request(
                root=options.input,
                output=options.output,
                masks=options.masks,
                labels=options.labels,
                modality=modality,
                convert=convert,
                config=config,
                salt=salt,
                show_names=options.show_names,
            )
        )
    except (SettingsError, sharding.ShardingError, BusyError, schema.SchemaError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(
            f"{error.filename or options.output}: {error.strerror}; what is staged is kept, start again to continue"
        )
    return 0
