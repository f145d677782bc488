"""What was found, for people: `curation.json`, and a page with duplicates, leaks, and shares before and after."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep import figures
from eval.curation.catalogue import Catalogue
from meddap.page import dim, figure, page, table

_SHOWN = 8  # clusters
_TILES = 6  # slices of a cluster


def html_page(title: str, found: dict[str, Any], catalogue: Catalogue, clusters: np.ndarray) -> str:
    """Return the page; `found` is what `curation.json` holds."""
    sections = {
        "Leaks between splits": _leaks(found["duplicates"]["leaks"]),
        "Near-duplicates": _duplicates(found["duplicates"], catalogue, clusters),
        "Draws before and after": _shares(found),
    }
    body = [line for name, lines in sections.items() for line in (f"<h2>{html.escape(name)}</h2>", *lines)]
    return page(title, f"Digest {found['digest'][:16]}", body)


def _leaks(rows: list[list[str]]) -> Iterator[str]:
    if not rows:
        yield dim("No patient of one split was found in another under another id.")
        return
    head = ["split", "patient", "is in", "as patient"]
    yield table(head, rows, "Patients by the first digits of their salted hashes.")


def _duplicates(found: dict[str, Any], catalogue: Catalogue, clusters: np.ndarray) -> Iterator[str]:
    rows = [
        [name.replace("_", " "), found[name]] for name in ("slices", "clusters", "redundant_slices", "plain_slices")
    ]
    rows += [["pairs of series", found["series_pairs"]], ["pairs of patients", len(found["patients"])]]
    yield table(["", "count"], rows, "A cluster is a slice and its near-duplicates; redundant are all but one of each.")
    sizes = np.bincount(clusters)
    largest = np.argsort(-sizes, kind="stable")[:_SHOWN]
    groups = [np.flatnonzero(clusters == number) for number in largest if sizes[number] > 1]
    if groups:
        drawn, axes = figures.grid(len(groups), _TILES, side=1.1)
        for line, members in zip(axes, groups):
            places = members[np.linspace(0, len(members) - 1, min(_TILES, len(members))).astype(int)]
            for axis, place in zip(line, places):
                axis.imshow(catalogue.thumbnails[place], cmap="gray", vmin=0, vmax=255)
        yield figure(
            figures.png(drawn), "The largest clusters, a row each: slices from all over them, cut to the body."
        )


def _shares(found: dict[str, Any]) -> Iterator[str]:
    numbers = {name: value for name, value in found["weights"].items() if isinstance(value, int | float)}
    rows = [[name.replace("_", " "), f"{value:,.4g}"] for name, value in numbers.items()]
    yield table(["weights", ""], rows)
    if parts := found.get("body_parts"):
        said = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in parts.items())
        yield dim(f"Body parts: {said}.")
    for name, reason in found["weights"]["left_out"].items():
        yield dim(f"{name}: not balanced, {reason}.")
    for name, each in found["weights"]["shares"].items():
        yield f"<h3>{html.escape(name.replace('_', ' '))}</h3>"
        yield figure(figures.shares(each["words"]), f"Share of the draws, strength {each['strength']:g}.")
