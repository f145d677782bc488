"""The sequence of an MR image, from the user's patterns, its file name or its DICOM header, with the evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePath

from data_prep.dicom.scan import AnyHeader
from data_prep.dicom.whitelist import number
from data_prep.volumes.images import stem

VOCABULARY = ("t1", "t1c", "t2", "flair", "pd", "dwi", "adc", "swi", "t2star")
# Words of file names and descriptions. BraTS writes t1ce or t1c, t2w, t2f; BIDS T1w, T2w, FLAIR, PDw
_WORDS = {
    **dict.fromkeys(("t1", "t1w", "t1n", "mprage", "spgr", "bravo", "mp2rage", "t1wi"), "t1"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd", "t1post", "t1km", "gadt1", "ct1", "t1gad", "t1cw"), "t1c"),
    **dict.fromkeys(("t2", "t2w", "t2wi"), "t2"),
    **dict.fromkeys(("flair", "fla", "t2f", "tirm", "t2flair"), "flair"),
    **dict.fromkeys(("pd", "pdw", "pdwi"), "pd"),
    **dict.fromkeys(("dwi", "diff", "diffusion", "tracew"), "dwi"),
    **dict.fromkeys(("adc", "dadc"), "adc"),
    **dict.fromkeys(("swi", "swan", "venobold"), "swi"),
    **dict.fromkeys(("t2star", "t2starw", "gre", "hemo"), "t2star"),
}
_CONTRAST = {"post", "gd", "gad", "gado", "contrast", "ce", "gadolinium", "km", "postcontrast", "dotarem", "gadavist"}
_NO_CONTRAST = {"pre", "non", "without", "wo", "noncontrast", "ohne"}
TOKENS = frozenset(_WORDS) | _CONTRAST


@dataclass(frozen=True)
class Guess:
    """A sequence and the evidence for it, which repeats no text of a header or name."""

    sequence: str
    grounds: str


def tokens(text: str) -> list[str]:
    """Return the lower-case words of a name, split at anything but letters and digits."""
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def by_pattern(texts: list[str], patterns: dict[str, str]) -> Guess | None:
    """Return the user's own choice: the first of `patterns` (pattern → sequence) that fits one of `texts`."""
    for pattern, sequence in patterns.items():
        if any(fnmatch(text.lower(), pattern.lower()) for text in texts if text):
            return Guess(sequence, "pattern given")
    return None


def by_name(path: PurePath) -> Guess | None:
    """Guess from a file's name: BIDS suffix and contrast entity, or the last word that names a sequence."""
    name = stem(path.name)
    words = tokens(name)
    if name.startswith("sub-"):
        guess = _WORDS.get(tokens(name.rpartition("_")[2])[-1]) if tokens(name.rpartition("_")[2]) else None
        if guess == "t1" and re.search(r"_ce-[^_]+", name):
            guess = "t1c"
        return Guess(guess, "BIDS name") if guess else None
    sequence = _of_words(words)
    return Guess(sequence, "file name") if sequence else None


def is_ct(path: PurePath) -> bool:
    """Return whether a file's name says CT."""
    return "ct" in tokens(stem(path.name))


def is_mr(path: PurePath) -> bool:
    """Return whether a file's name says MR, and not CT."""
    return not is_ct(path) and bool({"mr", "mri"} & set(tokens(stem(path.name))) or by_name(path))


def by_header(header: AnyHeader) -> Guess | None:
    """Guess from a DICOM header: the words of its description, else scanning sequence and times."""
    for name in ("SeriesDescription", "ProtocolName"):
        sequence = _of_words(tokens(str(header.get(name) or "")))
        if sequence:
            if sequence == "t1" and header.get("ContrastBolusAgent"):
                return Guess("t1c", f"{name} and ContrastBolusAgent")
            return Guess(sequence, name)
    return _by_physics(header)


def _of_words(words: list[str]) -> str | None:
    """Return the sequence that a list of words names; later words count more."""
    named = [_WORDS[word] for word in words if word in _WORDS]
    if not named:
        return None
    if "flair" in named and set(named) <= {"flair", "t1", "t2"}:
        return "t1" if "t1" in named else "flair"  # a T1 FLAIR is weighted T1; "t2 flair" is FLAIR
    sequence = "adc" if "adc" in named else named[-1]
    if sequence == "t1" and _CONTRAST & set(words) and not _NO_CONTRAST & set(words):
        return "t1c"
    return sequence


def _by_physics(header: AnyHeader) -> Guess | None:
    """Guess textbook weighting from repetition, echo and inversion time in ms (spin echo and gradient echo)."""
    repetition, echo, inversion = (number(header.get(k)) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    kind = {str(word).upper() for word in _listed(header.get("ScanningSequence"))}
    words = {str(word).upper() for word in _listed(header.get("ImageType"))}
    if "ADC" in words:
        return Guess("adc", "ImageType")
    if "SWI" in words:
        return Guess("swi", "ImageType")
    if (number(header.get("DiffusionBValue")) or 0) > 0:
        return Guess("dwi", "DiffusionBValue")
    if repetition is None or echo is None:
        return None
    grounds = f"TR {repetition:.0f} ms, TE {echo:.0f} ms" + (f", TI {inversion:.0f} ms" if inversion else "")
    sequence = None
    if inversion and inversion > 1500 and echo > 60:
        sequence = "flair"
    elif "GR" in kind and echo > 15:
        sequence = "t2star"
    elif ("GR" in kind and echo < 10) or (repetition < 1200 and echo < 30):
        sequence = "t1c" if header.get("ContrastBolusAgent") else "t1"
    elif repetition >= 1800 and echo >= 60:
        sequence = "t2"
    elif repetition >= 1800 and echo < 40:
        sequence = "pd"
    if sequence == "t1c":
        grounds += ", ContrastBolusAgent"
    return Guess(sequence, grounds) if sequence else None


def _listed(value: str | Iterable[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
