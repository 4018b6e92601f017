"""The two language models: LSTM and Transformer decoder, over the units of one tokenizer.

Every matrix that a bit plan may name is the weight of an `nn.Embedding`, `nn.LSTM` or `nn.Linear`, so that
`mpq.quant` can swap these modules by type.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq.data.lmtext import LmBatch
from mpq.io import BadInput, check_ranges
from mpq.quant import FloatLinear, QuantModule, attend_exactly, gelu, log_sum_exp, rotate

ARCHITECTURES = ("lstm", "transformer")
LOGITS = 1 << 20  # at once where only some are asked for: more would leave the processor's cache
ROWS = 256  # but no fewer rows: fewer would make slower products


@dataclass
class LmConfig:
    """Size of a language model.

    Attributes:
        arch: `lstm` or `transformer`.
        dim: width of embeddings and hidden states; of a Transformer divisible by twice `heads` (rotary positions
            turn pairs).
        layers: LSTM layers or Transformer blocks.
        dropout: on embeddings, and on the output of every layer (LSTM) or sub-layer (Transformer).
        heads: attention heads (Transformer only).
        dim_ff: hidden width of the feed-forward layers (Transformer only).
    """

    arch: str = "lstm"
    dim: int = 256
    layers: int = 1
    dropout: float = 0.1
    heads: int = 4
    dim_ff: int = 1024

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise BadInput(f"arch: '{self.arch}' is not a language model; expected {' or '.join(ARCHITECTURES)}")
        check_ranges(self, dim="[1, 1e6]", layers="[1, 1000]", dropout="[0, 1)", heads="[1, 1e6]", dim_ff="[1, 1e6]")
        if self.arch == "transformer" and self.dim % (2 * self.heads):
            raise BadInput(f"dim: {self.dim} must be divisible by 2 * heads ({2 * self.heads})")


class SentenceDropout(nn.Module):
    """Dropout with one mask for all positions of a sentence, (N, T, C) -> (N, T, C) (Gal and Ghahramani 2016).

    For recurrent nets it is the better regularizer, and it draws T times fewer random numbers, which on a CPU
    are a tenth of the training time.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)


