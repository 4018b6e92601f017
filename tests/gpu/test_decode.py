"""Decoding where one process runs the acoustic model for all: what it gives, and what a kill leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpq.am import decode
from mpq.am.decode import SPEED, decode_set
from mpq.fst.decoder import Decoder
from mpq.io import read_yaml
from tests.am.test_decode import Features, Spelled, contents, decoder, small_parts

__all__ = ["decoder", "small_parts"]


def test_scores_of_a_gpu_are_searched_by_processes(
    decoder: Decoder, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files as where each process runs the model; several portions, the last one not full."""
    features = Features(53)
    decode_set(Spelled(), features, decoder, tmp_path / "each", "key", 2)  # type: ignore[arg-type]
    monkeypatch.setattr(decode, "_PORTION", 2)
    monkeypatch.setattr(decode._Job, "on_gpu", True)
    model = Spelled().to(device)
    for nj in (1, 2):
        decode_set(model, features, decoder, tmp_path / str(nj), "key", nj)  # type: ignore[arg-type]
        found, expected = contents(tmp_path / str(nj)), contents(tmp_path / "each")
        assert found.keys() == expected.keys() and found["hyp.txt"] == expected["hyp.txt"]
        if device.type == "cpu":
            assert found == expected
        assert read_yaml(tmp_path / str(nj) / SPEED)["am_seconds"] > 0
