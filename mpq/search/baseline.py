"""Plans without measurement of the model's behaviour, to compare with: uniform, random, by hand-set rule."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from mpq.io import BadInput
from mpq.quant import BitPlan
from mpq.search.costs import Costs, Grid, Shapes, named_weights, per_cluster, squared_errors


def uniform_plan_within(shapes: Shapes, grid: Grid, budget: float) -> BitPlan:
    """The most bits, the same everywhere, that the budget allows.

    Raises:
        BadInput: the budget is below the fewest bits.
    """
    fewest = grid.candidates[0]
    if budget < fewest:
        raise BadInput(f"a budget of {budget:g} bits cannot be met: the fewest of the candidates are {fewest}")
    n_bits = max(n for n in grid.candidates if n <= budget)
    return BitPlan(dict.fromkeys(shapes, n_bits), "uniform", float(budget), None, grid.table, grid.scale)


def random_costs(model: nn.Module, grid: Grid, seed: int) -> Costs:
    """Squared quantization errors with a random weight for each cluster, exponentially distributed in 4^-3 to 4^3.

    A plan of these uses its budget as the measured ones do, but knows nothing of the model.
    """
    generator = torch.Generator().manual_seed(seed)
    table = {}
    for name, weight in named_weights(model).items():
        relative = per_cluster(squared_errors(weight, grid), grid.level)
        relative = relative / relative[:, :1].clamp_min(1e-30) * weight.numel() / len(relative)
        table[name] = relative * 4.0 ** (6 * torch.rand(len(relative), 1, generator=generator).double() - 3)
    return Costs("random", grid, table)


def read_rule(text: str) -> dict[str, float]:
    """A rule from text such as `embedding.*=+2,output.*=+1`: name patterns and how many bits more they deserve."""
    rule = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, separator, bits = part.partition("=")
        try:
            rule[pattern.strip()] = float(bits)
        except ValueError:
            separator = ""
        if not separator or not pattern.strip():
            raise BadInput(f"rule: '{part}': expected PATTERN=BITS, such as embedding.*=+2")
    return rule


def rule_costs(model: nn.Module, grid: Grid, rule: Mapping[str, float]) -> Costs:
    """Squared quantization errors, those of preferred matrices taken 4^(extra bits) times.

    Four times the error is what one bit less makes of uniform levels, so extra bits in the rule are about the extra
    bits in the plan, as far as the budget goes.

    Args:
        rule: by shell pattern of the weight's name, extra bits; the first that fits counts. Empty: two for the first
            and the last matrix, which in a language model are the embedding and the output layer.

    Raises:
        BadInput: a pattern fits no weight.
    """
    weights = named_weights(model)
    names = list(weights)
    rule = rule or {names[0]: 2.0, names[-1]: 2.0}
    for pattern in rule:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise BadInput(f"rule: '{pattern}' fits none of the model's weights: {', '.join(names)}")
    table = {}
    for name, weight in weights.items():
        extra = next((bits for pattern, bits in rule.items() if fnmatchcase(name, pattern)), 0.0)
        table[name] = per_cluster(squared_errors(weight, grid), grid.level) * 4.0**extra
    return Costs("rule", grid, table)
