"""What scanners, sites and collections call MR series: hardly ever a wrong sequence, seldom none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

import pydicom
import pytest
from helpers import mr_names

from data_prep.discovery import sequences

# What words alone cannot tell: a short inversion time takes out fat, not fluid; only its header says so
UNTOLD = {"t2_tirm_cor": "flair"}


def by_description(name: str) -> str | None:
    """Return the sequence of a series of which nothing but its description is known."""
    header = pydicom.Dataset()
    header.SeriesDescription = name
    guess = None if sequences.kind_by_header(header) else sequences.by_header(header)
    return guess.sequence if guess else None


def by_file(name: str) -> str | None:
    """Return the sequence of a file."""
    guess = sequences.by_name(PurePath(name))
    return guess.sequence if guess else None


@pytest.mark.parametrize(
    ("names", "guess"),
    [
        (mr_names.DESCRIPTIONS, by_description),
        (mr_names.OTHERS, by_description),
        (mr_names.FILES, by_file),
    ],
    ids=["descriptions", "others", "files"],
)
def test_names_of_mr_images(names: dict[str, str | None], guess: Callable) -> None:
    """None is wrong but those that words cannot tell; at most one in fifty stays unknown."""
    found = {name: guess(name) for name in names}
    wrong = {name: one for name, one in found.items() if one not in (names[name], None)}
    assert wrong == {name: one for name, one in UNTOLD.items() if name in names}
    unknown = [name for name, one in found.items() if one is None and names[name] is not None]
    assert len(unknown) <= max(1, len(names) // 50), unknown


def test_two_contrasts_in_one_description_are_told_by_times() -> None:
    """A series of two echoes is two volumes: each is what its times say, unknown without them."""
    for echo, expected in ((15, "pd"), (95, "t2"), (None, None)):
        header = pydicom.Dataset()
        header.SeriesDescription, header.ScanningSequence = "Axial PD-T2 TSE FS", "SE"
        if echo is not None:
            header.RepetitionTime, header.EchoTime = 3000, echo
        guess = sequences.by_header(header)
        assert (guess.sequence if guess else None) == expected


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [("t1_tse_sag_C", "CSPINE", "t1"), ("t1_tse_sag_C", "BRAIN", "t1c"), ("t1 sag HWS C", "", "t1")],
)
def test_a_last_c_is_contrast_medium_but_of_a_spine(name: str, part: str, expected: str) -> None:
    """C at the end says after contrast medium, and of a spine where it lies; as grounds it is unclear."""
    header = pydicom.Dataset()
    header.SeriesDescription, header.BodyPartExamined = name, part
    guess = sequences.by_header(header)
    assert guess is not None and guess.sequence == expected
    assert (guess.rank == sequences.Rank.UNCLEAR) == (expected == "t1c")
