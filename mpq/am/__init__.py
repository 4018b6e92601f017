"""Acoustic models."""

from mpq.am.model import load_am, save_am
from mpq.am.tdnn import SUBSAMPLING, Tdnn, TdnnConfig

__all__ = ["SUBSAMPLING", "Tdnn", "TdnnConfig", "load_am", "save_am"]
