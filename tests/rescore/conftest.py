"""Small language models, float and 2-bit, and lists to score with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mpq.data.lmtext import Tokenizer, pad_sentences
from mpq.io import Hyp, NBest
from mpq.lm import LanguageModel, LmConfig, build_lm
from mpq.quant import freeze, quantize_model, uniform_plan

WORDS = [f"w{i}" for i in range(30)]


@pytest.fixture
def units(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return Tokenizer(path)


def make_lm(arch: str, n_bits: int, n_units: int, layers: int = 2, packed: bool = False) -> LanguageModel:
    """A model whose scores depend on all of the history; quantized and frozen below 32 bits."""
    torch.manual_seed(1)
    model = build_lm(LmConfig(arch, dim=32, heads=2, dim_ff=64, layers=layers), n_units)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    if n_bits < 32:
        freeze(quantize_model(model, uniform_plan(model, n_bits)), packed=packed)
    return model.eval()


@pytest.fixture(params=["lstm", "transformer"])
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[32, 2])
def any_lm(request: pytest.FixtureRequest, arch: str, units: Tokenizer) -> LanguageModel:
    """LSTM and Transformer, float and on integers."""
    return make_lm(arch, request.param, len(units))


@torch.no_grad()
def alone(model: LanguageModel, units: Tokenizer, text: str) -> float:
    """The score of one text, by itself."""
    return float(model.score(pad_sentences([units.encode(text)], units.bos, units.eos)).item())


def made_up_list(utt: str, n_hyps: int, length: int, seed: int) -> NBest:
    """Hypotheses that differ from the first one in a few words, as those of a decoder do."""
    rng = np.random.default_rng(seed)
    base = [str(word) for word in rng.choice(WORDS, length)]
    hyps = []
    for rank in range(n_hyps):
        words = [str(rng.choice(WORDS)) if rng.random() < 0.1 else word for word in base if rng.random() < 0.97]
        hyps.append(Hyp(" ".join(words), -float(rank), -1.0))
    return NBest(utt, hyps)
