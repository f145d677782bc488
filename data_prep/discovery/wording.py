"""The words of names and descriptions of MR images, and what they say about contrast medium."""

from __future__ import annotations

import re
import unicodedata

# What an MR image after contrast medium is called: agents, and words for contrast medium in some languages
_AGENTS = {
    *(
        "contrast",
        "cont",
        "contraste",
        "contrasto",
        "contraststof",
        "kontrast",
        "kontrastmittel",
        "km",
        "gd",
        "gad",
        "gado",
    ),
    *("gadolinium", "gadovist", "gadavist", "gadobutrol", "dotarem", "magnevist", "multihance", "prohance", "omniscan"),
    *(
        "primovist",
        "eovist",
        "clariscan",
        "vueway",
        "elucirem",
        "ce",
        "gdca",
        "gddtpa",
        "mdc",
        "enhanced",
        "enhancement",
    ),
    *("withc", "c", "con", "kmgabe", "inj", "injection", "iv"),
}
# Of these, the ones that say so by themselves
_WITH = _AGENTS - {"c", "con", "iv"} | {"postcontrast", "postgd", "postgad", "postgado", "postkm", "postcon", "postinj"}
_WITHOUT = {
    *("nativ", "native", "nativo", "unenhanced", "nonenhanced", "noncontrast", "nocontrast", "noncon", "precontrast"),
    *("pregad", "pregado", "pregd", "prekm", "precon", "preinj", "nogad", "nogd", "nongd", "nongad", "nonce", "noce"),
    *("noc", "nonc", "woc", "wocontrast", "withoutcontrast", "ohnekm", "unkontrastiert", "uncontrasted"),
}
_NEGATIONS = {"without", "wo", "ohne", "sans", "senza", "sin", "zonder", "bez", "utan", "uden", "uten", "wout", "sem"}
_NEGATIONS |= {"ilman", "fara", "nelkul"}
_WEAK_NEGATIONS = {"no", "non", "not", "kein", "keine", "nicht"}  # they need what they negate: "no" may be a number
_BEFORE = {"pre", "vor", "avant", "before", "prae", "prior", "prima"}
_AFTER = {"post", "nach", "apres", "after", "dopo", "na"}
_AFFIRMATIONS = {"w", "with", "mit", "avec", "con", "met", "com", "med", "z", "s", "cu"}
# "post" or "pre" of these is a time in a treatment or a place, and says nothing about contrast medium
_OTHER_TIMES = {
    *("op", "operative", "operatively", "operation", "opera", "operatoire", "operativ", "ops", "surgery", "surgical"),
    *(
        "sx",
        "resection",
        "treatment",
        "therapy",
        "tx",
        "rt",
        "rx",
        "radiation",
        "radio",
        "radiotherapy",
        "chemo",
        "crt",
    ),
    *("transplant", "biopsy", "ictal", "partum", "mortem", "trauma", "stroke", "ablation", "fossa", "fossae", "fos"),
    *("sat", "processing", "processed", "proc", "label", "labeling", "labelling", "scan", "shim", "baseline", "dbs"),
    *("implant", "stimulation", "exercise", "stress", "void", "micturition", "cranial", "status", "stent", "shunt"),
}
_TREATMENT = re.compile(r"oper|surg|radi|chemo|therap|treat|resect|transplant|craniot|biops|embol|ablat|implant")
# "without" these says nothing about contrast medium
_OTHER_LACKS = {
    *("fs", "fat", "fatsat", "fatsup", "sat", "spair", "spir", "motion", "moco", "bh", "breath", "breathhold", "flow"),
    *(
        "mt",
        "mtc",
        "mtp",
        "gating",
        "trigger",
        "triggering",
        "ecg",
        "grappa",
        "sense",
        "filter",
        "norm",
        "gap",
        "angle",
    ),
    *("distortion", "dis", "dc", "coil", "skull", "sedation", "anesthesia", "implant", "metal", "pat", "spectral"),
}
_OTHER_CONTRASTS = {"phase", "high", "low", "transfer", "tissue", "dual", "image"}  # … contrast
# Words in other scripts, the longer ones first
_FOREIGN = tuple(
    (re.compile(pattern), word)
    for pattern, word in {
        "造影前|非造影|単純|平扫|平掃": "noc",
        "造影|增强|增強": "withc",
        "조영\\s?전|비조영": "noc",
        "조영": "withc",
        r"\b(?:kontrast|contrast|km|gd|gado)[\s_-]?(?:frei|free|fri|vrij)\b": "noc",
        r"\bkontrasts[iı]z\b|\b(?:kontrasztanyag|teho[a-z]*)\s?n[eé]lk[uü]l[a-z]*": "noc",
        r"\bkontrastl[iı]\b|\bkontrasztanyag(?:gal|os)\b|\bkontrast(?:em|om|nim|nych|na)\b": "withc contrast",
        r"\bkontrastu\b": "contrast",
        "定位|位置決め": "localizer",
        "弥散|扩散|擴散|拡散": "diffusion",
        r"\bбез\b": "without",
        r"\bдо\b": "pre",
        r"\bпосле\b": "post",
        r"\bконтраст\w*": "contrast",
        r"\bдиффузи\w*": "diffusion",
    }.items()
)
# Words written together: T1post, T1wGd, preT1, T1axFS
_PIECES = (
    "t1w|t2w|pdw|t1|t2star|t2|pd|flair|mprage|precontrast|postcontrast|contrast|pre|post|gado|gad|gd|km|native|nativ"
    "|without|plusc|ce|axial|coronal|sagittal|ax|sag|cor|tra|tse|fse|se|fs|iso|3d|2d"
)
_JOINED = re.compile(rf"(?:{_PIECES})+")
_PIECE = re.compile(_PIECES)


