"""Several processes that train one model: who they are, and everything that they tell each other.

torchrun or srun starts one process per device; `start` reads from the environment which one this is. Every collective
of the program is a method of `World`. Alone, each is the identity: the same code trains on a laptop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pretrain
from meddap.errors import MeddapError
from meddap.settings import SettingsError

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch.distributed.tensor import DTensor

T = TypeVar("T")


class StoppedElsewhere(MeddapError, RuntimeError):
    """Another process ended the run and has said why."""


@dataclass(frozen=True)
class World:
    """The processes of a run. Ranks count from 0; the first one writes.

    local_rank  number of this process on its host, hosts every process's host
    background  a group of its own for a thread that writes checkpoints, so that its messages never meet the step's
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    hosts: tuple[str, ...] = ("",)
    background: Any = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum elementwise over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the elementwise maximum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the rows of all ranks in their order, `counts` of each; this rank has `rows`.

        The gradient reaches this rank's rows alone, times all / own: right where every rank computes the same from the
        whole and its result counts by the rank's share of the rows, as a mean over images does.
        """
        return rows if self.size == 1 else _Gather.apply(rows, tuple(counts), self.rank)

    def table(self, values: Sequence[float]) -> list[list[float]]:
        """Return (size, n) float64: the n values that each rank gives."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        # between hosts' memories: the values come from there, and a GPU has no part in it
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        return [row.tolist() for row in every]

    def first_does(self, work: Callable[[], T]) -> T:
        """Return on all ranks what `work` returns on the first. If it raises there, the others raise StoppedElsewhere.

        The result travels pickled, between the processes of one run alone.
        """
        if self.size == 1:
            return work()
        result: list[T] = []
        error: Exception | None = None
        if self.first:
            try:
                result = [work()]
            except Exception as caught:
                error = caught
        box = [result]
        dist.broadcast_object_list(box, src=0)
        if error is not None:
            raise error
        if not box[0]:
            raise StoppedElsewhere("the first process ended the run")
        return box[0][0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.table([])


ALONE = World()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: tuple[int, ...], rank: int) -> torch.Tensor:
        ctx.mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        ctx.factor = sum(counts) / counts[rank]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded)
        return torch.cat([part[:count] for part, count in zip(every, counts)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient[ctx.mine] * ctx.factor, None, None


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a shard of the tensor.

    PyTorch's modules for shards take most of a second to import, so a run without shards does not import them.
    """
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a tensor; all of it where it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered from every rank's shard where it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def divided(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor, which every rank has, as `like` is: on its device, and this rank's shard of it."""
    full = full.to(like.device)
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def without_averaging(student: nn.Module, wanted: bool) -> AbstractContextManager:
    """Return a context in which, where `wanted`, DDP only adds gradients up: the last micro-batch averages them."""
    return student.no_sync() if wanted and isinstance(student, DistributedDataParallel) else nullcontext()


def launched(environment: Mapping[str, str] = os.environ) -> World | None:
    """Return which process of how many torchrun or srun says this is; None for one that was started alone."""
    for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")):
        if all(name in environment for name in names):
            rank, size, local_rank = (int(environment[name]) for name in names)
            found = World(rank, size, local_rank)
            return found if found.size > 1 else None
    return None


def end_with_the_launcher() -> None:
    """Have the kernel end this process when the one that started it ends: no rank outlives a killed launcher.

    Raises StoppedElsewhere where that has ended already.
    """
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):  # not Linux: they end with the next message that nobody answers
        return
    if os.getppid() != pretrain.PARENT:
        raise StoppedElsewhere("the launcher ended before its processes began")


def start(device: torch.device, hang_timeout: float) -> World:
    """Meet the other processes; ALONE where there is none. Raises SettingsError where they cannot be found.

    hang_timeout  seconds after which the heartbeat ends a run that stands still, or 0; messages are waited for longer,
                  so that it is the heartbeat that says who hangs
    """
    who = launched()
    if who is None:
        return ALONE
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = _slurm_address(os.environ)
    # the defaults of a launcher that sets neither
    os.environ.setdefault("RANK", str(who.rank))
    os.environ.setdefault("WORLD_SIZE", str(who.size))
    limit = timedelta(seconds=3 * hang_timeout + 120) if hang_timeout else timedelta(days=1)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=limit, device_id=device if device.type == "cuda" else None)
    except RuntimeError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ.get("MASTER_PORT")
        raise SettingsError(f"MASTER_PORT={port}: another process listens there; set another port") from error
    hosts: list[str] = [""] * who.size
    dist.all_gather_object(hosts, socket.gethostname())
    world = replace(who, hosts=tuple(hosts), background=dist.new_group(backend="gloo", timeout=limit))
    world.barrier()  # a rank that ends at once does not break another one's start
    return world


def end(world: World) -> None:
    """Part from the other processes."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def fails_first() -> bool | None:
    """Return whether this rank is the first one that asks; None where the others cannot be asked any more.

    Of an error that all ranks run into, the first one prints the traceback.
    """
    try:
        # what the ranks met through; PyTorch has no public name for it
        return dist.distributed_c10d._get_default_store().add("meddap/failed", 1) == 1
    except (RuntimeError, ValueError):
        return None


def lost(error: BaseException) -> str | None:
    """Return what `error` says of another process's end; None where it is about something else."""
    words = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "nccl", "gloo")
    text = str(error)
    found = [word for word in words if word in text.lower()]
    return found[0] if found and isinstance(error, RuntimeError) else None


def _slurm_address(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return address and port at which the processes of a SLURM step meet: those of its first node."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    try:
        names = ["scontrol", "show", "hostnames", nodes]
        first = subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()[0]
        # a node's address is not always its name
        asked = ["sinfo", "-h", "-N", "-n", first, "-o", "%o"]
        address = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise SettingsError(f"SLURM_STEP_NODELIST={nodes!r}: its first node is unknown; set MASTER_ADDR") from error
    # another one for each start, so that what a killed start left cannot be in the way
    job, restart = (int(environment.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
    return address, environment.get("MASTER_PORT", str(20_000 + (job * 31 + restart) % 20_000))
