"""Fixtures: made-up results for tests of tables, plots and pages (no system was measured), and sctk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from mpq.score import Curves, Report, ResultRecord
from tests.score.sctk import Sctk

settings.register_profile("mpq", deadline=None, max_examples=50)  # cores are shared
settings.load_profile("mpq")

_WORDS = {"dev": 6210, "test": 12346}
_FLOAT_MEGABYTES = {"LSTM": 4.18, "Transformer": 14.9}
# family, bits, errors per thousand words on dev and test, perplexity, p against float32
_SYSTEMS = [
    ("LSTM", 32.0, 78.0, 82.4, 121.3, None),
    ("LSTM", 8.0, 78.1, 82.5, 121.4, 0.84),
    ("LSTM", 4.0, 78.3, 82.8, 123.0, 0.31),
    ("LSTM", 2.0, 79.6, 84.6, 131.9, 0.012),
    ("LSTM", 1.0, 86.9, 92.7, 176.2, 0.0000001),
    ("Transformer", 32.0, 76.2, 80.6, 112.8, None),
    ("Transformer", 4.0, 76.4, 80.9, 114.1, 0.44),
    ("Transformer", 2.0, 77.7, 82.6, 122.4, 0.004),
]


def _records() -> list[ResultRecord]:
    """A first pass, an oracle, and versions of two language models, on a dev and a test set."""
    made = [
        _record("n-gram first pass", name, rate, role="first-pass") for name, rate in (("dev", 97.0), ("test", 102.4))
    ]
    made += [_record("n-best oracle", name, rate, role="oracle") for name, rate in (("dev", 41.0), ("test", 43.9))]
    for family, bits, dev, test, perplexity, p in _SYSTEMS:
        system = f"{family} {'float32' if bits == 32 else f'{bits:g}-bit'}"
        size = int(_FLOAT_MEGABYTES[family] * 1e6 * bits / 32) + 30_000
        for name, rate in (("dev", dev), ("test", test)):
            made.append(
                _record(
                    system, name, rate, family=family, bits=bits, bytes=size, perplexity=perplexity, p_float32=p,
                    ratio=None if bits == 32 else (_FLOAT_MEGABYTES[family] * 1e6 + 30_000) / size,
                    p_first_pass=1e-9, extra={"train min": 2.5} if bits < 32 else {},
                )
            )  # fmt: skip
    return made


@pytest.fixture
def report() -> Report:
    """A report of made-up results: first pass, oracle, and versions of two language models."""
    curves = {
        name: [(float(epoch), level + 300 / epoch) for epoch in range(1, 13)]
        for name, level in (("LSTM", 100.0), ("Transformer", 92.0))
    }
    return Report(
        title="Quantized language models on the mini corpus",
        records=_records(),
        summary="Made-up numbers of a test fixture; no system was measured.",
        facts={
            "Recipe": "egs/mini",
            "Seed": "1",
            "Git commit": "0123abc",
            "Training speech": "2.5 h, 24 voices",
        },
        synthetic=True,
        curves=[
            Curves("Language models", "perplexity per word", curves),
            Curves("Acoustic model", "loss", {"dev": [(float(e), 40 * 0.7**e + 5) for e in range(1, 16)]}),
        ],
    )


def _record(system: str, name: str, per_thousand: float, **more: object) -> ResultRecord:
    words = _WORDS[name]
    errors = round(per_thousand * words / 1000)
    rate = 100 * errors / words
    values: dict[str, object] = {"interval": (rate - 0.52, rate + 0.55), "seed": 1, "git": "0123abc", **more}
    return ResultRecord(system=system, set=name, words=words, errors=errors, wer=rate, **values)  # type: ignore[arg-type]


@pytest.fixture
def sctk(sctk_bin: Path, tmp_path: Path) -> Sctk:
    """NIST sclite and sc_stats."""
    return Sctk(sctk_bin, tmp_path)
