"""Folders that one process at a time works in."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpq.io.errors import BadInput
from mpq.io.files import PathLike

_PATIENCE = 10  # seconds that a process which was killed just now has to end in


@contextmanager
def only_one(folder: PathLike, does: str) -> Iterator[None]:
    """Keep other processes that ask for the same folder out, on other machines too, while the block runs.

    The kernel lets go of the lock when this process ends, however it does. Where a file system has no locks nobody is
    kept out.

    Args:
        folder: where `.lock` says who is in.
        does: what is done in it, for the message: `trains`.

    Raises:
        BadInput: another process is in: its number and its machine.
    """
    with open(Path(folder, ".lock"), "a+", encoding="utf-8") as file:
        for left in range(_PATIENCE, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(0)
                print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
            except BlockingIOError:
                if left:
                    time.sleep(1)
                    continue
                file.seek(0)
                who = file.read().strip() or "another process"
                raise BadInput(f"{folder}: {who} {does} here; wait for its end, or write to another folder") from None
            except OSError:  # no locks here
                pass
            break
        yield
