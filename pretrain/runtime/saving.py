"""Checkpoints written while the training goes on.

The step's tensors are copied to the host, then a thread writes them: the first rank what is whole, every rank its
shards. One checkpoint at a time; what goes wrong comes up at the next look. Ranks meet in a group of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.runtime import checkpoint
from pretrain.runtime.checkpoint import SHARDS, CheckpointError, Tensors
from pretrain.runtime.distributed import StoppedElsewhere, World, local, whole

IN_SHARDS = ("student", "optimizer")  # of a run whose parameters are sharded; the rest is small, or for others to read


class Saver:
    """Writes the checkpoints of one stage."""

    def __init__(self, folder: Path, world: World, sharded: bool) -> None:
        self.folder, self.world, self.sharded = folder, world, sharded
        self._thread = ThreadPoolExecutor(1, "meddap-checkpoint")
        self._writing: Future[None] | None = None

    def save(self, tensors: dict[str, Tensors], state: dict, config_text: str, then: Callable[[], None]) -> None:
        """Copy `tensors` (group → tensors) and write them; `then` runs on the first rank when the checkpoint is there.

        Waits for the one before. Raises what went wrong with it.
        """
        self.wait()
        temporary = self.world.first_does(lambda: checkpoint.begin(self.folder, state["step"]))
        apart = IN_SHARDS if self.sharded else ()
        complete = {name: self._on_first_host(group) for name, group in tensors.items() if name not in apart}
        shards: Future[Any] | None = None
        if apart:
            import torch.distributed.checkpoint as dcp

            # DCP copies from a GPU itself; what lies on the host already it would write as it changes
            parts = {f"{name}.{key}": _frozen(value) for name in apart for key, value in tensors[name].items()}
            writer = dcp.HuggingFaceStorageWriter(str(temporary / SHARDS), save_distributed=True)
            writing = dcp.async_save(parts, storage_writer=writer, process_group=self.world.background)
            assert isinstance(writing, Future)  # the default way of saving
            shards = writing
        self._writing = self._thread.submit(self._write, temporary, complete, shards, state, config_text, then)

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `wait` says why."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint is there. Raises what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self._thread.shutdown()

    def _on_first_host(self, group: Tensors) -> Tensors:
        """Return copies of whole tensors on the first rank; nothing on the others, which help to gather."""
        found: Tensors = {}
        for key, value in group.items():
            value = whole(value.detach())
            if self.world.first:
                found[key] = value.to("cpu", copy=True).contiguous()
        return found

    def _write(
        self,
        temporary: Path,
        complete: dict[str, Tensors],
        shards: Future | None,
        state: dict,
        config_text: str,
        then: Callable[[], None],
    ) -> None:
        """Write this rank's part and compare with the others; then the first rank gives the folder its name."""
        files: dict[str, str] = {}
        error: Exception | None = None
        try:
            if shards is not None:
                files |= self._own_shard(shards, temporary)
            if self.world.first:
                files |= checkpoint.write(temporary, complete, config_text)
        except Exception as caught:
            error = caught
        if shards is not None:
            files, others = self._compare(files, error)
            error = error or others
        try:
            if error is not None:
                # known to all, said by one
                raise error if self.world.first else StoppedElsewhere(str(error))
            if self.world.first:
                checkpoint.finish(temporary, {**state, "files": files})
                then()
        except Exception:
            if self.world.first:
                checkpoint.abandon(temporary)
            raise

    def _own_shard(self, shards: Future, temporary: Path) -> dict[str, str]:
        """Return the SHA-256 of what this rank wrote, once every rank has written."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            shards.result()
        except CheckpointException as error:
            rank, (cause, _) = next(iter(error.failures.items()))
            raise CheckpointError(
                f"{self.folder}: shard of rank {rank} cannot be written ({cause}); make room and start again to go on"
            ) from error
        own = temporary.glob(f"{SHARDS}/shard-{self.world.rank + 1:05d}-*")
        return checkpoint.sums(temporary, [f"{SHARDS}/{path.name}" for path in own])

    def _compare(self, files: dict[str, str], error: Exception | None) -> tuple[dict[str, str], Exception | None]:
        """Return the sums of all ranks, and what went wrong on another one."""
        every: list = [None] * self.world.size
        dist.all_gather_object(every, (files, None if error is None else str(error)), group=self.world.background)
        wrong = [text for _, text in every if text is not None]
        merged = {name: digest for part, _ in every for name, digest in part.items()}
        return merged, CheckpointError(wrong[0]) if wrong else None


def _frozen(value: torch.Tensor) -> torch.Tensor:
    value = value.detach()
    return value.clone() if local(value).device.type == "cpu" else value
