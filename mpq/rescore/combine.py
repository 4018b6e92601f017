"""The combination of scores that ranks an n-best list, and the best that any ranking could reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from kaldialign import edit_distance

from mpq.io import BadInput, Hyp, NBest, PathLike, finite, read_yaml, split_words, write_yaml
from mpq.score.align import align
from mpq.score.wer import WerResult, check_ids, count, total
from mpq.score.writing import warn_writing


@dataclass(frozen=True, slots=True)
class Weights:
    """score = am + ngram_weight * lm + lm_weight * nnlm + word_bonus * words, all natural logarithms.

    Attributes:
        ngram_weight: of the first pass's language-model score; the inverse of an acoustic scale.
        lm_weight: of the neural language model's score.
        word_bonus: for every word; negative values punish insertions.
    """

    ngram_weight: float = 1.0
    lm_weight: float = 0.0
    word_bonus: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not math.isfinite(value):
                raise BadInput(f"{name}: {value} is not a finite number")

    @classmethod
    def read(cls, path: PathLike) -> Weights:
        """Reads the YAML that `write` wrote (or a person: a weight left out has its default)."""
        names = [field.name for field in fields(cls)]
        values: dict[str, float] = {}
        for name, value in read_yaml(path).items():
            if name not in names:
                raise BadInput(f"{path}: unknown key '{name}'; expected {', '.join(names)}")
            number = finite(value)
            if number is None:
                raise BadInput(f"{path}: {name} is {value!r:.60}; expected a finite number")
            values[name] = number
        if not values:
            raise BadInput(f"{path}: holds no weights; expected {', '.join(names)}, as --weights-out writes them")
        return cls(**values)

    def write(self, path: PathLike) -> None:
        """Writes the weights as YAML."""
        write_yaml(path, asdict(self))

    def __str__(self) -> str:
        return f"ngram_weight {self.ngram_weight:g}, lm_weight {self.lm_weight:g}, word_bonus {self.word_bonus:g}"


def n_words(text: str) -> int:
    """Words of a hypothesis."""
    return len(split_words(text))


def rerank(nbest: NBest, weights: Weights) -> NBest:
    """The list with `score` filled in, best first; equal scores keep their order.

    Raises:
        BadInput: if a neural LM score is needed and not there.
    """
    if not nbest.hyps:
        raise BadInput(f"utterance '{nbest.utt}': the n-best list is empty; expected at least one hypothesis")
    scored = [replace(hyp, score=_score(nbest.utt, hyp, weights)) for hyp in nbest.hyps]
    return NBest(nbest.utt, sorted(scored, key=lambda hyp: -(hyp.score or 0.0)))


def _score(utt: str, hyp: Hyp, weights: Weights) -> float:
    score = hyp.am + weights.ngram_weight * hyp.lm + weights.word_bonus * n_words(hyp.text)
    if not weights.lm_weight:
        return score
    if hyp.nnlm is None:
        raise BadInput(f"utterance '{utt}': lm_weight is {weights.lm_weight:g} but a hypothesis has no nnlm; give --lm")
    return score + weights.lm_weight * hyp.nnlm


def best_texts(nbests: Iterable[NBest]) -> dict[str, list[str]]:
    """First hypothesis of every utterance, as Kaldi text."""
    return {nbest.utt: split_words(nbest.hyps[0].text) for nbest in nbests}


def check_refs(
    nbests: Iterable[NBest], refs: Mapping[str, Sequence[str]], nbest_name: object, ref_name: object
) -> None:
    """Refuses references of other utterances than the lists', and warns of first hypotheses in another writing."""
    firsts = best_texts(nbests)
    check_ids(refs, firsts, ref_name, nbest_name)
    warn_writing(refs, firsts, ref_name, nbest_name)


def error_count(ref: Sequence[str], text: str) -> int:
    """Word errors of one hypothesis, by sclite's costs."""
    return int(edit_distance(ref, split_words(text), sclite_mode=True)["total"])


def oracle(nbests: Iterable[NBest], refs: Mapping[str, Sequence[str]]) -> WerResult:
    """WER of the hypotheses with the fewest errors: what perfect rescoring would reach."""
    lists = {nbest.utt: nbest for nbest in nbests}
    check_ids(refs, lists, hyp_name="the n-best file")
    best = {utt: min(lists[utt].hyps, key=lambda hyp: error_count(words, hyp.text)).text for utt, words in refs.items()}
    return total(count(align(words, split_words(best[utt]))) for utt, words in refs.items())
