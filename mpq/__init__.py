"""Speech recognition with low-bit language models: bit search, quantized training, packing, rescoring.

Importing this package imports nothing else; the work is done in its modules, which import only from those above
them: io, score, quant, data, lang, fst, lm, am, train, search, rescore, cli.
"""

__version__ = "0.1.0"
