"""ONNX graphs with low-bit weights: onnxruntime's operators of the domain ``com.microsoft``.

A quantized matrix becomes ``MatMulNBits``, a quantized embedding ``GatherBlockQuantized``. Both hold codes of 2, 4 or 8
bits, unsigned, where ours are signed and symmetric: a level q is stored as q + 2^(bits-1), the operators' zero point
where none is given, so that scale * (stored - zero point) is our weight exactly. Tables between these widths go into
the next wider one (1 bit into 2, 3 into 4, 5 to 7 into 8). Both have one float32 scale for each block of columns;
a scale of ours that covers several blocks is written once for each. The offset of an asymmetric table is a term of its
own: times the sum of what is multiplied, or added to the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from mpq.io import BadInput, PathLike, atomic_write
from mpq.quant.model import quantized_weights
from mpq.quant.plan import BitPlan
from mpq.quant.table import levels

WIDTHS = (2, 4, 8)  # bits of a stored code
MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 21, 10  # what onnxruntime 1.20 and later read
_ACCURACY = {8: 4, 32: 1}  # accuracy_level of MatMulNBits by bits of its activations
_LARGEST = 2**31 - 1  # bytes of a protobuf message
TOLERANCE = 0.05  # of outputs; int8 activations that are rounded otherwise than ours stay below


@dataclass(frozen=True)
class OnnxExport:
    """What `write_onnx` wrote.

    Attributes:
        n_bytes: size of the file.
        operators: how many there are of each low-bit operator.
        difference: how far onnxruntime's outputs are from ours, relative.
    """

    n_bytes: int
    operators: dict[str, int]
    difference: float


class _Part(NamedTuple):
    """Rows of a matrix whose codes are stored alike.

    Attributes:
        width: bits of a code.
        rows: (R,) which rows.
        codes, scale: as in `Quantized`.
    """

    width: int
    rows: Tensor
    codes: Tensor
    scale: Tensor


def low_bit_operators(graph: onnx.GraphProto) -> Counter[str]:
    """How many there are of each operator of the domain ``com.microsoft``, in bodies of loops too."""
    found = Counter(node.op_type for node in graph.node if node.domain == MICROSOFT)
    for node in graph.node:
        for attribute in node.attribute:
            found += low_bit_operators(attribute.g)
    return found


def run_onnx(data: bytes, inputs: Mapping[str, Any]) -> list[Any]:
    """All outputs of a model in onnxruntime, on one thread.

    Raises:
        BadInput: the installed onnxruntime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said below
    options.intra_op_num_threads = 1  # a pool takes longer to start than what is run here
    try:  # some versions refuse a model when it is loaded, some when it runs
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        outputs: list[Any] = session.run(None, dict(inputs))
    except Exception as error:  # its exceptions have no common class of their own
        reason = " ".join(str(error).split())[-120:]
        raise BadInput(
            f"onnxruntime {onnxruntime.__version__} cannot run this model ({reason}); if it has no kernel for codes of "
            "2 bits, give --min-bits 4"
        ) from None
    return outputs


def write_onnx(path: PathLike, model: onnx.ModelProto, difference: Callable[[bytes], float], what: str) -> OnnxExport:
    """Writes a model that onnxruntime computes as we do.

    Args:
        difference: how far onnxruntime's outputs for the serialized model are from ours, relative.
        what: what it compares, for messages.

    Raises:
        BadInput: the installed onnxruntime cannot run the model, or gives something else.
    """
    data = model.SerializeToString()
    found = difference(data)
    if not found <= TOLERANCE:
        raise BadInput(
            f"{path}: onnxruntime {onnxruntime.__version__} gives {what} {found:.1%} off mpq's on this machine; export "
            "with --activations 32"
        )
    with atomic_write(path, "wb") as file:
        file.write(data)
    return OnnxExport(len(data), dict(low_bit_operators(model.graph)), found)


