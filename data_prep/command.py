"""The command line of shard_ct.py, shard_mri.py and shard_images.py."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import identity
from data_prep.config import PrepConfig
from data_prep.discovery import archive
from data_prep.sharding import run as sharding
from data_prep.sharding.staging import Job, Record
from meddap import console
from meddap.settings import SettingsError, load


class Once(argparse.Action):
    """Store a value; a second one is an error, not the one that wins."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option} is given twice; give it once")
        setattr(namespace, self.dest, values)


def parser(description: str, keys: str, masks: bool = True) -> argparse.ArgumentParser:
    """Return the parser of the options; `keys` names the settings most often given; `masks`: whether it has --masks."""
    options = console.parser(
        description,
        f"A second start continues. Keys: workers, part, samples_per_shard, split.train, {keys} "
        "(data_prep/config.py lists them all).",
    )
    options.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="PATH",
        action="append",
        help="folder or zip archive of images, DICOM or files, or one such file; may be given several times",
    )
    options.add_argument("--output", required=True, type=Path, metavar="DIR", action=Once, help="folder for the shards")
    options.set_defaults(masks=[])
    if masks:
        options.add_argument(
            "--masks",
            type=Path,
            metavar="DIR",
            action="append",
            default=[],
            help="label maps in folders laid out like the input; may be given several times",
        )
    options.add_argument(
        "--labels", type=Path, metavar="CSV", action=Once, help="class labels by patient or study, a column each"
    )
    options.add_argument(
        "--layout",
        metavar="NAME",
        action=Once,
        help="auto (default), none, or a collection's layout: nnunet, msd …",
    )
    options.add_argument("--config", metavar="FILE", action=Once, help="YAML with the keys below")
    options.add_argument(
        "--salt-file",
        metavar="FILE",
        action=Once,
        help=f"salt of the hashed ids (default: the variable {identity.VARIABLE})",
    )
    options.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        action=Once,
        help="write which patient and files stand behind the hashes; private, outside of --output (-: standard output)",
    )
    options.add_argument(
        "--show-names", action="store_true", help="name files on the console: keep its log as safe as the images"
    )
    options.add_argument("overrides", nargs="*", metavar="key=value", help="settings, after those of --config")
    return options


def run(
    options: argparse.Namespace,
    modality: str,
    config_type: type[PrepConfig],
    convert: Callable[[Job], Record],
    discover: Callable[..., archive.Discovered] = archive.discover,
) -> int:
    """Shard what `discover` finds as the options say; return the exit status. Raises MeddapError."""
    given: dict[str, list[str]] = defaultdict(list)
    if options.layout is not None:
        for word in options.overrides:
            if word.startswith("layout=") and word != f"layout={options.layout}":
                raise SettingsError(f"--layout {options.layout}: and {word}; give one of them")
        options.overrides.append(f"layout={options.layout}")
    for word in options.overrides:
        given[word.partition("=")[0]].append(word)
    for key, words in given.items():
        if len(set(words)) > 1:  # scripts give a default before what their user gives
            console.say(f"{key}: given {len(words)} times; the last one counts: {words[-1]}")
    sharding.run(
        sharding.Request(
            inputs=options.input,
            output=options.output,
            masks=options.masks,
            labels=options.labels,
            modality=modality,
            convert=convert,
            config=load(config_type, options.config, options.overrides),
            salt=identity.read_salt(options.salt_file),
            show_names=options.show_names,
            key=options.key,
            discover=discover,
        )
    )
    return 0
