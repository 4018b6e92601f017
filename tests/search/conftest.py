"""A small regular language, and small models trained on it."""

from __future__ import annotations

import random

import pytest
import torch

from mpq.data.lmtext import LmText, Tokenizer, open_lm_text
from mpq.lm import LanguageModel, LmConfig, build_lm

WORDS = ["the", "king", "city", "man", "people", "went", "said", "saw", "took"]
CONFIGS = {
    "lstm": LmConfig("lstm", dim=8, layers=2, dropout=0.2),
    "transformer": LmConfig("transformer", dim=8, layers=2, heads=2, dim_ff=16, dropout=0.2),
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> LmText:
    """60 sentences in which each noun takes one verb."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    lines = []
    for _ in range(60):
        nouns = [rng.randrange(4) for _ in range(rng.randint(1, 3))]
        lines.append(" ".join(f"the {WORDS[1 + i]} {WORDS[5 + i]}" for i in nouns))
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "text").write_text("\n".join(lines) + "\n")
    return open_lm_text(folder / "text", Tokenizer(folder / "words.txt"), folder / "units")


def trained(arch: str, text: LmText) -> LanguageModel:
    """A model after a few dozen steps."""
    torch.manual_seed(0)
    model = build_lm(CONFIGS[arch], len(text.tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for epoch in range(8):
        for batch in text.batches(100, 0, epoch):
            optimizer.zero_grad()
            (-model.log_probs(batch).mean()).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, text: LmText) -> LanguageModel:
    """A trained model of each architecture, in eval mode; leave it as it is."""
    return trained(request.param, text)
