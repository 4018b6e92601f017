"""Times of the words of known texts, by an acoustic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mpq.am.model import check_features, load_am, run_batch
from mpq.data.batches import FRAME_SHIFT, FeatureSet, batches
from mpq.fst.align import align_words
from mpq.fst.units import read_units
from mpq.io import PathLike
from mpq.lang.lexicon import read_lexicon

_MAX_FRAMES = 12_000  # padded frames of a batch

Times = list[tuple[float, float]]
"""Start and end of each word, in seconds from the beginning of the utterance."""


def align_texts(
    am: PathLike, lang: PathLike, manifest: PathLike, texts: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Times], list[str]]:
    """Times of all words of a set.

    Args:
        am: acoustic model.
        lang: folder of its lexicon.
        manifest: features of the utterances.
        texts: words of each of them.

    Returns:
        times by utterance, and the utterances that are too short for their words: there the words share the time.

    Raises:
        BadInput: a word that is not in the lexicon; features or units that are not those of the model.
    """
    lexicon = read_lexicon(lang)
    units = read_units(lang, lexicon.phones)
    model = load_am(am, units.names).eval()
    features = FeatureSet(manifest, model.normalization)
    check_features(model, features)
    frame = FRAME_SHIFT * model.subsampling
    times: dict[str, Times] = {}
    too_short = []
    for batch in batches(features, max_frames=_MAX_FRAMES):
        with torch.inference_mode():
            log_probs, lengths = run_batch(model, batch)
        for row, (utt, length) in enumerate(zip(batch.utts, lengths.tolist(), strict=True)):
            words = [lexicon.pronunciations(word) for word in texts[utt]]
            spans = align_words(log_probs[row, :length].float().cpu().numpy(), words, units)
            if spans is None:
                too_short.append(utt)
                times[utt] = share_evenly(length * frame, len(words))
            else:
                times[utt] = [(begin * frame, end * frame) for begin, end in spans]
    return times, sorted(too_short)


def share_evenly(duration: float, n_words: int) -> Times:
    """Times of words that are equally long."""
    return [(duration * number / n_words, duration * (number + 1) / n_words) for number in range(n_words)]
