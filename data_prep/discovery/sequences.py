"""The sequence of an MR image, from the user's patterns, its file name or its DICOM header, with the evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatch
from pathlib import PurePath

from data_prep.dicom.scan import AnyHeader
from data_prep.dicom.whitelist import number
from data_prep.discovery import kinds, wording
from data_prep.volumes.images import stem

VOCABULARY = ("t1", "t1c", "t2", "flair", "pd", "dwi", "adc", "swi", "t2star")
# Words of file names and descriptions. BraTS writes t1ce or t1c, t2w, t2f; BIDS T1w, T2w, FLAIR, PDw
_WORDS = {
    **dict.fromkeys(("t1", "t1w", "t1n", "mprage", "spgr", "fspgr", "bravo", "mp2rage", "t1wi"), "t1"),
    **dict.fromkeys(("vibe", "starvibe", "lava", "thrive", "ethrive"), "t1"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd", "t1post", "t1km", "gadt1", "ct1", "t1gad", "t1cw"), "t1c"),
    **dict.fromkeys(("t2", "t2w", "t2wi"), "t2"),
    **dict.fromkeys(("flair", "fla", "t2f", "tirm", "t2flair"), "flair"),
    **dict.fromkeys(("pd", "pdw", "pdwi"), "pd"),
    **dict.fromkeys(("dwi", "ddwi", "isodwi", "isodwib", "diff", "diffusion", "difusion", "difusao"), "dwi"),
    **dict.fromkeys(
        ("diffusione", "diffusionsgewichtung", "diffusie", "tracew", "trace", "resolve", "dti", "dmri"), "dwi"
    ),
    **dict.fromkeys(("adc", "dadc", "isoadc"), "adc"),
    **dict.fromkeys(("swi", "swip", "swan", "venobold"), "swi"),
    **dict.fromkeys(("t2star", "t2starw", "gre", "hemo"), "t2star"),
}
_CONTRAST = {"post", "gd", "gad", "gado", "contrast", "ce", "gadolinium", "km", "postcontrast", "dotarem", "gadavist"}
TOKENS = frozenset(_WORDS) | _CONTRAST  # words that tell the images of one study apart
# how an image was made: beside a weighting they say nothing
_TECHNIQUES = {"gre", "mp2rage", "tirm", "spgr", "fspgr", "vibe", "starvibe", "lava", "thrive", "ethrive"}
_GRADIENT_ECHO = {"gre", "fgre", "ffe", "eg", "gradient", "fl2d", "fl3d"}  # a T2 made so is a T2*
_AGENT_AT_THE_END = {"c", "iv"}  # "t1_fl2d_tra_C"; of a spine C is where it is
_SPINES = {"spine", "hws", "bws", "lws", "cervical", "neck", "rachis", "columna", "colonna", "wirbelsaule"}
_TARGETS = {"to", "onto", "in", "on", "regto", "into"}  # "T2_to_T1" is a T2
_BIDS_SUFFIXES = {
    **{"T1w": "t1", "T2w": "t2", "PDw": "pd", "T2starw": "t2star", "FLAIR": "flair", "dwi": "dwi", "swi": "swi"},
    **{"UNIT1": "t1", "inplaneT1": "t1", "inplaneT2": "t2", "T2star": "t2star", "PD": "pd"},
    **{"adc": "adc", "ADC": "adc", "trace": "dwi"},
}
_UNLIKE = {"UNIT1": "made from two inversions", "inplaneT1": "few slices", "inplaneT2": "few slices"}
_WITHOUT_AGENT = {"none", "no", "non", "pre", "nativ", "native", "without", "0", "false", "n", "precontrast", "noce"}
_VARIANTS = ("acq", "rec", "desc", "proc", "echo", "run")  # of an image that exists without them, too


class Rank(IntEnum):
    """The strength of grounds; what is known by lower ones never replaces what is known by higher ones."""

    PATTERN = 0  # the user's
    BIDS = 1
    WORDS = 2  # one sequence is named
    UNCLEAR = 3  # several sequences are named, or it is the protocol that names one
    PHYSICS = 4


@dataclass(frozen=True)
class Guess:
    """A sequence and the evidence for it, which repeats no text of a header or name.

    against  what makes the image a less usual one of its sequence; the one with fewer of them is taken
    """

    sequence: str
    grounds: str
    rank: Rank = Rank.WORDS
    against: tuple[str, ...] = ()


def tokens(text: str) -> list[str]:
    """Return the lower-case words of a name, split at anything but letters and digits."""
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def by_pattern(texts: list[str], patterns: dict[str, str]) -> Guess | None:
    """Return the user's own choice: the first of `patterns` (pattern → sequence) that fits one of `texts`."""
    for pattern, sequence in patterns.items():
        if any(fnmatch(text.lower(), pattern.lower()) for text in texts if text):
            return Guess(sequence, "pattern given", Rank.PATTERN)
    return None


