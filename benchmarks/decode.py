"""Speed of decoding on one core: acoustic model, search, lattice and 100-best list; a JSON line for each lattice beam.

The peer is kaldi-decoder's `FasterDecoder` on the same posteriors and graph: one best path, no lattice.
`oracle_part` is the word error rate of the best hypotheses of the lists as part of that of the first ones.

    python benchmarks/decode.py exp --set dev --utts 100
    python benchmarks/decode.py exp --set test --utts 100000 --lattice-beam 8 10
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import kaldi_decoder
import kaldialign
import kaldifst
import torch

from mpq.am import load_am
from mpq.am.decode import PART, score_frames
from mpq.data.batches import FeatureSet
from mpq.fst.decoder import Decoder, DecoderConfig
from mpq.fst.graph import load_graph
from mpq.io import read_symbols
from mpq.lang.arpa import read_arpa


def main() -> None:
    """Print lines: times real time (CPU time of one thread), word errors, list sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", type=Path, help="a recipe's folder with lang, am and features")
    parser.add_argument("--set", default="dev")
    parser.add_argument("--utts", type=int, default=100)
    parser.add_argument("--beam", type=float, default=DecoderConfig.beam)
    parser.add_argument("--lattice-beam", type=float, nargs="+", default=[DecoderConfig.lattice_beam])
    parser.add_argument("--acoustic-scale", type=float, default=DecoderConfig.acoustic_scale)
    args = parser.parse_args()
    torch.set_num_threads(1)
    graph, words = load_graph(args.exp / "lang"), read_symbols(args.exp / "lang" / "words.txt")
    lm = read_arpa(args.exp / "lang" / "lm.arpa")
    model = load_am(args.exp / "am" / "model.mpq").eval()
    features = FeatureSet(args.exp / "features" / args.set / "cuts.jsonl.gz")
    step = max(1, len(features) // args.utts)
    chosen = list(range(0, len(features), step))[: args.utts]
    audio = features.lengths[chosen].sum() / 100
    for index in chosen:
        features.load(index)  # from now on they are in memory

    begin = time.process_time()
    parts = [chosen[at : at + PART] for at in range(0, len(chosen), PART)]
    outputs = dict(scored for part in parts for scored in score_frames(model, features, part))
    forward = time.process_time() - begin
    begin = time.process_time()
    peer_words = [one_best(graph, args.acoustic_scale * output, args.beam) for output in outputs.values()]
    peer = time.process_time() - begin
    texts = dict(zip(features.utts, features.texts, strict=True))
    references = [texts[utt].split() for utt in outputs]
    n_words = sum(map(len, references))
    peer_errors = sum(
        kaldialign.edit_distance(ref, [words.words[w] for w in hyp])["total"]
        for ref, hyp in zip(references, peer_words, strict=True)
    )

    for lattice_beam in args.lattice_beam:
        decoder = Decoder(graph, lm, words, DecoderConfig(args.beam, lattice_beam, args.acoustic_scale))
        begin = time.process_time()
        results = [decoder.decode(utt, output) for utt, output in outputs.items()]
        search = time.process_time() - begin
        errors = [
            [kaldialign.edit_distance(ref, hyp.text.split())["total"] for hyp in result.nbest.hyps]
            for ref, result in zip(references, results, strict=True)
        ]
        first, best = sum(e[0] for e in errors), sum(map(min, errors))
        line = {
            "benchmark": "decode",
            "utts": len(chosen),
            "audio_seconds": round(audio),
            "beam": args.beam,
            "lattice_beam": lattice_beam,
            "acoustic_scale": args.acoustic_scale,
            "times_real_time": round(audio / (forward + search)),
            "forward_times_real_time": round(audio / forward),
            "search_times_real_time": round(audio / search),
            "peer_search_times_real_time": round(audio / peer),
            "wer": round(100 * first / n_words, 2),
            "peer_wer": round(100 * peer_errors / n_words, 2),
            "oracle_wer": round(100 * best / n_words, 2),
            "oracle_part": round(best / first, 3),
            "hyps_per_utt": round(sum(map(len, errors)) / len(chosen), 1),
        }
        print(json.dumps(line), flush=True)


def one_best(graph: object, scores: object, beam: float) -> list[int]:
    """Word numbers of the best path by `FasterDecoder`."""
    decoder = kaldi_decoder.FasterDecoder(graph, kaldi_decoder.FasterDecoderOptions(beam=beam, max_active=2500))
    decoder.decode(kaldi_decoder.DecodableCtc(scores))
    _, path = decoder.get_best_path()
    found: list[int] = kaldifst.get_linear_symbol_sequence(path)[2]
    return found


if __name__ == "__main__":
    main()
