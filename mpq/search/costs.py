"""What every search method ends in: a table of costs, and the plan that a budget buys with it.

The table says what each number of bits costs each cluster: a weight matrix (layer level), or a row of one (node
level). One table serves any budget, so it can be kept in a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpq.io import BadInput, PathLike, atomic_write
from mpq.quant import BitPlan, Precision, project, quantizable
from mpq.quant.pack import row_bytes
from mpq.quant.table import KINDS
from mpq.search.budget import solve_budget, solve_sizes

LEVELS = ("layer", "node")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Grid:
    """What is searched.

    Attributes:
        candidates: bits to choose from, ascending.
        level: `layer`: one number of bits for each weight matrix; `node`: one for each row.
        table: `uniform`, `pow2` or `asym` levels.
        scale: what shares one scale: `matrix`, `row`, or that many neighbouring columns of a row.
    """

    candidates: tuple[int, ...] = (1, 2, 4, 8)
    level: str = "layer"
    table: str = "uniform"
    scale: str | int = "row"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise BadInput(f"level: '{self.level}' is not one of {', '.join(LEVELS)}")
        if not self.candidates or list(self.candidates) != sorted(set(self.candidates)):
            raise BadInput(f"candidates: {self._text()}: expected distinct bits, ascending, such as 1,2,4,8")
        if self.candidates[0] < 1 or self.candidates[-1] > 8:
            raise BadInput(f"candidates: {self._text()}: expected bits from 1 to 8")
        if self.table not in KINDS:
            raise BadInput(f"table: '{self.table}' is not one of {', '.join(KINDS)}")
        if self.scale not in ("matrix", "row") and not (isinstance(self.scale, int) and self.scale > 0):
            raise BadInput(f"scale: '{self.scale}': expected row, matrix or a number of columns")
        if self.level == "node" and self.scale == "matrix":
            raise BadInput("scale: matrix: bits for each row need one scale for each row, or for groups of columns")

    def _text(self) -> str:
        return ",".join(map(str, self.candidates)) or "none"

    def precision(self, n_bits: int) -> Precision:
        """How a matrix of `n_bits` is quantized."""
        return Precision(n_bits, self.table, self.scale)


def read_candidates(text: str) -> tuple[int, ...]:
    """Bits from text such as `1,2,4,8`."""
    try:
        return tuple(sorted(int(part) for part in text.split(",")))
    except ValueError:
        raise BadInput(f"candidates: '{text}': expected bits separated by commas, such as 1,2,4,8") from None


@dataclass(frozen=True)
class Costs:
    """What each candidate costs each cluster.

    Attributes:
        method: where the costs come from.
        grid: what is searched.
        table: by weight name (clusters, candidates) float64; one cluster, or one for each row.
    """

    method: str
    grid: Grid
    table: Mapping[str, Tensor]

    def plan(self, shapes: Shapes, budget: float) -> BitPlan:
        """The plan with the least total cost whose bits of a weight are at most `budget` on average.

        Args:
            shapes: of the weights, as `quantizable` gives them.
            budget: average bits.

        Raises:
            BadInput: the budget is below the fewest bits, or the costs are those of another model.
        """
        _check_names(self.table, shapes)
        sizes: list[int] = []
        for name, shape in shapes.items():
            clusters = len(self.table[name])
            sizes += [prod(shape) // clusters] * clusters
        chosen = solve_budget(self._rows(shapes), sizes, self.grid.candidates, budget)
        return self._plan(shapes, np.searchsorted(self.grid.candidates, chosen), float(budget))

    def plan_in_bytes(self, shapes: Shapes, n_bytes: int) -> BitPlan:
        """The plan with the least total cost whose packed codes take at most `n_bytes`.

        That is the budget of who cares for the file: a code of 2 bits, which has three values, takes 1.6 bits of it.

        Raises:
            BadInput: as `plan`.
        """
        _check_names(self.table, shapes)
        sizes: list[list[int]] = []
        for name, (rows, *columns) in shapes.items():
            clusters = len(self.table[name])
            size = [rows // clusters * row_bytes(n, prod(columns), self.grid.table) for n in self.grid.candidates]
            sizes += [size] * clusters
        return self._plan(shapes, solve_sizes(self._rows(shapes), sizes, n_bytes), None)

    def _rows(self, shapes: Shapes) -> npt.NDArray[np.float64]:
        """(L, candidates) over all clusters in the order of the shapes."""
        rows: npt.NDArray[np.float64] = torch.cat([self.table[name] for name in shapes]).numpy()
        return rows

    def _plan(self, shapes: Shapes, columns: npt.NDArray[np.int64], budget: float | None) -> BitPlan:
        """The plan of a choice (L,) of candidates."""
        costs = self._rows(shapes)
        cost = float(costs[np.arange(len(costs)), columns].sum())
        chosen = np.asarray(self.grid.candidates)[columns]
        bits: dict[str, int | tuple[int, ...]] = {}
        first = 0
        for name in shapes:
            part = chosen[first : first + len(self.table[name])].tolist()
            first += len(part)
            bits[name] = tuple(part) if self.grid.level == "node" else part[0]
        return BitPlan(bits, self.method, budget, cost, self.grid.table, self.grid.scale)

    def write(self, path: PathLike, key: str) -> None:
        """Keeps the table as JSON; `key` says what it depends on."""
        with atomic_write(path) as file:
            json.dump({"key": key, "costs": {name: rows.tolist() for name, rows in self.table.items()}}, file)

    @classmethod
    def read(cls, path: PathLike, key: str, method: str, grid: Grid) -> Costs:
        """The table that `write` kept.

        Raises:
            BadInput: no such table, or one of another model, text or method.
        """
        try:
            with open(path, encoding="utf-8") as file:
                plain: dict[str, Any] = json.load(file)
            table = {str(n): torch.tensor(rows, dtype=torch.float64) for n, rows in plain["costs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{path}: not a table of costs from mpq search; remove it or name another file") from None
        if plain.get("key") != key:
            raise BadInput(
                f"{path}: costs of another model, text, method or setting; remove it or name another file by --costs"
            )
        return cls(method, grid, table)


def _check_names(table: Mapping[str, Tensor], shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if name not in table or len(table[name]) not in (1, shape[0]):
            raise BadInput(f"the costs are those of another model: they do not fit {name} {shape}")


def per_cluster(rows: Tensor, level: str) -> Tensor:
    """Costs of the rows of one matrix (rows, candidates) as its clusters': summed, or as they are."""
    return rows.double().cpu() if level == "node" else rows.double().cpu().sum(0, keepdim=True)


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that can be quantized, in the model's order."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in quantizable(model)}


@torch.no_grad()
def squared_errors(weight: Tensor, grid: Grid) -> Tensor:
    """||f_n(w) - w||^2 of every row w for every candidate n: (rows, candidates) float64."""
    errors = [project(weight, grid.precision(n)).dequantize() - weight.flatten(1) for n in grid.candidates]
    return torch.stack([error.double().square().sum(1) for error in errors], 1)
