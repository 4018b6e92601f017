"""BitPlan: how many bits each weight matrix gets, and where that choice comes from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

from mpq.io import BadInput, PathLike, read_yaml, write_yaml
from mpq.quant.table import CLIPPINGS, KINDS, Precision

FLOAT_BITS = 32
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class BitPlan:
    """Bits of every weight matrix of a model.

    Attributes:
        bits: full parameter name to 1..8, or 32 (stays float), or one number 1..8 for each row.
        method: what chose them (uniform, kl, hessian, nas, ...).
        budget: average bits asked for.
        cost: value of what the method minimised.
        table: ``uniform``, ``pow2`` or ``asym`` levels (asymmetric: all that the bits can write, and an offset).
        scale: what shares one scale: ``matrix``, ``row``, or that many neighbouring columns of a row (all of a row that
            has fewer).
        a_bits: bits of the activations: 4 or 8, or 32 for weight-only quantization.
        clipping: how the scales are found at first: ``squares``, ``search`` or ``none`` (see `Precision`).
    """

    bits: Mapping[str, int | tuple[int, ...]]
    method: str = "uniform"
    budget: float | None = None
    cost: float | None = None
    table: str = "uniform"
    scale: str | int = "row"
    a_bits: int = 8
    clipping: str = "squares"

    def precision(self, name: str) -> Precision | None:
        """How that matrix is quantized; None: it stays float."""
        bits = self.bits[name]
        return None if bits == FLOAT_BITS else Precision(bits, self.table, self.scale, self.clipping)

    def average_bits(self, shapes: Shapes) -> float:
        """Bits of a weight on average, over all quantizable weights."""
        total = 0.0
        for name, shape in shapes.items():
            bits = self.bits[name]
            total += prod(shape) * (bits if isinstance(bits, int) else sum(bits) / len(bits))
        return total / sum(prod(shape) for shape in shapes.values())

    def check(self, shapes: Shapes, where: str = "bit plan") -> None:
        """See that the plan fits a model whose quantizable weights have these shapes.

        Raises:
            BadInput: an unknown or missing layer, bits or a scale that do not fit its shape.
        """
        for name in self.bits:
            if name not in shapes:
                near = difflib.get_close_matches(name, shapes, n=1, cutoff=0.0)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise BadInput(f"{where}: the model has no quantizable weight {name!r}{hint}")
        for name, shape in shapes.items():
            if name not in self.bits:
                raise BadInput(f"{where}: no bits for {name!r} {shape}; add it (32 keeps it float)")
            bits = self.bits[name]
            if not isinstance(bits, int) and len(bits) != shape[0]:
                raise BadInput(f"{where}: {name}: bits for {len(bits)} rows, but it has {shape[0]} rows")
            columns = prod(shape[1:])
            if bits != FLOAT_BITS and isinstance(self.scale, int) and columns > self.scale and columns % self.scale:
                sizes = [n for n in range(1, columns + 1) if columns % n == 0]
                fit = (
                    f"{max(n for n in sizes if n < self.scale)} and {min(n for n in sizes if n > self.scale)} would do"
                )
                raise BadInput(f"{where}: {name}: {columns} columns cannot be cut into groups of {self.scale}; {fit}")

    def to_dict(self) -> dict[str, Any]:
        """What YAML and JSON hold; bits of rows are a string of digits, one for each row."""
        plain = asdict(self)
        plain["bits"] = {n: b if isinstance(b, int) else "".join(map(str, b)) for n, b in self.bits.items()}
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], where: str = "bit plan") -> BitPlan:
        """The plan that `to_dict` gave; raises BadInput on anything that is no plan."""
        names = [field.name for field in fields(cls)]
        for key in plain:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
                raise BadInput(f"{where}: unknown key {key!r}; did you mean {near!r}?")
        bits = plain.get("bits")
        if not isinstance(bits, dict) or not bits:
            raise BadInput(f"{where}: expected 'bits:' with one 'layer name: bits' line for each weight")
        values = dict(plain)
        values["bits"] = {str(name): _read_bits(value, f"{where}: {name}") for name, value in bits.items()}
        plan = cls(**values)
        plan._check_settings(where)
        return plan

    def _check_settings(self, where: str) -> None:
        if self.table not in KINDS:
            raise BadInput(f"{where}: table: {self.table!r}: expected one of {', '.join(KINDS)}")
        if self.clipping not in CLIPPINGS:
            raise BadInput(f"{where}: clipping: {self.clipping!r}: expected one of {', '.join(CLIPPINGS)}")
        is_group = isinstance(self.scale, int) and not isinstance(self.scale, bool) and self.scale > 0
        if self.scale not in ("matrix", "row") and not is_group:
            raise BadInput(f"{where}: scale: {self.scale!r}: expected matrix, row or a number of columns")
        if self.a_bits not in (4, 8, FLOAT_BITS):
            raise BadInput(f"{where}: a_bits: {self.a_bits!r}: expected 4, 8, or 32 for float activations")
        if self.scale == "matrix" and any(not isinstance(bits, int) for bits in self.bits.values()):
            raise BadInput(f"{where}: bits for each row need scale: row (or a number of columns)")
        for name in ("budget", "cost"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | float):
                raise BadInput(f"{where}: {name}: {value!r}: expected a number")


def _read_bits(value: object, where: str) -> int | tuple[int, ...]:
    """One number for the matrix, or a string or list of one for each row."""
    expected = "expected 1 to 8, or 32 for float"
    if isinstance(value, int) and not isinstance(value, bool):
        if not (1 <= value <= 8 or value == FLOAT_BITS):
            raise BadInput(f"{where}: {value} bits: {expected}")
        return value
    if not isinstance(value, str | list) or not value or (isinstance(value, str) and not value.isdigit()):
        raise BadInput(f"{where}: bits {value!r}: {expected}, or a digit for each row")
    for row, digit in enumerate(value):
        if str(digit) not in tuple("12345678"):
            raise BadInput(f"{where}: row {row}: bits {digit!r}: expected 1 to 8")
    return tuple(int(digit) for digit in value)


def read_plan(path: PathLike) -> BitPlan:
    """Read a plan from YAML; a wrong one is BadInput."""
    return BitPlan.from_dict(read_yaml(path), str(path))


def write_plan(path: PathLike, plan: BitPlan) -> None:
    """Write a plan as YAML."""
    write_yaml(path, plan.to_dict())