class LanguageModel(nn.Module, ABC):
    """A causal network with an output layer."""

    config: LmConfig
    output: nn.Linear

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.output.bias.device

    @abstractmethod
    def hidden(self, tokens: Tensor) -> Tensor:
        """What the output layer sees, (N, T, C), for `tokens` (N, T)."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits (M, V) of the unit after each of the M positions of `tokens` (N, T) that `mask` (N, T) marks.

        The output layer is most of the work: leaving padding out before it is worth a copy.
        """
        logits: Tensor = self.output(self._rows(tokens, mask))
        return logits

    def _rows(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """What the output layer sees at the M positions that `mask` (N, T) marks, (M, C)."""
        marked = mask.flatten().nonzero().squeeze(1)
        return self.hidden(tokens).flatten(0, 1).index_select(0, marked)

    def log_probs(self, batch: LmBatch) -> Tensor:
        """Natural-log probability of every target that is not padding, (M,), row after row."""
        rows, targets = self._rows(batch.inputs, batch.mask), batch.targets[batch.mask]
        at_once = max(ROWS, LOGITS // self.output.out_features)
        found = []
        for some, asked in zip(torch.split(rows, at_once), torch.split(targets, at_once), strict=True):
            logits = self.output(some).float()
            found.append(logits.gather(1, asked[:, None]).squeeze(1) - log_sum_exp(logits))
        return torch.cat(found)

    def score(self, batch: LmBatch) -> Tensor:
        """Natural-log probability of each sentence, `</s>` included, (N,) float64."""
        rows = torch.arange(len(batch.mask), device=batch.mask.device)[:, None].expand_as(batch.mask)[batch.mask]
        total = torch.zeros(len(batch.mask), dtype=torch.float64, device=batch.mask.device)
        return total.index_add_(0, rows, self.log_probs(batch).double())


class LstmLm(LanguageModel):
    """Embedding, LSTM, output (Sundermeyer et al. 2012)."""

    def __init__(self, config: LmConfig, n_units: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(n_units, config.dim)
        between = config.dropout if config.layers > 1 else 0.0  # torch warns where there is nothing between
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=between)
        self.dropout = SentenceDropout(config.dropout)
        self.output = FloatLinear(config.dim, n_units)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(config.dim))

    def hidden(self, tokens: Tensor) -> Tensor:
        rows = self.dropout(self.embedding(tokens))
        # on a GPU in float32: cuDNN has LSTMs in bfloat16 only since 9.13, PyTorch's own kernels none
        with torch.autocast("cuda", enabled=False) if rows.is_cuda else nullcontext():
            h, _ = self.lstm(rows)
        dropped: Tensor = self.dropout(h)
        return dropped


class Attention(nn.Module):
    """Causal self-attention with rotary positions (Su et al. 2021, eq. 34), (N, T, C) -> (N, T, C).

    Written out instead of torch's fused kernel: for sentences the products are small, and that kernel's backward
    pass in bfloat16 on a CPU is six times as slow; it also has no second derivative.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = FloatLinear(dim, dim), FloatLinear(dim, dim)
        self.value, self.out = FloatLinear(dim, dim), FloatLinear(dim, dim)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        """`turns` (2, T, C / heads / 2) are the positions'; `mask` (T, T) is added to the scores."""
        n, t, c = x.shape
        q, k, v = (layer(x).view(n, t, self.heads, c // self.heads) for layer in (self.query, self.key, self.value))
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, turns), rotate(k, turns), v))
        if self.before_integers:
            attended = attend_exactly(q, k, v, mask)
        else:
            scores = q @ k.transpose(2, 3) * (c // self.heads) ** -0.5
            attended = (scores + mask).softmax(-1).to(v.dtype) @ v
        out: Tensor = self.out(attended.transpose(1, 2).to(x.dtype).reshape(n, t, c))
        return out

    @property
    def before_integers(self) -> bool:
        """Whether an integer layer rounds what is attended to."""
        return isinstance(self.out, QuantModule) and self.out.a_bits == 8


def rotary_turns(length: int, dim: int, device: torch.device) -> Tensor:
    """Cosine and sine of the angle t / 10000^(2i/dim) of position t and pair i: (2, length, dim / 2).

    By way of double, since a vectorized float cosine has other last bits at other places of a tensor.
    """
    rates = 10000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    angles = (torch.arange(length, device=device)[:, None] * rates).double()
    return torch.stack([angles.cos(), angles.sin()]).float()


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection, (N, T, C) -> (N, T, C)."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention = Attention(config.dim, config.heads)
        self.expand = FloatLinear(config.dim, config.dim_ff)
        self.contract = FloatLinear(config.dim_ff, config.dim)
        self.dropout = SentenceDropout(config.dropout)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), turns, mask))
        x = x + self.dropout(self.feed_forward(self.norm2(x)))
        return x

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two layers with GELU (its tanh approximation) between them, (..., C) -> (..., C)."""
        expanded = self.expand(x)
        before_integers = isinstance(self.contract, QuantModule) and self.contract.a_bits == 8
        active = gelu(expanded.float()) if before_integers else F.gelu(expanded, approximate="tanh")
        result: Tensor = self.contract(active)
        return result


class TransformerLm(LanguageModel):
    """Pre-norm Transformer decoder (Vaswani et al. 2017; Irie et al. 2019 for speech) with rotary positions."""

    def __init__(self, config: LmConfig, n_units: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(n_units, config.dim)
        self.dropout = SentenceDropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.output = FloatLinear(config.dim, n_units)
        self._initialize()

    def _initialize(self) -> None:
        """Small normal weights; what adds to the residual stream shrinks with depth (Radford et al. 2019)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                residual = name.endswith(("out.weight", "contract.weight"))
                depth = math.sqrt(2 * self.config.layers) if residual else 1.0
                nn.init.normal_(parameter, std=1 / math.sqrt(self.config.dim) / depth)

    def hidden(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        turns = rotary_turns(length, self.config.dim // self.config.heads, tokens.device)
        mask = torch.full((length, length), -math.inf, device=tokens.device).triu(1)
        x = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, turns, mask)
        normed: Tensor = self.norm(x)
        return normed


def build_lm(config: LmConfig, n_units: int) -> LanguageModel:
    """The untrained model of that size over `n_units` units."""
    return LstmLm(config, n_units) if config.arch == "lstm" else TransformerLm(config, n_units)
