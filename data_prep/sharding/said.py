"""What the console says of a start: what discovery decided, what is left out and chosen, and what came of it."""

from __future__ import annotations

from collections import Counter

from data_prep import schema
from data_prep.discovery import labelmaps
from data_prep.discovery.archive import Discovered
from data_prep.sharding import description
from data_prep.sharding.staging import Job, Record
from meddap.console import say


def found(inputs: Discovered, masks: bool, show_names: bool) -> list[str]:
    """Say what discovery decided about layouts, patients and label maps; return what of it is a warning.

    masks  whether label maps come from trees of their own
    """
    doubts = []
    for line in inputs.lines:
        say(line)
    rule, named = inputs.patients
    if named and (rule.setting == "auto" or rule.pattern):
        say(f"patients by {rule.said(show_names)}: {named}")
    if inputs.across:
        doubts.append(
            f"{inputs.across} patients have images in several of the folders above theirs and count as one each; "
            "patient_from=parent_folder tells them apart"
        )
    mapped, count = inputs.mapped
    if masks and mapped < count:
        doubts.append(f"--masks: {mapped} of {count} images have a label map there")
    organs = inputs.organ_files
    if organs.folders:
        say(f"{len(organs.folders)} folders with a file per organ: {len(organs.values)} organs, one map each")
    if organs.unnamed:
        say(
            f"  {organs.unnamed} of their names are not kept: only one folder has them, so they might name a "
            "patient; labels.VALUE=NAME keeps one"
        )
    if inputs.shared:
        say(f"{inputs.shared} patients are named in several inputs and count as one each; else shard them one by one")
    return doubts


def names_of(jobs: list[Job]) -> dict[str, str]:
    """Return salted hash of a series' place → the place."""
    return {job.hash_of(series): series.name for job in jobs for series in job.source.series}


def rows_of(rows: list[dict], names: dict[str, str]) -> None:
    """Print what was left out, and once a study what was chosen over what; by its name if `names` has it."""

    def named(row: dict) -> str:
        return names.get(row["source"], row["source"][:12])

    chosen = [row for row in rows if row["status"] == "accepted" and ("chosen_over" in row or "instead_of" in row)]
    told = {other["source"] for row in chosen for other in row.get("chosen_over", [])}
    for row in rows:
        if row["status"] == "rejected" and not ("lost_to" in row and row["source"] in told):
            say(f"left out: {named(row)}: {row['reason']}")
    for study in sorted({row["stack"] for row in chosen}):
        choices = []
        for row in chosen:
            if row["stack"] == study:
                choice = f"{row['sequence']} is {named(row)} ({row['grounds']})"
                for key, word in (("instead_of", "instead of"), ("chosen_over", "not")):
                    others = [f"{named(other)} ({other['grounds']})" for other in row.get(key, [])]
                    choice += f", {word} {', '.join(others)}" if others else ""
                choices.append(choice)
        say(f"study {study[:12]}: {'; '.join(choices)}")


# notes of accepted series that the console repeats: what a header left open and a setting decided
_DECIDED = {
    "values_cut_off_at": "values above cut off, in HU",
    "hu": "HU",
    "values_trusted": "taken as HU (values=trust) against",
    "values_unchecked": "taken as HU without a look at the histogram",
    "units": "unit of the header's lengths",
    "transform": "transform",
    "compression": "compression",
    "range": "range",
    "window": "range",
    "polarity": "polarity",
    "suv": "values",
    "video": "video",
    "scan_start": "start of the scan",
    "colour": "colour",
    "mpp": "micrometres a pixel",
    "tissue": "tissue",
    "planes": "planes",
    "inks": "inks",
    "transparent": "transparent pixels",
}

# notes that count tiles
_TILES = {
    "tiles_without_tissue": "too little tissue (tiles.min_tissue, tiles.tissue_above)",
    "tiles_empty": "empty (tiles.min_spread)",
    "tiles_not_drawn": "beyond tiles.most",
}


def summarise(records: dict[str, Record], ignored: int, seconds: float, names: dict[str, tuple[str, ...]]) -> None:
    """Print what became of the inputs."""
    rows = [row for record in records.values() for row in record.rows]
    accepted = [row for row in rows if row["status"] == "accepted"]
    say(f"{len(accepted)} series accepted, {len(rows) - len(accepted)} left out, {ignored} other files ignored")
    for reason, count in Counter(row["reason"] for row in rows if row["status"] == "rejected").most_common():
        say(f"  {count} × {reason}")
    for split in schema.SPLITS:
        mine = [record for record in records.values() if record.split == split and record.samples]
        slices = sum(len(record.samples) for record in mine)
        say(f"  {split}: {slices} slices of {len({record.subject for record in mine})} patients")
    total = sum(len(record.samples) for record in records.values())
    air = sum(row["air_slices"] for row in {row["stack"]: row for row in accepted}.values())
    say(f"{total} slices in {seconds:.0f} s ({total / max(seconds, 1e-9):.0f} a second), {air} of air left out")
    sequences = {row["sequence"] for row in accepted if "grounds" in row}  # of MR
    if len(sequences) > 1 and len({row["stack"] for row in accepted}) == len(accepted):
        say("  every study has one sequence only; study_from=folder takes the files of a folder as one study")
    for column, classes in description.classes(records.values(), names).items():
        patients = [sum(counts) for counts in zip(*classes["patients"].values())]
        by_class = ", ".join(f"{name} {count}" for name, count in zip(classes["names"], patients))
        say(f"  {column}: {sum(patients)} patients labelled ({by_class})")
    for key, what in _DECIDED.items():
        found = Counter(row["notes"][key] for row in accepted if key in row["notes"])
        for value, count in found.most_common(3):
            say(f"  {count} series, {what}: {value}")
    for key, why in _TILES.items():
        if count := sum(int(row["notes"].get(key, 0)) for row in {row["stack"]: row for row in accepted}.values()):
            say(f"  {count} tiles left out: {why}")
    for line in labelmaps.said({row["stack"]: row["notes"] for row in accepted}.values()):
        say(f"  {line}")
