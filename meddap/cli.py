"""The one command: `meddap NAME …` is `python -m MODULE …`.

The table names the modules as text and imports none, so that `meddap --help` answers at once; a command's module is
imported when it is run.
"""

from __future__ import annotations

import argparse
import difflib
import os
import pkgutil
import sys
from typing import NamedTuple, NoReturn

from meddap import __version__, console


class Command(NamedTuple):
    """A row of the table: the module whose `main(arguments) -> status` is run, and what it does in a line."""

    module: str
    summary: str


# along the road of a run
COMMANDS = {
    "images → shards": {
        "generate": Command("data_prep.generate", "make synthetic patients to try everything with"),
        "shard-ct": Command("data_prep.shard_ct", "turn CT (DICOM, NIfTI, NRRD, MetaImage) into shards"),
        "shard-mri": Command("data_prep.shard_mri", "turn MRI, one or several sequences, into shards"),
        "shard-images": Command("data_prep.shard_images", "turn radiographs, pictures and PET into shards"),
        "merge": Command("data_prep.merge", "join the parts of a data set that array jobs made"),
        "verify": Command("data_prep.verify", "check a finished data set, byte by byte"),
        "overview": Command("data_prep.overview", "write an HTML page that shows a data set"),
        "curate": Command("eval.curate", "find near-duplicates of a data set and weigh its slices"),
    },
    "shards → checkpoint": {
        "plan": Command("pretrain.plan", "estimate what a training takes: days, memory, disk"),
        "train": Command("pretrain.train", "adapt a vision transformer, stage by stage"),
        "export": Command("pretrain.export", "write an encoder for transformers, PyTorch or ONNX"),
    },
    "checkpoint → numbers": {
        "probe": Command("eval.probe", "measure an encoder on a labelled task"),
        "choose": Command("eval.choose", "choose which checkpoint of a run to take"),
        "compare": Command("eval.compare", "say whether two probed encoders really differ"),
        "embed": Command("eval.embed", "write a vector per patient, series or slice of new images"),
        "predict": Command("eval.predict", "predict for new patients with a fitted head"),
        "sweep": Command("eval.sweep", "probe several encoders at several image sizes"),
        "report": Command("eval.report", "write an HTML page on one run or several"),
    },
    "all of it on a cluster": {
        "submit": Command("slurm.submit", "submit shards, stages, probes and report as SLURM jobs"),
    },
}
TABLE = {name: command for group in COMMANDS.values() for name, command in group.items()}


def usage() -> str:
    """Return the text of `meddap --help`."""
    width = max(map(len, TABLE))
    lines = ["usage: meddap COMMAND …      meddap COMMAND --help      meddap --version"]
    for group, commands in COMMANDS.items():
        lines += [group]
        lines += [f"  {name:{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names with the other ones; return its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if not name:
        console.say(usage())
        return 2
    if name in ("-h", "--help"):
        console.show(usage())
        return 0
    if name == "--version":
        console.show(f"meddap {__version__}")
        return 0
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, n=1, cutoff=0.0)[0]
        console.fail(f"{name}: unknown command; did you mean {near}? `meddap --help` lists all")
        return 2
    console.started_as(f"meddap {name}")
    run: console.Main = pkgutil.resolve_name(f"{TABLE[name].module}:main")
    return run(rest)


def script() -> NoReturn:
    """The process `meddap`, and `python -m meddap`."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    console.launch(main)


def _complete() -> None:
    """Answer the shell, which asks at a Tab: names of commands, and files behind one."""
    import argcomplete

    options = argparse.ArgumentParser()
    options.add_argument("--version", action="version", version="")
    options.add_argument("command", choices=TABLE)
    options.add_argument("arguments", nargs=argparse.REMAINDER)
    argcomplete.autocomplete(options)
