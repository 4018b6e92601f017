"""The kernels of LF-MMI against the loops in plain torch; without a GPU they run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mpq.fst import recursion
from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import native_path_sums
from mpq.fst.phone_lm import apply_phone_ngram, estimate_phone_ngram
from tests.fst.test_lfmmi import random_graph

ROOT = Path(__file__).resolve().parents[2]


def compare(name: str) -> None:
    """Graphs that utterances share, and graphs of their own; utterances of other lengths; one with parallel arcs."""
    sentences = [[1, 2], [2, 4, 3], [3, 1, 1], [1, 3, 4, 4, 2]]
    phone_lm = estimate_phone_ngram(sentences, 4, 2)
    denominator, device, n_frames = ctc_graph(phone_lm.fsa), torch.device(name), 6
    torch.manual_seed(0)
    lengths = torch.tensor([n_frames, 5, 1])
    frames = 3.0 * torch.randn(3, n_frames, 5)
    own = [ctc_graph(apply_phone_ngram(pronunciation_graph([[s]]), phone_lm)) for s in sentences[1:3]]
    cases: list[Fsa | list[Fsa]] = [denominator, random_graph(0), [*own, random_graph(1)]]
    called = []

    def sums(place: torch.device) -> list[Tensor]:
        recursion._shared_graphs.clear()
        return [x.cpu() for which in cases for x in native_path_sums(frames.to(place), lengths.to(place), which)]

    expected = sums(torch.device("cpu"))
    from mpq.fst import fused

    if name == "cpu":
        fused.STATES, fused.ARCS = 4, 2  # several blocks of both
        recursion.kernels = lambda _: fused  # type: ignore[assignment]
    fused.check(device)
    for kernel in ("shared_frames", "log_frames"):
        run = getattr(fused, kernel)
        setattr(fused, kernel, lambda *args, run=run: called.append(run) or run(*args))
    for found, right in zip(sums(device), expected, strict=True):
        assert torch.equal(found.isfinite(), right.isfinite())
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)
    assert len(set(called)) == 2


def interpret() -> None:
    """`compare` in Triton's interpreter."""
    from triton.runtime import interpreter

    def patch(tensor: Any, scope: Any, patch: Any = interpreter._patch_lang_tensor) -> None:
        patch(tensor, scope)  # with what newer numpys refuse: int(array([1]))
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch
    compare("cpu")


def test_kernels_equal_the_plain_loops(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed; it comes with torch for GPUs")
    if device.type == "cuda":
        assert recursion.kernels(device) is not None
        with pytest.MonkeyPatch.context() as patch:
            from mpq.fst import fused

            for name in ("shared_frames", "log_frames"):
                patch.setattr(fused, name, getattr(fused, name))  # put back afterwards
            compare("cuda")
        recursion._shared_graphs.clear()
        return
    # a process of its own: what is interpreted is decided when Triton is imported
    command = [sys.executable, "-c", "from tests.gpu.test_fused import interpret; interpret()"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
