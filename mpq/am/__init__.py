"""Acoustic models."""

from mpq.am.tdnn import Tdnn, TdnnConfig

__all__ = ["Tdnn", "TdnnConfig"]