def words(text: str) -> list[str]:
    """Return the lower-case words of a name or description, with "w/o", "+C", "-C" and "T2*" as words of their own."""
    text = "".join(one for one in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(one))
    text = unicodedata.normalize("NFC", text)  # syllables of Korean are whole again
    text = re.sub(r"(?<![a-z0-9])w_o(?:ut)?(?![a-z0-9])", " without ", text).replace("_", " ")
    for pattern, word in _FOREIGN:
        text = pattern.sub(f" {word} ", text)
    text = re.sub(r"(?<![a-z0-9])dark[ _-]?fl(?:uid)?(?![a-z0-9])|(?<![a-z0-9])da-fl(?![a-z0-9])", " flair ", text)
    text = re.sub(r"(?<![a-z0-9])t2\s?(?:\*|[ _-]star(?![a-z0-9]))", " t2star ", text)
    text = re.sub(r"mprage(?=[a-z])", "mprage ", text)
    text = re.sub(r"apparent.diffusion.coeff[a-z]*", " adc ", text)
    text = re.sub(r"(?<![a-z0-9])w\s?[/\\._-]\s?o(?:ut)?(?![a-z0-9])", " without ", text)
    text = re.sub(r"\+\s?c(?:e|m)?(?![a-z0-9])|(?<![a-z0-9])(?:c|iv)\s?\+(?!\s?[tl](?![a-z]))", " withc ", text)
    text = re.sub(r"(?<![a-z0-9])(?:c[ _]?plus|plus[ _]?c|c/c)(?![a-z0-9])", " withc ", text)
    text = re.sub(r"(?<![a-z0-9])s\s?/\s?c(?![a-z0-9])", " without contrast ", text)
    text = re.sub(r"(?<![a-z0-9])s\s?/\s?(?=contr|gad|gd|km|iny)", " without ", text)
    text = re.sub(
        r"(?<![a-z0-9])(?:iv|i\.v\.|gd|gado?|km|contrast)(?:-(?=\s|$)|\s?-\s*$|\s?neg(?:ati[a-z]+)?(?![a-z]))",
        " noc ",
        text,
    )
    text = re.sub(r"-c(?![a-z0-9]|[ _-]?sp)|(?<![a-z0-9])c-(?![a-z0-9])", " noc ", text)
    found: list[str] = []
    for word in re.split(r"[^a-z0-9]+", text):
        if word.startswith(("t1", "t2", "pd", "flair", "pre", "post", "gd", "ce")) and _JOINED.fullmatch(word):
            pieces = _PIECE.findall(word)
            found += ["withc" if piece == "plusc" else piece for piece in pieces] if len(pieces) > 1 else [word]
        elif word:
            found.append(re.sub(r"^[se](?=(?:t1|t2|pd)w$)", "", word))  # Philips: sT1W, eT2W
    return found


def contrast(said: list[str]) -> bool | None:
    """Return whether words say "after contrast medium" or "without it"; None if they say neither, or both."""
    with_it = without = False
    place = 0
    while place < len(said):
        word, before = said[place], said[place - 1] if place else ""
        rest = said[place + 1 :]
        if len(rest) > 1 and rest[0] in {"iv", "any", "the", "i", "to"}:
            rest = rest[1:] if rest[1] != "v" else rest[2:]
        after = rest[0] if rest else ""
        negated = word in _BEFORE | _NEGATIONS | _WEAK_NEGATIONS
        step = 1
        if word in _BEFORE | _AFTER and (after in _OTHER_TIMES or _TREATMENT.match(after)):
            step = 2
        elif (word in _AFFIRMATIONS and _follows(rest, _NEGATIONS)) or (
            word in _NEGATIONS and _follows(rest, _AFFIRMATIONS)
        ):
            with_it = without = True  # "w/wo contrast": of a study with both
            step = 2
        elif negated and _agent(after):
            without, step = True, len(said) - place - len(rest) + 1
        elif word in _NEGATIONS and after in _OTHER_LACKS:
            step = 2
        elif word in _NEGATIONS or word == "pre" or (word in _BEFORE and not after):
            without = True
        elif word in _AFTER and (word == "post" or not after or _agent(after)):
            with_it = True
        elif word in _AFFIRMATIONS and _agent(after):
            with_it, step = True, 2
        elif word in _WITHOUT:
            without = without or after != "space"
        elif (word in _WITH or word.startswith("gad")) and before not in _OTHER_CONTRASTS:
            if after in {"none", "no", "off"}:
                without, step = True, 2
            else:
                with_it = True
        place += step
    return None if with_it == without else with_it


def _agent(word: str) -> bool:
    return word in _AGENTS or word.startswith("gad")


def _follows(rest: list[str], wanted: set[str]) -> bool:
    """Return whether one of `wanted` follows, at once or behind "and"."""
    first = 1 if rest and rest[0] in {"and", "or", "und", "et"} else 0
    return bool(wanted & set(rest[first : first + 1]))
