"""`python -m meddap` is `meddap`."""

from meddap.cli import script

if __name__ == "__main__":
    script()
