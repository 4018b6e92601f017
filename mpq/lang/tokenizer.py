"""Training of sentencepiece units."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import sentencepiece

from mpq.io import BadInput, PathLike, atomic_write


def train_tokenizer(sentences: Iterable[Sequence[str]], path: PathLike, size: int) -> None:
    """Train a unigram sentencepiece model; the same text gives the same bytes.

    Units 0, 1, 2 are `<unk>`, `<s>`, `</s>`.

    Args:
        sentences: training text.
        path: model to write (`tokenizer.model`).
        size: number of units; fewer if the text does not have as many.

    Raises:
        BadInput: more letters than units, or text too small.
    """
    model = io.BytesIO()
    try:
        # One thread: the number is stored in the model. The text is not normalized: words stay what they are.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(" ".join(sentence) for sentence in sentences),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            hard_vocab_limit=False,
            num_threads=1,
            shuffle_input_sentence=False,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise BadInput(
            f"{path}: sentencepiece cannot train {size} units: {' '.join(str(error).split())}; "
            "give more text or another number of units"
        ) from None
    with atomic_write(path, "wb") as file:
        file.write(model.getvalue())
