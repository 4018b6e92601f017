"""N-gram language models in ARPA files: reading, scoring, perplexity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from mpq.io import BadInput, PathLike, read_lines

BOS, EOS = "<s>", "</s>"
UNKNOWN = ("<unk>", "<UNK>")  # how models name all words that they do not have
History = tuple[str, ...]


class NgramLm:
    """Back-off n-gram model; scores are natural logarithms.

    Attributes:
        order: largest n.
        log_prob: score of each listed n-gram given its first n - 1 words.
        backoff: score of leaving a history for its last n - 2 words; 0 where not listed.
        words: all words that can be scored, without `<s>` and `</s>`.
        unknown: the one of them that stands for words that the model does not have, if there is one.
    """

    def __init__(self, order: int, log_prob: dict[History, float], backoff: dict[History, float]) -> None:
        self.order, self.log_prob, self.backoff = order, log_prob, backoff
        self.words = {ngram[0] for ngram in log_prob if len(ngram) == 1} - {BOS, EOS}
        self.unknown = find_unknown(self.words)

    @property
    def start(self) -> History:
        """History at the beginning of a sentence."""
        return self._shorten((BOS,))

    def step(self, history: History, word: str) -> tuple[float, History]:
        """Score of ``word`` after ``history``, and the history that follows.

        Histories are the longest word sequences that can change a later score, so that equal histories
        mean equal futures.  A word that the model does not have is its ``<unk>``.

        Raises:
            BadInput: the word is not in the model, nor is ``<unk>``.
        """
        score, shorter = 0.0, history
        while (found := self.log_prob.get((*shorter, word))) is None:
            if not shorter:
                return self.step(history, stand_in(word, self.words, self.unknown))
            score += self.backoff.get(shorter, 0.0)
            shorter = shorter[1:]
        return score + found, self._shorten((*shorter, word))

    def _shorten(self, history: History) -> History:
        history = history[max(0, len(history) - self.order + 1) :]
        while history and history not in self.backoff:
            history = history[1:]
        return history

    def score(self, words: Sequence[str]) -> float:
        """Score of a whole sentence, its end included."""
        history, total = self.start, 0.0
        for word in (*words, EOS):
            score, history = self.step(history, word)
            total += score
        return total


def find_unknown(words: Container[str]) -> str | None:
    """The word of a model that stands for all words that it does not have, if there is one."""
    return next((word for word in UNKNOWN if word in words), None)


def stand_in(word: str, words: set[str], unknown: str | None) -> str:
    """A word as a model of `words` has it: itself, or `unknown`.

    Raises:
        BadInput: neither is in the model.
    """
    if word in words:
        return word
    if unknown is None:
        raise BadInput(
            f"word {word!r} is not in the n-gram model of {len(words)} words, nor is {UNKNOWN[0]}; "
            "train it on text that holds the word"
        )
    return unknown


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        log_prob: natural-log score of all words in the model, and of the sentence ends.
        sentences, words, oov: counts; ``words`` includes ``oov``, the words that the model does not have.
    """

    log_prob: float
    sentences: int
    words: int
    oov: int

    @property
    def ppl(self) -> float:
        """Perplexity per word, sentence ends counted as words, words outside the model left out."""
        scored = self.words - self.oov + self.sentences
        return math.exp(-self.log_prob / scored) if scored else math.inf

    def __str__(self) -> str:
        return (
            f"perplexity {self.ppl:.2f} on {self.sentences} sentences, {self.words} words, {self.oov} outside the model"
        )


def measure_perplexity(model: NgramLm, sentences: Iterable[Sequence[str]]) -> Perplexity:
    """Perplexity of a text; after a word that the model does not have, the history is empty."""
    total, n_sentences, n_words, oov = 0.0, 0, 0, 0
    for sentence in sentences:
        n_sentences += 1
        history = model.start
        for word in (*sentence, EOS):
            n_words += word != EOS
            if word != EOS and word not in model.words:
                oov += 1
                history = ()
                continue
            score, history = model.step(history, word)
            total += score
    return Perplexity(total, n_sentences, n_words, oov)


