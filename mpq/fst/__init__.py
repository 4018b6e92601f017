"""Graphs, lattice-free MMI, decoding and lattices.

Modules: `fsa` and `phone_lm` (acceptors for training), `lfmmi` (path sums and the loss), `graph` (decoding
graphs by kaldifst), `decoder` (lattices by kaldi-decoder), `paths` (word lattices and n-best lists).
"""
