"""Shards to checkpoint."""

import os

PARENT = os.getppid()  # before anything slow is imported: a launcher may end meanwhile (runtime/distributed.py)
