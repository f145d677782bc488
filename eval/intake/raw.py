"""Raw images as shards: the sharding command runs as a process of its own, with the settings of the data set to match.

What stands behind the hashes comes through a pipe: no name is written to the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep import identity
from eval.data.files import FileError
from eval.intake.preparation import Preparation
from meddap.console import say
from meddap.disk import write_atomic
from meddap.errors import MeddapError
from meddap.records import read_json_lines
from meddap.settings import SettingsError

# the sharding command of each modality
COMMANDS = {"CT": "data_prep.shard_ct", "MR": "data_prep.shard_mri", "IMAGE": "data_prep.shard_images"}
# settings that say which labels, splits and layout a data set has, not how its images look
_OWN = (
    *("labels", "label_maps", "label_columns", "unknown_labels", "class_from"),
    *("split", "split_from", "layout", "strict"),
)
_ROW = {"source": str, "subject": str, "patient": str, "name": str, "dicom": bool, "files": [str], "orientation": str}
_MANIFEST = {"status": str, "source": str, "subject": str}


class CommandFailed(MeddapError):
    """The sharding command ended with `status` and said why in a line of its own."""

    def __init__(self, status: int) -> None:
        super().__init__(f"sharding ended with status {status}")
        self.status = status


@dataclass(frozen=True)
class Names:
    """What stands behind the hashes: rows of the key (data_prep.sharding.key_table) by the hash of a series' place."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[dict[str, Any]]) -> Names:
        """Return the rows of a key."""
        return cls({row["source"]: row for row in lines})

    @property
    def patients(self) -> dict[str, str]:
        """Hash of a patient → the patient's id."""
        return {row["subject"]: row["patient"] for row in self.rows.values()}


@dataclass(frozen=True)
class Intake:
    """Shards, what stands behind their hashes (empty where nobody says), and their manifest."""

    root: Path
    names: Names
    manifest: list[dict[str, Any]]

    def name_of(self, source: str) -> str:
        """Return the path that a hash in the manifest stands for. Raises SettingsError for a key of other shards."""
        if source not in self.names.rows:
            raise SettingsError("--key: does not name all series of these shards; give theirs")
        return self.names.rows[source]["name"]

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """Rows of what did not become slices, with the reason."""
        return [row for row in self.manifest if row["status"] != "accepted"]

    @property
    def series(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the manifest by the series of the slices that came of them; a study's reference first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.manifest:
            if row["status"] == "accepted":
                found.setdefault(row["stack"], []).append(row)
        return {stack: sorted(rows, key=lambda row: not row.get("reference", True)) for stack, rows in found.items()}


def shards(root: Path, key: Path | None) -> Intake:
    """Return finished shards; `key` is the file that sharding wrote with --key. Raises MeddapError for damage."""
    names = Names()
    if key:
        names = Names.of(read_json_lines(key, _ROW, "give the file that sharding wrote with --key", FileError))
    manifest = root / "manifest.jsonl"
    return Intake(root, names, _manifest(manifest) if manifest.is_file() else [])


def prepare(
    inputs: Sequence[Path], how: Preparation, work: Path, salt_file: str | None, workers: int, show_names: bool
) -> Intake:
    """Return raw images as shards below `work`; a second start continues.

    Raises SettingsError for a modality that no command prepares, or without a salt; CommandFailed where the command
    failed.
    """
    if how.modality not in COMMANDS:
        named = f"source={how.source}" if not how.modality else how.modality
        raise SettingsError(
            f"{named}: its raw images cannot be prepared here, only those of {' and '.join(COMMANDS)} shards; "
            "shard them and give --data"
        )
    salt = identity.read_salt(salt_file)
    if how.salt_check and identity.hashed(salt, "check", "")[:8] != how.salt_check:
        say("another salt than that of the data set to match: patients that are in both have other hashes")
    settings = {name: value for name, value in how.settings.items() if name not in _OWN}
    config, root = work / "settings.yaml", work / "shards"
    write_atomic(config, yaml.safe_dump(settings).encode())
    words = [word for folder in inputs for word in ("--input", str(folder))]
    words += ["--output", str(root), "--config", str(config), "--key", "-"]
    words += ["--salt-file", salt_file] if salt_file else []
    words += ["--show-names"] if show_names else []
    words += [f"workers={workers}", "split.train=0", "split.val=0", "split.test=1"]
    command = [sys.executable, "-m", COMMANDS[how.modality], *words]
    place = str(Path(identity.__file__).resolve().parents[1])
    path = os.pathsep.join([place, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        raise CommandFailed(done.returncode)
    names = Names.of(json.loads(line) for line in done.stdout.decode().splitlines())
    return Intake(root, names, _manifest(root / "manifest.jsonl"))


def _manifest(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path, _MANIFEST, "shard again", FileError)
