"""Quantization: tables, bit plans, quantized layers on integer arithmetic, packed model files."""

from __future__ import annotations

from mpq.quant.activation import gelu, log_sum_exp
from mpq.quant.attention import QuantAttention, attend_exactly, rotate
from mpq.quant.conv import QuantConv1d, QuantConv2d, relu_of
from mpq.quant.file import ModelFile, load_weights_into, model_path, read_model_file, save_model, without_numbers
from mpq.quant.fit import fit_scale, project
from mpq.quant.floats import FloatLinear, float_linear
from mpq.quant.integer import int_linear, int_matmul, straight_through
from mpq.quant.kernels import int8_rows
from mpq.quant.layers import QuantEmbedding, QuantLinear, QuantLSTM, QuantModule
from mpq.quant.model import freeze, quantizable, quantize_model, quantized_weights, uniform_plan
from mpq.quant.pack import pack_codes, unpack_codes
from mpq.quant.plan import BitPlan, read_plan, write_plan
from mpq.quant.table import Precision, Quantized, levels, nearest

__all__ = [
    "BitPlan",
    "FloatLinear",
    "ModelFile",
    "Precision",
    "QuantAttention",
    "QuantConv1d",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLSTM",
    "QuantLinear",
    "QuantModule",
    "Quantized",
    "attend_exactly",
    "fit_scale",
    "float_linear",
    "freeze",
    "gelu",
    "int8_rows",
    "int_linear",
    "int_matmul",
    "levels",
    "load_weights_into",
    "log_sum_exp",
    "model_path",
    "nearest",
    "pack_codes",
    "project",
    "quantizable",
    "quantize_model",
    "quantized_weights",
    "read_model_file",
    "read_plan",
    "relu_of",
    "rotate",
    "save_model",
    "straight_through",
    "uniform_plan",
    "unpack_codes",
    "without_numbers",
    "write_plan",
]
