"""The identity of patients, as salted hashes, and the split that follows from them."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from data_prep.config import SplitConfig
from meddap.settings import SettingsError

# Folders that say which split their content belongs to
SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
VARIABLE = "MEDDAP_SALT"


def read_salt(file: str | Path | None) -> bytes:
    """Return the user's salt from `file` or the environment. Raises SettingsError if there is none."""
    if file is None:
        salt = os.environ.get(VARIABLE, "").encode()
        if not salt:
            raise SettingsError(
                f"no salt for the hashed ids: set {VARIABLE} or give --salt-file FILE "
                "(make one: head -c 32 /dev/urandom | base64 > FILE, and keep it)"
            )
        return salt
    try:
        salt = Path(file).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name the file that holds the salt") from error
    if not salt:
        raise SettingsError(f"{file}: is empty; put the salt into it")
    return salt


def hashed(salt: bytes, kind: str, value: str) -> str:
    """Return 32 hexadecimal digits for `value` (HMAC-SHA256); `kind` separates patients, series and paths."""
    return hmac.new(salt, f"{kind}:{value}".encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:32]


def split_of(subject: str, shares: SplitConfig) -> str:
    """Return train, val or test for a hashed patient id: a pure function of the id."""
    total = shares.train + shares.val + shares.test
    place = int(hashlib.sha256(f"split:{subject}".encode()).hexdigest()[:16], 16) / 2**64 * total
    if place < shares.train:
        return "train"
    return "val" if place < shares.train + shares.val else "test"
