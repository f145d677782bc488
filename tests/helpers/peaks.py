"""Sharding commands run as processes of their own, with their memory watched from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent


class Peak:
    """The largest memory that any process below a command held, watched from outside, in MB."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.total: dict[int, float] = {}
        self._process = psutil.Process(process.pid)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                for each in [self._process, *self._process.children(recursive=True)]:
                    private = each.memory_info().rss - each.memory_info().shared
                    self.total[each.pid] = max(self.total.get(each.pid, 0), private / 1e6)
            except psutil.NoSuchProcess:
                if not self._process.is_running():
                    return
            time.sleep(0.01)

    @property
    def largest(self) -> float:
        """MB of the process that held most."""
        return max(self.total.values())


def run(command: str, source: Path, output: Path, *words: str, limit_s: float = 300) -> tuple[str, Peak, float]:
    """Run a sharding command to its end; what it printed, its peak, its seconds."""
    script = [
        sys.executable,
        str(ROOT / "data_prep" / command),
        "--input",
        str(source),
        "--output",
        str(output),
        *words,
    ]
    began = time.monotonic()
    process = subprocess.Popen(script, stderr=subprocess.PIPE, text=True, env={**os.environ, "MEDDAP_SALT": "x"})
    peak = Peak(process)
    printed = process.communicate(timeout=limit_s)[1]
    assert process.returncode == 0, printed[-2000:]
    return printed, peak, time.monotonic() - began
