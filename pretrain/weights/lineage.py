"""What weights descend from: the chain from the first weights to a checkpoint, and the licence of each link.

A checkpoint keeps the chain in state.json (`began`), an exported folder in config.json, an exported file in FILE.json
beside it. Names and digests, no places on a disk. A licence is what a model card beside the weights states or what
whoever exports them names; it is never guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from meddap.disk import file_sha256
from meddap.records import misfit, read_json
from meddap.settings import is_line
from pretrain.config import load, recorded
from pretrain.runtime.checkpoint import Checkpoint
from pretrain.weights import architecture, encoder, published
from pretrain.weights.architecture import DamagedError, WeightsError

PUBLISHED, RUN, EXPORT = "published", "run", "export"
DINOV3 = "dinov3"  # architecture of DINOv3, MedDINOv3 and FlexiCT: rotary positions
_TEXTS = {"kind": str, "name": str, "sha256": str, "architecture": str, "license": str}
_CHAIN = [{**_TEXTS, "data": {...: {"digest": str, "license": str}}}]
_DAMAGED = "copy it again"
_NOTICES = {
    DINOV3: "These weights descend from weights of DINOv3's architecture. The DINOv3 License, where it holds for them "
    "(DINOv3 itself, and what was begun from it, MedDINOv3 and FlexiCT among them), asks that derived weights are "
    "passed on under its terms with a copy of it, and that publications say that DINOv3 was used. Read its text.",
}
# identifiers that model hubs know; another licence is `other`, with its name beside
_HUBS = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")


@dataclass(frozen=True)
class Link:
    """One step of the chain.

    kind          published: weights of others; run: a training; export: what MedDAP handed out of a run
    name          of the file or folder, or RUN/STAGE/STEP
    sha256        of the file of weights; of several files, over theirs; "" where it is not known
    architecture  dinov3 (rotary positions), dinov2 (learned ones) or ""
    license       as stated; "" where nobody states it
    data          of a run, by source: digest of the data set and its licence ("" where nobody named it)
    """

    kind: str
    name: str
    sha256: str = ""
    architecture: str = ""
    license: str = ""
    data: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        digest = f"  sha256 {self.sha256[:16]}" if self.sha256 else "  sha256 not known"
        words = f"{self.kind:9}  {self.name}{digest}"
        for name, each in self.data.items():
            licensed = each["license"] or "licence not named"
            words += f"  data {f'{name} ' if name else ''}{each['digest'][:16]} ({licensed})"
        return words if self.kind == RUN else f"{words}  licence {self.license or 'not named'}"


def begin(init_from: str | None, before: Checkpoint | None, position: str) -> list[dict[str, Any]]:
    """Return what a stage records as `began`: of the checkpoint before it, else of the weights that it starts from.

    position  of the model (model.position): weights with another one are refused when they are loaded
    """
    if before is not None:
        return as_records(_before(before))
    return as_records(of_weights(init_from, position)) if init_from else []


def of_weights(path: str | Path, position: str | None = None) -> list[Link]:
    """Return the chain of a run's checkpoint or of published weights, the first weights first. Raises MeddapError.

    position  of the published weights, where it is known: their file is then hashed, but not read as weights
    """
    path = Path(path)
    if encoder.is_run(path):
        return of_checkpoint(encoder.find(path))
    if not path.exists():
        raise WeightsError(f"{path}: not found; name a run, a file of weights or a folder with config.json")
    files = published.files(path)
    said = _beside(path)
    sha256 = file_sha256(files[0]) if len(files) == 1 else _joined(file_sha256(file) for file in files)
    if said is not None:
        chain, licence = said
        return [*chain, Link(EXPORT, path.name, sha256, chain[-1].architecture if chain else "", licence)]
    position = position or published.read(path).settings["position"]
    return [Link(PUBLISHED, _hub_name(path), sha256, architecture.family(position), _stated(path))]


def of_checkpoint(found: Checkpoint) -> list[Link]:
    """Return the chain that ends in a checkpoint of ours."""
    config = load(found.path / "config.yaml")
    licenses, sources = found.state.get("licenses", {}), found.state.get("sources", {})
    digests = {name: each["digest"] for name, each in sources.items()} or {"": found.state["data_digest"]}
    data = {name: {"digest": digest, "license": licenses.get(name, "")} for name, digest in digests.items()}
    name = f"{config.name}/{found.stage}/{found.step:08d}"
    sha256 = found.state["files"].get("teacher.safetensors", "")
    return [*_before(found), Link(RUN, name, sha256, architecture.family(config.model.position), data=data)]


def to_name(chain: Sequence[Link], named: str | None) -> str:
    """Return the licence that an export carries: `named`, else the one stated last; "" for weights begun from nothing.

    Raises WeightsError for weights begun from others' of which neither says it, and for a name that is not one line.
    """
    if named is not None and not is_line(named):
        raise WeightsError(f"--license {named!r}: give the licence's name in one line, e.g. apache-2.0")
    foreign, stated = [link for link in chain if link.kind != RUN], stated_license(chain)
    if not (named or stated) and (first := next((link for link in foreign if link.kind == PUBLISHED), None)):
        terms = "; DINOv3's, MedDINOv3's and FlexiCT's weights have terms of their own" * (first.architecture == DINOV3)
        raise WeightsError(
            f"{first.name}: these weights began from it, and nothing states its licence{terms}: read it and give "
            "--license NAME (e.g. dinov3-license, apache-2.0)"
        )
    return named or stated


def stated_license(chain: Sequence[Link]) -> str:
    """Return the licence that the last of the weights of a chain that state one state; "" where none does."""
    return next((link.license for link in reversed(chain) if link.kind != RUN and link.license), "")


def notices(chain: Sequence[Link]) -> list[str]:
    """Return what is to be told with weights of a chain: one notice per architecture of foreign weights."""
    met = dict.fromkeys(link.architecture for link in chain if link.kind == PUBLISHED)
    return [_NOTICES[each] for each in met if each in _NOTICES]


def front_matter(chain: Sequence[Link], licence: str) -> list[str]:
    """Return the lines of a model card that hubs read: `license` and `base_model`."""
    lines = []
    if licence:
        known = licence.lower() in _HUBS
        lines = [f"license: {licence.lower()}"] if known else ["license: other", f"license_name: {_quoted(licence)}"]
    if foreign := [link for link in chain if link.kind == PUBLISHED]:
        lines.append(f"base_model: {_quoted(foreign[-1].name)}")
    return lines


def as_records(chain: Iterable[Link]) -> list[dict[str, Any]]:
    """Return a chain as JSON."""
    return [asdict(link) for link in chain]


def from_records(records: Any, where: object) -> list[Link]:
    """Return the chain that `as_records` gave. Raises DamagedError."""
    if wrong := misfit(records, _CHAIN, "lineage"):
        raise DamagedError(f"{where}: {wrong}; {_DAMAGED}")
    return [Link(**{name: row[name] for name in _CHAIN[0]}) for row in records]


def _before(found: Checkpoint) -> list[Link]:
    """Return the chain that a checkpoint's run began from. One that is older than the record names what is known."""
    if "began" in found.state:
        return from_records(found.state["began"], found.path / "state.json")
    config = load(found.path / "config.yaml")
    starts = [recorded(config, name).init_from for name in config.stages]
    return [Link(PUBLISHED, Path(start).name) for start in starts if start]


