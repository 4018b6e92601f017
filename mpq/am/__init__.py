"""Acoustic models."""

from mpq.am.base import AcousticModel
from mpq.am.conformer import ConformerConfig, ConformerModel
from mpq.am.model import CONFIGS, ModelConfig, expand_preset, load_am, make_am, save_am
from mpq.am.ssl import PRESETS, HubertConfig, SslModel, Wav2Vec2Config
from mpq.am.tdnn import Tdnn, TdnnConfig
from mpq.am.tdnnf import Tdnnf, TdnnfConfig

__all__ = [
    "CONFIGS",
    "PRESETS",
    "AcousticModel",
    "ConformerConfig",
    "ConformerModel",
    "HubertConfig",
    "ModelConfig",
    "SslModel",
    "Tdnn",
    "TdnnConfig",
    "Tdnnf",
    "TdnnfConfig",
    "Wav2Vec2Config",
    "expand_preset",
    "load_am",
    "make_am",
    "save_am",
]