def by_name(path: PurePath) -> Guess | None:
    """Guess from a file's name; None if it names no sequence, or an image that is not a weighted image."""
    return None if kind_by_name(path) else by_words(path)


def by_words(path: PurePath) -> Guess | None:
    """Guess from BIDS suffix and entities, or from the words that name a sequence, of whatever kind the image is."""
    name = stem(path.name)
    if name.startswith("sub-"):
        return _of_bids(name)
    return _of_words(wording.words(_own(path)), "file name")


def kind_by_name(path: PurePath) -> str | None:
    """Return what a file's name calls an image that is not a weighted image ("localizer"); None if it does not."""
    name = stem(path.name)
    if name.startswith("sub-"):
        entities, suffix = _bids(name)
        free = wording.words(" ".join(entities.get(key, "") for key in ("acq", "desc", "rec")))
        return kinds.of_bids(suffix, entities) or kinds.of_words(free)
    said = wording.words(_own(path))
    return kinds.of_words(said, [place for place, word in enumerate(said) if word in _WORDS])


def _own(path: PurePath) -> str:
    """Return a file's name without the folders that it repeats, if the rest names a sequence.

    P1/T2/P1_T2_FLAIR is a FLAIR of the time point T2. A single folder that is repeated may be that of a sequence.
    """
    name, folders = stem(path.name), path.parts[:-1]
    for first in range(max(len(folders) - 4, 0), len(folders) - 1):
        repeated = "".join(f"{re.escape(part)}[-_. ]+" for part in folders[first:])
        found = re.match(repeated, name, re.IGNORECASE)
        if found and any(word in _WORDS for word in wording.words(name[found.end() :])):
            return name[found.end() :]
    return name


def is_ct(path: PurePath) -> bool:
    """Return whether a file's name says CT."""
    return "ct" in tokens(stem(path.name))


def is_mr(path: PurePath) -> bool:
    """Return whether a file's name says MR, and not CT."""
    return not is_ct(path) and bool({"mr", "mri"} & set(tokens(stem(path.name))) or by_name(path))


def by_header(header: AnyHeader) -> Guess | None:
    """Guess from a DICOM header: coded fields, the words of its description, else scanning sequence and times."""
    coded = _of_codes(header)
    if coded and coded.sequence == "adc":  # the description of a diffusion series is that of its maps, too
        return coded
    for name, rank in (("SeriesDescription", Rank.WORDS), ("ProtocolName", Rank.UNCLEAR)):
        if guess := _of_words(wording.words(str(header.get(name) or "")), name, rank, header):
            return guess
    return coded or _by_physics(header)


def kind_by_header(header: AnyHeader) -> str | None:
    """Return what a header calls an image that is not a weighted image ("localizer"); None if it does not."""
    if kind := kinds.of_header(header):
        return kind
    for name in ("SeriesDescription", "ProtocolName"):
        said = wording.words(str(header.get(name) or ""))
        if kind := kinds.of_words(said):
            return kind
        if any(word in _WORDS for word in said):
            return None  # the protocol may be that of the whole study
    return None


def _bids(name: str) -> tuple[dict[str, str], str]:
    """Return the entities and the suffix of a BIDS name."""
    *parts, suffix = name.split("_")
    return {key: value for key, _, value in (part.partition("-") for part in parts)}, suffix


def _of_bids(name: str) -> Guess | None:
    entities, suffix = _bids(name)
    sequence = _BIDS_SUFFIXES.get(suffix)
    if sequence is None:
        words = tokens(suffix)
        sequence = _WORDS.get(words[-1]) if words else None
    if sequence is None:
        return None
    against = [_UNLIKE[suffix]] if suffix in _UNLIKE else []
    agent = entities.get("ce")
    enhanced = agent is not None and agent.lower() not in _WITHOUT_AGENT
    if agent is not None and enhanced and wording.contrast(wording.words(agent)) is False:
        enhanced = False
    if agent is None:
        enhanced = bool(wording.contrast(wording.words(entities.get("acq", ""))))
    if enhanced and sequence == "t1":
        sequence = "t1c"
    elif enhanced:
        against.append("after contrast medium")
    against += [f"{key} in its name" for key in _VARIANTS if key in entities and not _usual(key, entities[key])]
    return Guess(sequence, "BIDS name", Rank.BIDS, tuple(against))


def _usual(key: str, value: str) -> bool:
    """Return whether an entity names the first of several images, which counts as the plain one."""
    return key in {"run", "echo"} and value.lstrip("0") in {"1", ""}


