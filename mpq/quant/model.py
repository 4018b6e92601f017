"""Whole models: which weights can be quantized, swapping layers for quantized ones, freezing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from mpq.quant.attention import QuantAttention
from mpq.quant.conv import QuantConv1d, QuantConv2d
from mpq.quant.layers import Projector, QuantEmbedding, QuantLinear, QuantLSTM, QuantModule, weight_names
from mpq.quant.pack import pack_in_memory
from mpq.quant.plan import BitPlan
from mpq.quant.table import Quantized, matrix_shape

Model = TypeVar("Model", bound=nn.Module)


def quantizable(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Full names and shapes (rows, columns) of the weights that can be quantized.

    They are those of Linear, Embedding, LSTM and MultiheadAttention, and of Conv1d and Conv2d, a row for each output
    channel. A weight that several layers share is listed once, by its first name, as ``named_parameters`` does.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer, local in _weights(model):
        if isinstance(layer, QuantModule):
            shapes[name] = layer.weight_shapes[local]
        else:
            shapes[name] = matrix_shape(layer.get_parameter(local))
    return shapes


def uniform_plan(model: nn.Module, n_bits: int, **settings: Any) -> BitPlan:
    """The plan with the same bits everywhere (32: all stay float); settings are fields of BitPlan."""
    bits = dict.fromkeys(quantizable(model), n_bits)
    return BitPlan.from_dict({"bits": bits, "budget": float(n_bits), **settings})


def quantize_model(model: Model, plan: BitPlan) -> Model:
    """Swap, in place, every layer that has a weight below 32 bits for its quantized form.

    The Parameter objects stay, so a tie made before the swap still holds; the scales become parameters beside them, so
    an optimizer is made after the swap. A model that is
    quantized already, but not frozen, takes the new plan.

    Raises:
        BadInput: the plan does not fit the model.
    """
    plan.check(quantizable(model))
    projectors: dict[str, Projector] = {}  # by full name: tied layers share one
    own: dict[nn.Module, dict[str, Projector]] = {}
    for name, layer, local in _weights(model):
        precision = plan.precision(name)
        layer_projectors = own.setdefault(layer, {})
        if precision is not None:
            if name not in projectors:
                projectors[name] = Projector(precision, layer.get_parameter(local))
            layer_projectors[local] = projectors[name]
    if model in own:
        raise ValueError("quantize_model swaps layers inside a model; put a single layer into nn.Sequential")
    for parent in reversed(list(model.modules())):  # a layer's own layers before it
        for child_name, child in list(parent.named_children()):
            if own.get(child) or isinstance(child, QuantModule) or _holds_quantized(child):
                setattr(parent, child_name, _quant_layer(child, own[child], plan.a_bits))
    return model


_FORMS: list[tuple[tuple[type[nn.Module], ...], type[QuantModule]]] = [
    ((nn.Linear,), QuantLinear),
    ((nn.Embedding,), QuantEmbedding),
    ((nn.LSTM, QuantLSTM), QuantLSTM),
    ((nn.Conv1d,), QuantConv1d),
    ((nn.Conv2d,), QuantConv2d),
    ((nn.MultiheadAttention, QuantAttention), QuantAttention),
]


def _quant_layer(layer: nn.Module, projectors: Mapping[str, Projector], a_bits: int) -> nn.Module:
    for kinds, form in _FORMS:
        if isinstance(layer, kinds):
            return form(layer, projectors, a_bits)
    raise ValueError(f"{type(layer).__name__} has no quantized form")


def _holds_quantized(layer: nn.Module) -> bool:
    """Whether it is float attention around a quantized layer, whose weight it would take without its arithmetic."""
    return isinstance(layer, nn.MultiheadAttention) and isinstance(layer.out_proj, QuantModule)


def quantized_weights(model: nn.Module) -> dict[str, Quantized]:
    """Codes and scale, as they stand now, of every quantized weight of a model, by full name."""
    return {
        name: layer.quantized(local)
        for name, layer, local in _weights(model)
        if isinstance(layer, QuantModule) and local in layer.projectors
    }


def freeze(
    model: Model, weights: Mapping[str, Quantized] | Callable[[str], Quantized] | None = None, packed: bool = False
) -> Model:
    """Replace, in place, the latent float weights by their codes, for serving.

    Args:
        weights: codes and scales by full name, as a table or as a function, which is called once for each; none: the
            latent weights as they round now.
        packed: keep the codes tightly packed in memory and unpack them at each use; else int8, one byte a
            weight.
    """
    weights = quantized_weights(model) if weights is None else weights
    find = weights.__getitem__ if isinstance(weights, Mapping) else weights
    held: dict[str, Quantized] = {}  # tied layers hold the same tensors
    for name, layer, local in list(_weights(model)):
        if not isinstance(layer, QuantModule) or local not in layer.projectors or layer.is_frozen(local):
            continue
        if name not in held:
            found = find(name)
            codes = pack_in_memory(found.codes, layer.projectors[local].precision) if packed else found.codes
            held[name] = found._replace(codes=codes)
        layer.hold_codes(local, held[name])
    return model


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(full name, layer, name in it) of each quantizable weight; tied ones come under the first's name."""
    names: dict[int, str] = {}
    for prefix, layer in model.named_modules():
        for local in weight_names(layer):
            frozen = isinstance(layer, QuantModule) and layer.is_frozen(local)
            tensor = layer.get_buffer(f"{local}_codes") if frozen else layer.get_parameter(local)
            name = f"{prefix}.{local}" if prefix else local
            yield names.setdefault(id(tensor), name), layer, local
