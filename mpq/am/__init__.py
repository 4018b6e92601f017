"""Acoustic models."""

from mpq.am.base import AcousticModel
from mpq.am.conformer import ConformerConfig, ConformerModel
from mpq.am.model import CONFIGS, ModelConfig, load_am, make_am, save_am
from mpq.am.tdnn import Tdnn, TdnnConfig
from mpq.am.tdnnf import Tdnnf, TdnnfConfig

__all__ = [
    "CONFIGS",
    "AcousticModel",
    "ConformerConfig",
    "ConformerModel",
    "ModelConfig",
    "Tdnn",
    "TdnnConfig",
    "Tdnnf",
    "TdnnfConfig",
    "load_am",
    "make_am",
    "save_am",
]
