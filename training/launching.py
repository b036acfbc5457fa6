"""`accelerate launch --cpu --num_processes N` as it is meant: N processes, which talk over gloo.

On CPUs accelerate starts a single process, and tells it neither how many were asked for nor how to meet others. That
process reads it from the launcher's command line, and becomes torch's launcher, which starts them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress

NOTE = (
    "Note: accelerate launch --cpu started a single process; for several use python -m torch.distributed.run "
    "--nproc_per_node N."
)

#: What accelerate's launcher is called on a command line; two of them take "launch" as their first word.
LAUNCHERS = ("accelerate", "accelerate.commands.accelerate_cli", "accelerate-launch", "accelerate.commands.launch")

#: What torch's launcher and MPI tell every one of several processes.
STARTED = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}


def start_all_that_were_asked_for() -> None:
    """Where this is the one process that accelerate started for several, start them in its place; else do nothing."""
    if not _is_alone_unasked():
        return
    import psutil

    from .processes import signal_at_end_of_parent

    launcher = psutil.Process().parent()
    count = None if launcher is None else asked_for(launcher.cmdline())
    if count is None:
        print(NOTE, file=sys.stderr)
        return
    signal_at_end_of_parent(signal.SIGTERM)  # torch's launcher hands it on, and the run ends with a checkpoint
    program = psutil.Process().cmdline()[1:]  # as accelerate wrote it: "-m", module, arguments; or script, arguments
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    os.execv(sys.executable, [sys.executable, *command, *program])


def _is_alone_unasked() -> bool:
    """Whether `accelerate launch` was asked for several processes on CPUs; it says so by where they should meet."""
    if "MASTER_PORT" not in os.environ or "ACCELERATE_USE_CPU" not in os.environ or STARTED & os.environ.keys():
        return False
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def asked_for(launch: list[str]) -> int | None:
    """How many processes a command line of accelerate asks for on this machine; None where it is none, or not clear."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = [os.path.basename(word) for word in launch[:3]]  # of: python, perhaps -m, the launcher
    place = next((number for number, word in enumerate(words) if word in LAUNCHERS), None)
    if place is None:
        return None
    options = launch[place + 1 :]
    if options[:1] == ["launch"]:
        del options[0]
    logging.disable(logging.WARNING)  # the launcher has told all of this before
    try:
        with suppress(SystemExit, ValueError, OSError):
            asked = _validate_launch_command(launch_command_parser().parse_args(options))[0]
            if asked.num_machines in (None, 1) and asked.num_processes and asked.num_processes > 1:
                return int(asked.num_processes)
    finally:
        logging.disable(logging.NOTSET)
    return None
