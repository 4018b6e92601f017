"""What a model file holds and what it costs, as a dictionary and as text."""

from __future__ import annotations

from math import prod
from typing import Any

from mpq.quant.file import ModelFile


def describe(model_file: ModelFile) -> dict[str, Any]:
    """Every stored byte of a model file, by layer.

    ``layers`` are the weights that can be quantized (with 32 bits: left float), ``residue`` is everything
    else that is stored as it is, ``header_bytes`` the names, shapes and metadata. ``bits_per_parameter`` and
    ``ratio`` (size in float32 over size on disk) count the whole file.
    """
    plan, tensors = model_file.plan, model_file.tensors
    layers = []
    for name, shape in model_file.shapes.items():
        bits = plan.bits[name]
        codes = tensors.get(f"{name}.codes", tensors.get(name))
        scales = [tensors[key] for key in (f"{name}.scale", f"{name}.offset") if key in tensors]
        layers.append(
            {
                "name": name,
                "shape": list(shape),
                "bits": bits if isinstance(bits, int) else sum(bits) / len(bits),
                "codes_bytes": 0 if codes is None else codes.nbytes,
                "scale_bytes": sum(scale.nbytes for scale in scales),
            }
        )
    residue: list[dict[str, Any]] = [
        {"name": name, "shape": list(tensor.shape), "bytes": tensor.nbytes}
        for name, tensor in model_file.float_tensors().items()
        if name not in model_file.shapes
    ]
    n_residue = sum(tensors[row["name"]].numel() for row in residue)
    n_parameters = sum(map(prod, model_file.shapes.values())) + n_residue
    return {
        "file": model_file.path,
        "arch": model_file.arch,
        "method": plan.method,
        "table": plan.table,
        "scale": plan.scale,
        "a_bits": plan.a_bits,
        "vocab_hash": model_file.vocab_hash,
        "layers": layers,
        "residue": residue,
        "residue_parameters": n_residue,
        "residue_bytes": sum(row["bytes"] for row in residue),
        "header_bytes": model_file.n_bytes - sum(tensor.nbytes for tensor in tensors.values()),
        "average_bits": plan.average_bits(model_file.shapes),
        "parameters": n_parameters,
        "bytes": model_file.n_bytes,
        "bits_per_parameter": 8 * model_file.n_bytes / n_parameters,
        "ratio": 4 * n_parameters / model_file.n_bytes,
    }


def kind_bits(model_file: ModelFile) -> dict[str, float]:
    """Mean bits by kind of matrix, `blocks.attention` for all `blocks.N.attention.*`; empty where all are equal."""
    plan = model_file.plan
    first, *others = plan.bits.values()
    if all(bits == first for bits in others) and isinstance(first, int):
        return {}
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in model_file.shapes.items():
        groups.setdefault(_kind(name), {})[name] = shape
    return {kind: round(plan.average_bits(shapes), 3) for kind, shapes in groups.items()}


def _kind(name: str) -> str:
    """`layers.attention` of `encoder.layers.3.attention.q.weight`; of a matrix in no list the end of its name."""
    parts = name.removesuffix(".weight").split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[-2:] if index is None else [parts[index - 1], *parts[index + 1 : index + 2]])


def render(report: dict[str, Any]) -> str:
    """The report of `describe` as a table of text, its last line a summary."""
    rows = [("layer", "shape", "bits", "codes bytes", "scale bytes")]
    for layer in report["layers"]:
        bits = f"{layer['bits']:.4g}"
        rows.append((layer["name"], _size(layer), bits, f"{layer['codes_bytes']:,}", f"{layer['scale_bytes']:,}"))
    for tensor in report["residue"]:
        rows.append((tensor["name"], _size(tensor), "float", f"{tensor['bytes']:,}", ""))
    rows.append(("(header)", "", "", f"{report['header_bytes']:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    shared_by = report["scale"] if isinstance(report["scale"], str) else f"{report['scale']} columns"
    lines = [
        f"{report['arch']}: {report['method']} plan, {report['table']} levels, one scale per {shared_by}, "
        f"{report['a_bits']}-bit activations"
    ]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    share, n_bytes = report["residue_parameters"] / report["parameters"], report["residue_bytes"]
    lines.append(
        f"float residue: {report['residue_parameters']:,} parameters ({share:.2%}) in {n_bytes:,} bytes, "
        f"{n_bytes / report['bytes']:.2%} of the file"
    )
    lines.append(
        f"{report['file']}: {report['parameters']:,} parameters in {report['bytes']:,} bytes: "
        f"{report['bits_per_parameter']:.2f} bits per parameter, {report['ratio']:.2f} times below float32"
    )
    return "\n".join(lines)


def _size(row: dict[str, Any]) -> str:
    return "x".join(map(str, row["shape"]))