def _of_words(said: list[str], grounds: str, rank: Rank = Rank.WORDS, header: AnyHeader | None = None) -> Guess | None:
    """Return the sequence that words name, and whether it was made after contrast medium."""
    places = [place for place, word in enumerate(said) if word in _WORDS]
    own = [place for place in places if not _TARGETS & set(said[max(place - 1, 0) : place])] or places
    named = [_WORDS[said[place]] for place in own]
    if "ven" in said and "bold" in said:
        named.append("swi")
    weights = [_WORDS[said[place]] for place in own if said[place] not in _TECHNIQUES] or named
    if not weights:
        return None
    sequence = _one(weights, named)
    if header is not None and "tirm" in said and 0 < (number(header.get("InversionTime")) or 0) < 500:
        sequence = "t1" if "t1" in weights else "t2"  # such a short inversion takes out fat, not fluid
    elif sequence is None:
        physics = _by_physics(header) if header is not None else None
        agrees = physics is not None and physics.sequence in weights
        if header is not None and not agrees:
            return None  # "PD-T2 TSE" of one echo: which of them, its times would have to say
        rank = max(rank, Rank.UNCLEAR)
        sequence = physics.sequence if physics and agrees else weights[-1]
        grounds += f", {physics.grounds}" if physics and agrees else ""
    if sequence == "t2" and _GRADIENT_ECHO & set(said):
        sequence = "t2star"
    said_contrast = wording.contrast(said)
    if said_contrast is None and len(said) > 1 and said[-1] in _AGENT_AT_THE_END and not _spine(said, header):
        said_contrast, rank = True, max(rank, Rank.UNCLEAR)
    if sequence == "t1" and said_contrast:
        sequence = "t1c"
    elif sequence == "t1c" and said_contrast is False:
        sequence = "t1"
    elif sequence == "t1" and said_contrast is None and header is not None and _agent(header):
        sequence, grounds = "t1c", f"{grounds} and ContrastBolusAgent"
    against = []
    if sequence not in ("t1", "t1c") and said_contrast:
        against.append("after contrast medium")
    if {"mp2rage", "uni"} <= set(said):
        against.append(_UNLIKE["UNIT1"])
    if sequence == "dwi" and header is not None and number(header.get("DiffusionBValue")) == 0:
        against.append("b-value 0")
    return Guess(sequence, grounds, rank, tuple(against))


def _spine(said: list[str], header: AnyHeader | None) -> bool:
    """Return whether words or the part of the body say that an image shows a spine."""
    part = wording.words(str(header.get("BodyPartExamined") or "")) if header is not None else []
    return any("spine" in word or word in _SPINES for word in (*said, *part))


def _one(weights: list[str], named: list[str]) -> str | None:
    """Return the one sequence that words name; None if they name several."""
    names = set(weights)
    if "adc" in names:
        return "adc"
    if "flair" in named and names <= {"flair", "t1", "t1c", "t2"}:
        # a T1 FLAIR is weighted T1; "t2 flair" is FLAIR
        return "t1c" if "t1c" in names else "t1" if "t1" in names else "flair"
    if names == {"t1", "t1c"}:
        return "t1c"
    if names == {"t2", "t2star"}:
        return "t2star"
    if "swi" in names and names <= {"t2", "t2star", "swi"}:
        return "swi"
    return weights[-1] if len(names) == 1 else None


def _agent(header: AnyHeader) -> bool:
    """Return whether a header names a contrast agent: "NONE" and the like name none."""
    agent = wording.words(str(header.get("ContrastBolusAgent") or ""))
    return bool(agent) and not _WITHOUT_AGENT & set(agent) and wording.contrast(agent) is not False


def _of_codes(header: AnyHeader) -> Guess | None:
    """Guess from coded fields that say what an image shows."""
    words = {str(word).upper() for word in _listed(header.get("ImageType"))}
    if "ADC" in words:
        return Guess("adc", "ImageType")
    if "SWI" in words:
        return Guess("swi", "ImageType")
    if (number(header.get("DiffusionBValue")) or 0) > 0:
        return Guess("dwi", "DiffusionBValue")
    return None


def _by_physics(header: AnyHeader) -> Guess | None:
    """Guess textbook weighting from repetition, echo and inversion time in ms (spin echo and gradient echo)."""
    repetition, echo, inversion = (number(header.get(k)) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    kind = {str(word).upper() for word in _listed(header.get("ScanningSequence"))}
    if repetition is None or echo is None or "EP" in kind or (number(header.get("NumberOfTemporalPositions")) or 0) > 1:
        return None  # times tell nothing about an echo-planar image, which may be diffusion, perfusion or function
    grounds = f"TR {repetition:.0f} ms, TE {echo:.0f} ms" + (f", TI {inversion:.0f} ms" if inversion else "")
    sequence = None
    if inversion and inversion > 1500 and echo > 60:
        sequence = "flair"
    elif "GR" in kind and echo > 15:
        sequence = "t2star"
    elif ("GR" in kind and echo < 10) or (repetition < 1200 and echo < 30):
        sequence = "t1c" if _agent(header) else "t1"
    elif repetition >= 1800 and echo >= 60:
        sequence = "t2"
    elif repetition >= 1800 and echo < 40:
        sequence = "pd"
    if sequence == "t1c":
        grounds += ", ContrastBolusAgent"
    return Guess(sequence, grounds, Rank.PHYSICS) if sequence else None


def _listed(value: str | Iterable[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
