"""Models for the tests of quantization."""

from __future__ import annotations

from torch import Tensor, nn


class TinyLm(nn.Module):
    """A two-layer LSTM language model."""

    def __init__(self, words: int = 50, size: int = 16, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.lstm = nn.LSTM(size, size, 2, batch_first=True)
        self.norm = nn.LayerNorm(size)
        self.output = nn.Linear(size, words)
        if tied:
            self.output.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(words))
        scores: Tensor = self.output(self.norm(hidden))
        return scores