def product_block(width: int, columns: int, group: int) -> int:
    """Columns of a block of MatMulNBits: of the sizes that do not straddle two scales, the one of the least bytes.

    Onnxruntime's kernels have 16 to 256; above, they give zeros without a word (onnxruntime issue 28551). For two bits
    those on int8 have up to 128.

    Args:
        width: bits of a code.
        columns: of the matrix; the last block is filled up.
        group: columns that share one scale.
    """
    sizes = [size for size in (256, 128, 64, 32, 16) if group == columns or group % size == 0]
    sizes = [size for size in sizes if width > 2 or size <= 128]
    return min(sizes, key=lambda size: -(-columns // size) * (size * width // 8 + 4))


def gather_block(columns: int, group: int) -> int:
    """Columns of a block of GatherBlockQuantized, which may be any power of two from 16 on and is not filled up."""
    return group & -group if group < columns else max(16, 1 << (columns - 1).bit_length())


def pack_unsigned(codes: Tensor, width: int) -> Tensor:
    """Levels (R, K) as unsigned codes, first in the lowest bits: (R, K * width / 8) uint8, K * width divisible by 8."""
    unsigned = (codes.to(torch.int32) + 2 ** (width - 1)).reshape(codes.shape[0], -1, 8 // width)
    packed: Tensor = (unsigned << torch.arange(0, 8, width)).sum(-1).to(torch.uint8)
    return packed


class OnnxGraph:
    """A graph in the making: nodes and initializers, with the weights of a model by their full names.

    Values are known by their names, which every method returns.

    Args:
        model: float, quantized or frozen.
        plan: its plan.
        activations: bits of what goes into the products: 8 or 32 (float32). With 8, onnxruntime rounds each block to
            int8, as `int8_rows` does each row; where it has no such kernel, it goes on in float32.
        min_width: narrowest codes to write, 2, 4 or 8.
    """

    def __init__(self, model: nn.Module, plan: BitPlan, activations: int = 8, min_width: int = 2) -> None:
        self.plan, self.activations, self.min_width = plan, activations, min_width
        self.quantized = quantized_weights(model)
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self._n_values = 0

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, count=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, count: int, domain: str = "", **attributes: Any) -> list[str]:
        """A node with `count` outputs."""
        outputs = [self.value(kind) for _ in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs

    def value(self, kind: str) -> str:
        """A name that no value has yet."""
        self._n_values += 1
        return f"{kind}_{self._n_values}"

    def constant(self, value: Tensor | float | Sequence[int], name: str = "constant") -> str:
        """An initializer: a tensor, one float32 number, or int64 numbers (one or a list)."""
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.float32 if isinstance(value, float) else torch.int64)
        array = value.detach().cpu().contiguous().numpy()
        if name in self.initializers or name == "constant":
            name = self.value(name)
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def parameter(self, name: str) -> str:
        """A float parameter."""
        return name if name in self.initializers else self.constant(self.parameters[name], name)

    def linear(self, x: str, name: str, bias: Tensor | None = None) -> str:
        """x @ weight.T + bias, (..., K) to (..., N), for the matrix `name` (N, K)."""
        if name not in self.quantized:
            product = self.op("MatMul", x, self.constant(self.parameters[name].flatten(1).t(), name))
            return product if bias is None else self.op("Add", product, self.constant(bias, f"{name}.bias"))
        parts = self._parts(name)
        products = [self._product(x, name, part, bias) for part in parts]
        product = products[0]
        if len(parts) > 1:
            places = self.constant(_places(parts), f"{name}.places")
            product = self.op("Gather", self.op("Concat", *products, axis=-1), places, axis=-1)
        offset = self._offset(name)
        if offset is None:
            return product
        groups, last = offset.shape[1], self.constant([-1])
        pieces = self.ops("Split", x, count=groups, axis=-1, num_outputs=groups)
        sums = self.op("Concat", *(self.op("ReduceSum", piece, last) for piece in pieces), axis=-1)
        return self.op("Add", product, self.op("MatMul", sums, self.constant(offset.t(), f"{name}.offset")))

    def embedding(self, units: str, name: str) -> str:
        """The rows `units` (...) int64 of the matrix `name` (V, K): (..., K)."""
        if name not in self.quantized:
            return self.op("Gather", self.parameter(name), units)
        parts, offset = self._parts(name), self._offset(name)
        rows = self._gather(units, name, parts[0]) if len(parts) == 1 else self._gather_parts(units, name, parts)
        if offset is None:
            return rows
        columns = parts[0].codes.shape[1]
        group = self.constant(torch.arange(columns) // (columns // offset.shape[1]), f"{name}.groups")
        found = self.op("Gather", self.constant(offset, f"{name}.offset"), units)
        return self.op("Add", rows, self.op("Gather", found, group, axis=-1))

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Within, nodes go to the list that it yields, for a graph inside this one; initializers stay outside."""
        outer, self.nodes = self.nodes, []
        yield self.nodes
        self.nodes = outer

    def to_model(self, inputs: Sequence[Any], outputs: Sequence[Any], metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The checked model.

        Args:
            inputs, outputs: what `onnx.helper.make_tensor_value_info` gives.
            metadata: texts that the file carries.
        Raises:
            BadInput: more than a file of this format holds.
        """
        import mpq

        n_bytes = sum(len(tensor.raw_data) for tensor in self.initializers.values())
        if n_bytes > _LARGEST:
            raise BadInput(f"the weights take {n_bytes} bytes; an ONNX file holds 2 GiB: quantize with fewer bits")
        graph = helper.make_graph(self.nodes, "mpq", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mpq", producer_version=mpq.__version__
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model

    def _parts(self, name: str) -> list[_Part]:
        """The rows of a matrix by the width of their codes, narrowest first."""
        held, precision = self.quantized[name], self.plan.precision(name)
        assert precision is not None
        n_rows, columns = held.codes.shape
        group = columns // held.scale.shape[1]
        if group < columns and group % 16:
            raise BadInput(f"{name}: a scale for every {group} columns; onnxruntime takes multiples of 16")
        bits = [precision.n_bits] * n_rows if isinstance(precision.n_bits, int) else precision.n_bits
        tops = {n_bits: levels(n_bits, precision.kind)[-1] for n_bits in set(bits)}
        widths = [w for w in WIDTHS if w >= self.min_width]
        row_widths = torch.tensor([next(w for w in widths if tops[n_bits] < 2 ** (w - 1)) for n_bits in bits])
        scale = held.scale.expand(n_rows, -1)
        chosen = {width: (row_widths == width).nonzero().squeeze(1) for width in widths}
        return [_Part(w, rows, held.codes[rows], scale[rows]) for w, rows in chosen.items() if len(rows)]

    def _offset(self, name: str) -> Tensor | None:
        """What an asymmetric table adds to the rows of a matrix, (rows, groups)."""
        held = self.quantized[name]
        return None if held.offset is None else held.offset.float().expand(len(held.codes), -1)

    def _product(self, x: str, name: str, part: _Part, bias: Tensor | None) -> str:
        """MatMulNBits: (..., K) to (..., R)."""
        n_rows, columns = part.codes.shape
        size = product_block(part.width, columns, columns // part.scale.shape[1])
        codes = pack_unsigned(F.pad(part.codes, (0, -columns % size)), part.width).view(
            n_rows, -1, size * part.width // 8
        )
        inputs = [x, *self._held(name, part, codes, size)]
        if bias is not None:
            inputs += ["", "", self.constant(bias[part.rows], f"{name}.bias{part.width}")]
        settings = {"K": columns, "N": n_rows, "bits": part.width, "block_size": size}
        accuracy = _ACCURACY[self.activations]
        return self.op("MatMulNBits", *inputs, domain=MICROSOFT, accuracy_level=accuracy, **settings)

    def _gather_parts(self, units: str, name: str, parts: Sequence[_Part]) -> str:
        """Rows of a table for each width, between two of zeros that stand for the rows of others; the sum is exact."""
        place = self.op("Gather", self.constant(_places(parts), f"{name}.places"), units)
        total, start = "", 0
        for part in parts:
            n_rows = len(part.rows)
            local = self.op("Sub", place, self.constant(start - 1))
            local = self.op("Clip", local, self.constant(0), self.constant(n_rows + 1))
            framed = part._replace(
                codes=F.pad(part.codes, (0, 0, 1, 1)), scale=F.pad(part.scale, (0, 0, 1, 1), value=1.0)
            )
            rows = self._gather(local, name, framed)
            total, start = self.op("Add", total, rows) if total else rows, start + n_rows
        return total

    def _gather(self, rows: str, name: str, part: _Part) -> str:
        """GatherBlockQuantized: (...) int64 to (..., K)."""
        columns = part.codes.shape[1]
        size = gather_block(columns, columns // part.scale.shape[1])
        filled = -columns % (8 // part.width)  # up to whole bytes
        codes, scale = self._held(name, part, pack_unsigned(F.pad(part.codes, (0, filled)), part.width), size)
        settings = {"bits": part.width, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
        found = self.op("GatherBlockQuantized", codes, rows, scale, domain=MICROSOFT, **settings)
        if not filled:
            return found
        return self.op("Slice", found, self.constant([0]), self.constant([columns]), self.constant([-1]))

    def _held(self, name: str, part: _Part, codes: Tensor, size: int) -> tuple[str, str]:
        """Initializers with packed codes and with the scales of their blocks of `size` columns, (R, blocks) float32."""
        blocks, groups = -(-part.codes.shape[1] // size), part.scale.shape[1]
        scale = part.scale.float().repeat_interleave(blocks // groups, 1)
        return self.constant(codes, f"{name}.codes{part.width}"), self.constant(scale, f"{name}.scale{part.width}")


def _places(parts: Sequence[_Part]) -> Tensor:
    """(rows,) int64: where each row of a matrix stands when its parts are put one after the other."""
    return torch.cat([part.rows for part in parts]).argsort()