def _beside(path: Path) -> tuple[list[Link], str] | None:
    """Return the chain and the licence that an export of ours keeps; None for weights of others."""
    whole = path.is_dir() or path.name in published.NAMES
    file = (path if path.is_dir() else path.parent) / "config.json" if whole else beside(path)
    if not file.is_file():
        return None
    said = read_json(file, dict, _DAMAGED, DamagedError).get("meddap", {})
    if not isinstance(said, dict) or "lineage" not in said:
        return None
    if wrong := misfit(said, {"license": str}, "meddap"):
        raise DamagedError(f"{file}: {wrong}; {_DAMAGED}")
    return from_records(said["lineage"], file), said["license"]


def beside(file: Path) -> Path:
    """Return the record that lies beside an exported file."""
    return file.with_name(f"{file.name}.json")


def _stated(path: Path) -> str:
    """Return the licence in the front matter of the model card beside published weights; "" where there is none."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    if not card.is_file():
        return ""
    found = re.match(r"---\s*\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    try:
        said = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return ""
    if not isinstance(said, dict):
        return ""
    name = said.get("license_name") if said.get("license") == "other" else said.get("license")
    return name if isinstance(name, str) else ""


def _hub_name(path: Path) -> str:
    """Return the name of published weights: ORGANISATION/MODEL in a hub's cache, else the file's or folder's own."""
    for part in path.resolve().parts:
        if part.startswith("models--") and part.count("--") == 2:
            return part.removeprefix("models--").replace("--", "/")
    return path.resolve().parent.name if path.name in published.NAMES else path.name


def _joined(sums: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _quoted(text: str) -> str:
    """Return a text as YAML in one line; JSON would leave characters in it that end a line of YAML."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1 << 20).strip()
