"""The adapter to k2 as a process that answers calls on a pipe: `.venv-k2/bin/python -m mpq.fst.k2_server`.

Runs under Python 3.9 with the torch that k2 was built for; numbers come and go as numpy's archives. The other end is
:mod:`mpq.fst.backend`, which imports the two functions for messages from here.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import traceback
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from mpq.fst import k2

_LENGTH = struct.Struct("<q")


def read_message(stream: IO[bytes]) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays by name that :func:`write_message` wrote; none at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return {}
    with np.load(io.BytesIO(stream.read(*_LENGTH.unpack(head)))) as arrays:
        return dict(arrays)


def write_message(stream: IO[bytes], **arrays: npt.ArrayLike) -> None:
    """Write arrays, or what numpy makes arrays of, by name."""
    body = io.BytesIO()
    content: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(body, **content)
    stream.write(_LENGTH.pack(body.tell()))
    stream.write(body.getbuffer())
    stream.flush()


def serve(calls: IO[bytes], answers: IO[bytes]) -> None:
    """Answer calls until they end: each is a message, its function's name under ``call``."""
    graph: k2.Graph | None = None
    while arrays := read_message(calls):
        call = str(arrays.pop("call"))
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        results: tuple[torch.Tensor, ...] = ()
        try:
            if call == "path_sums":
                graphs = torch.split(tensors["arcs"], tensors["sizes"].tolist())
                results = k2.path_sums(tensors["log_probs"], tensors["lengths"], graphs)
            elif call == "open":
                graph = k2.Graph(**tensors)
            elif graph is not None:
                results = graph.search(tensors["scores"], float(tensors["beam"]), float(tensors["lattice_beam"]))
            write_message(answers, ok=True, **{str(i): result.numpy() for i, result in enumerate(results)})
        except Exception:  # told at the other end
            write_message(answers, error=traceback.format_exc().strip().splitlines()[-1])


if __name__ == "__main__":
    # What k2 prints must not come between the answers.
    with os.fdopen(os.dup(1), "wb") as private:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, private)
