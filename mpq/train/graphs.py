"""The graphs of lattice-free MMI: a denominator, and numerators that are part of it."""

from __future__ import annotations

from collections.abc import Iterable

from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.phone_lm import PhoneLmConfig, PhoneNgram, apply_phone_ngram, estimate_phone_ngram
from mpq.fst.units import Units
from mpq.lang.lexicon import Lexicon


def phone_model(texts: Iterable[str], lexicon: Lexicon, config: PhoneLmConfig) -> PhoneNgram:
    """Phone n-gram model of transcripts, each word by its first pronunciation.

    If it is not smooth, what is scored by it must be among the texts: anything else may have no path in it.
    """
    sentences = [[p for word in text.split() for p in lexicon.pronunciations(word)[0]] for text in texts]
    order, histories, smooth = config.phone_order, config.phone_histories, config.phone_smooth
    return estimate_phone_ngram(sentences, len(lexicon.phones), order, histories, smooth)


class PhoneGraphs:
    """A denominator, and numerators of transcripts, weighted by the same phone n-gram model.

    Attributes:
        phone_lm: the model.
        denominator: frame-level acceptor of everything that can be said.

    Args:
        phone_lm: a model of the phones of `lexicon`.
        lexicon: pronunciations.
        units: what the acoustic model tells apart.
    """

    def __init__(self, phone_lm: PhoneNgram, lexicon: Lexicon, units: Units) -> None:
        self.phone_lm = phone_lm
        self.denominator = ctc_graph(units.expand(phone_lm.fsa))
        self._lexicon, self._units = lexicon, units
        self._numerators: dict[str, Fsa] = {}

    def numerator(self, text: str) -> Fsa:
        """Frame-level acceptor of all pronunciations of `text` that the phone n-gram model knows, with its weights."""
        if text not in self._numerators:
            phones = pronunciation_graph([self._lexicon.pronunciations(word) for word in text.split()])
            self._numerators[text] = ctc_graph(self._units.expand(apply_phone_ngram(phones, self.phone_lm)))
        return self._numerators[text]
