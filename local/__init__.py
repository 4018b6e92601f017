"""What is true of one corpus only: one module per corpus, and one (`kaldi`) for speech in Kaldi's data folders.

A corpus module has a docstring whose first line is the summary that ``mpq prepare --help`` shows, and a
function ``prepare(out, *, corpus_dir, smoke, nj, seed) -> str`` that writes ``out/{train,dev,test}`` (lhotse
manifests and Kaldi text), ``out/lm/{train,dev,test}.txt`` and returns one summary line.
"""
