"""Write a model as an ONNX file with low-bit operators, for onnxruntime.

Reads   a packed or float model from `mpq quantize`, `mpq train-lm` (its units beside it) or `mpq train-am`.
Writes  OUT.onnx, and a copy of a language model's units beside it. Weights of up to 2, 4 and 8 bits become MatMulNBits
        and GatherBlockQuantized (com.microsoft) with codes of 2, 4 and 8 bits: the same weights exactly; rows with bits
        of their own are sorted by width, the offsets of asymmetric tables are added. Float weights become MatMul and
        Gather. Metadata: architecture, config, bit_plan, and what follows.
        Language models. Input: units (batch, time) int64, <s> first, padded on the right with any unit. Output:
        log_probs (batch, time, number of units), natural logarithms. An LSTM's recurrence is a Scan. Metadata:
        vocab_hash, bos, eos, unk.
        Acoustic models (CNN-TDNN, CNN-TDNN-F, Conformer, wav2vec 2.0, HuBERT). Inputs: features (batch, time, bins), as
        `mpq features` writes them, or the samples of frames of 10 ms (batch, time, 160); lengths (batch,) int64, real
        frames; ivectors (batch, periods, dimension), if the model has them. Outputs: log_probs (batch, out_time,
        units), unit 0 the blank; out_lengths (batch,) int64. Normalization by utterance is inside; where the metadata
        `normalization` says "speaker", features come normalized. Other metadata: units. Convolutions become
        MatMulNBits of patches (im2col), those of channel groups (depthwise, positional) a float Conv whose weights
        GatherBlockQuantized unpacks when the file is loaded.

--activations 8 has onnxruntime round the products' inputs to int8 (accuracy_level 4) as mpq does, though with a scale
for each block of up to 256 columns where mpq has one a row: scores are close to mpq's, not equal. 32 is float32: the
scores of the same weights without that rounding, slower for codes of 2 and 8 bits. Before the file is written, the
installed onnxruntime computes a few sentences, or two utterances of noise, with it. Codes of 2 bits run in onnxruntime
1.31 and not in 1.24; for older ones (Python 3.10 has 1.23) give --min-bits 4.

Examples:
  mpq export --model exp/quant/lstm-2/model.mpq --out lm.onnx
  mpq export --model exp/table-conformer/quant/conformer-w4a8/model.mpq --out am.onnx

Scoring a sentence with a language model, in Python:
  import numpy as np, onnxruntime, sentencepiece
  tokenizer = sentencepiece.SentencePieceProcessor(model_file="tokenizer.model")
  units = [tokenizer.bos_id(), *tokenizer.encode("so it is"), tokenizer.eos_id()]
  session = onnxruntime.InferenceSession("lm.onnx")
  (log_probs,) = session.run(None, {"units": np.array([units[:-1]])})
  print(log_probs[0, np.arange(len(units) - 1), units[1:]].sum())
"""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq export``."""
    parser.add_argument("--model", type=str, required=True, metavar="FILE", help="model.mpq, or its folder")
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help="ONNX file to write")
    parser.add_argument("--tokenizer", type=str, metavar="FILE", help="a language model's units (default: beside it)")
    parser.add_argument("--activations", type=Literal[8, 32], help="bits of activations (default: as the model's plan)")
    parser.add_argument("--min-bits", type=Literal[2, 4, 8], default=2, help="narrowest codes to write")


def run(args: Namespace) -> None:
    """Runs ``mpq export``."""
    from mpq.am import CONFIGS
    from mpq.io import BadInput, check_writable
    from mpq.quant import read_model_file
    from mpq.quant.report import describe

    check_writable(args.out, [args.model, f"{args.model}/model.mpq", args.tokenizer])
    stored = read_model_file(args.model)
    if stored.plan.a_bits == 4 and args.activations is None:
        raise BadInput(f"{args.model}: onnxruntime has no activations of 4 bits; give --activations 8 or 32")
    if stored.arch in CONFIGS:
        from mpq.am.onnx import export_am

        if args.tokenizer is not None:
            raise BadInput(f"--tokenizer: {args.model} is an acoustic model, its units are in the file; leave it out")
        what, done = "log-probabilities of noise", export_am(stored, args.out, args.activations, args.min_bits)
    else:
        from mpq.lm import load_lm
        from mpq.lm.onnx import export_lm

        lm = load_lm(args.model, args.tokenizer)
        what, done = "sentence scores", export_lm(lm, args.out, args.activations, args.min_bits)
    operators = ", ".join(f"{count} {name}" for name, count in sorted(done.operators.items())) or "no low-bit operator"
    ratio = 4 * describe(stored)["parameters"] / done.n_bytes
    print(
        f"export: {operators}; {done.n_bytes} bytes, {ratio:.2f} times smaller than float32; "
        f"onnxruntime's {what} differ from mpq's by up to {done.difference:.2%}: {args.out}"
    )
