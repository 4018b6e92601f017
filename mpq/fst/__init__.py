"""Graphs, lattice-free MMI, decoding and lattices.

Modules: `fsa` and `phone_lm` (acceptors for training), `lfmmi` (path sums and the loss), `graph` (decoding
graphs by kaldifst), `decoder` (lattices by kaldi-decoder or k2), `paths` (word lattices and n-best lists),
`backend` (native or k2, and where k2 is), `k2` and `k2_server` (its adapter, here or in a process of `.venv-k2`).
"""
