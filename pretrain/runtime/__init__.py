"""Processes, devices, checkpoints and metrics: what a run needs whatever it trains."""
