"""The card of a fitted head for people: task, patients, figures, what validation chose, limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_LIMITS = """Measured on the test patients above and on nobody else; other scanners, protocols and populations may be
served worse. For research: not a medical device, not validated for diagnosis."""


def markdown(record: Mapping[str, Any]) -> str:
    """Return the card of a head as its JSON holds it (eval.kept.head)."""
    task, patients, encoder = record["task"], record["patients"], record["encoder"]
    fold = f", {record['fold']}" if record["fold"] else ""
    counts = ", ".join(f"{count} {name}" for name, count in patients.items())
    by = "by salted hash and by pixels" if record["training"] else "by pixels alone: its data name no patients"
    return f"""# {task["name"]}: {record["probe"]}{fold}

A fitted head of `meddap probe`, for `meddap predict --head THIS_FOLDER`. {task["kind"].capitalize()} by \
{task["level"]}: {", ".join(record["names"])}.

## Encoder

{encoder["source"]}, digest `{encoder["digest"]}`. {_window(encoder)}; a \
square around the body is resized to {task["size"]} pixels. Images were prepared \
{_prepared(record["prepared"])}.

## Patients

{counts}. `meddap predict` refuses patients that the head was fitted on or chosen by, {by}.
{"Fitted again on training and validation patients." if record["refitted"] else "Fitted on training patients alone."}

## Figures on the test patients

{_table(record["figures"])}

## Chosen on validation patients

```json
{json.dumps(record["choices"])}
```

{_calibrated(record)}

## Limits

{_LIMITS}
"""


def _window(encoder: Mapping[str, Any]) -> str:
    """Return which HU become 0 and 1, in one window or in the window of each channel."""
    pairs = encoder.get("windows") or [encoder["window"]]
    said = "; ".join(f"{low:g} … {high:g}" for low, high in pairs)
    return f"HU {said} become 0 … 1" + ", each in a channel of its own" * (len(pairs) > 1)


def _calibrated(record: Mapping[str, Any]) -> str:
    """Return how the probabilities are to be read."""
    if not record["calibration"]:
        return "Scores are not calibrated: they order patients, and are no chances to rely on."
    units = max(each["units"] for each in record["calibration"])
    return (
        f"Probabilities are the probe's own. Those called calibrated are mapped by what {units} slices or series of "
        "validation patients showed (`calibration` in head.json); labels that too few of them have are not."
    )


def _prepared(prepared: Mapping[str, Any]) -> str:
    if prepared.get("modality"):
        return f"as {prepared['modality']} by the settings in head.json (data set `{prepared['dataset'][:16]}`)"
    return f"from files by source `{prepared['source']}`"


def _table(figures: list[Mapping[str, Any]]) -> str:
    lines = ["| metric | of | test | 95 % interval | patients |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *_rows(figures)])


def _rows(figures: list[Mapping[str, Any]]) -> Iterator[str]:
    for row in figures:
        numbers = [row[name] for name in ("value", "low", "high")]
        value, low, high = ("–" if each is None else f"{each:.3f}" for each in numbers)
        label = " ".join([row["label"], *(f"{key} {each}" for key, each in row["variant"].items())])
        yield f"| {row['metric']} | {label} | {value} | {low} … {high} | {row['patients']} |"
