"""The float32 networks that ours are measured against."""

from __future__ import annotations

import copy

from torch import nn

from mpq.lm import LanguageModel
from mpq.quant import FloatLinear


def as_torch_has_it(model: LanguageModel) -> LanguageModel:
    """A copy whose linear layers are torch's own, as any other toolkit runs them.

    Our float layers take oneDNN where it is faster than torch's choice, MKL: twice as fast on AMD processors with
    AVX512. Against them an integer model looks half as fast.
    """
    stock = copy.deepcopy(model)
    for layer in stock.modules():
        if isinstance(layer, FloatLinear):
            layer.__class__ = nn.Linear
    return stock