def read_arpa(path: PathLike, keep: Container[History] | None = None) -> NgramLm:
    """Read an ARPA file, gzip by suffix.

    Args:
        path: the file.
        keep: n-grams of two and more words that are wanted; none: all. Sentences whose n-grams are all wanted have
            the scores of the whole model.

    Raises:
        BadInput: as `arpa_entries`.
    """
    log_prob: dict[History, float] = {}
    backoff: dict[History, float] = {}
    order = 1
    for ngram, value, weight in arpa_entries(path):
        order = max(order, len(ngram))
        if keep is None or len(ngram) == 1 or ngram in keep:
            log_prob[ngram] = value
            if weight is not None:
                backoff[ngram] = weight
    return NgramLm(order, log_prob, backoff)


def read_vocabulary(path: PathLike) -> tuple[int, set[str]]:
    """The largest n that the header of an ARPA file announces, and its words without `<s>` and `</s>`.

    Raises:
        BadInput: as `arpa_entries`, of what stands before the first 2-gram.
    """
    order = _largest_order(path)
    unigrams = takewhile(lambda entry: len(entry[0]) == 1, arpa_entries(path))
    return order, {ngram[0] for ngram, _, _ in unigrams} - {BOS, EOS}


def _largest_order(path: PathLike) -> int:
    """The largest n of the header."""
    orders = [0]
    for number, raw in read_lines(path):
        line = raw.strip()
        if line.startswith("ngram "):
            orders.append(_announced(line, f"{path}:{number}")[0])
        elif line and line != "\\data\\":
            break
    if max(orders) == 0:
        raise BadInput(f"{path}: no \\data\\ with the numbers of n-grams; expected an ARPA model")
    return max(orders)


def arpa_entries(path: PathLike) -> Iterator[tuple[History, float, float | None]]:
    """Yield the n-grams of an ARPA file (gzip by suffix), short ones first.

    Yields:
        The words, their natural-log score, and the natural-log back-off weight or None.

    Raises:
        BadInput: a line that does not fit, counts that differ from the header, or no end mark; the
            message names file and line.
    """
    announced: dict[int, int] = {}
    found: Counter[int] = Counter()
    number, read_order, ended, has_end = 0, -1, False, False
    for number, raw in read_lines(path):
        line = raw.strip()
        if not line or ended:
            continue
        if line == "\\data\\":
            read_order = 0
        elif line.startswith("\\") and line.endswith("-grams:") and line[1:-7].isdigit():
            read_order = int(line[1:-7])
        elif line == "\\end\\":
            ended = True
        elif read_order == 0:
            announced.update([_announced(line, f"{path}:{number}")])
        elif read_order > 0:
            entry = _read_entry(line, read_order, f"{path}:{number}")
            found[read_order] += 1
            has_end = has_end or entry[0] == (EOS,)
            yield entry
    if not ended or not announced:
        raise BadInput(f"{path}:{number}: expected \\data\\ ... \\end\\; the file is no ARPA model or is cut off")
    for n, expected in announced.items():
        if found[n] != expected:
            raise BadInput(f"{path}: {found[n]} {n}-grams, the header says {expected}; the file is damaged")
    if not has_end:
        raise BadInput(f"{path}: no {EOS} among the 1-grams; sentences could never end")


def _announced(line: str, where: str) -> tuple[int, int]:
    """Order and number of n-grams of a header line `ngram 2=138928`."""
    fields = line.removeprefix("ngram ").split("=")
    try:
        order, count = (int(field) for field in fields)
    except ValueError:
        raise BadInput(f"{where}: found {line!r}; expected 'ngram N=COUNT'") from None
    return order, count


def _read_entry(line: str, order: int, where: str) -> tuple[History, float, float | None]:
    """One n-gram: `log10 word ... [log10 backoff]`."""
    fields = line.split()
    try:
        ngram = tuple(fields[1 : order + 1])
        if len(ngram) != order or len(fields) > order + 2:
            raise ValueError
        weight = float(fields[-1]) * math.log(10) if len(fields) == order + 2 else None
        return ngram, float(fields[0]) * math.log(10), weight
    except ValueError:
        raise BadInput(
            f"{where}: found {line[:80]!r}; expected a log10 probability, {order} words and "
            "at most one log10 back-off weight"
        ) from None
