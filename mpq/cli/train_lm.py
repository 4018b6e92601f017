"""Train a language model: LSTM or Transformer, over sentencepiece units or words.

Reads   text, one sentence a line (.gz allowed), to train on and held out; the units, a sentencepiece model or a
        word list (words.txt); a YAML file with the size of the model and how to train it.
Writes  OUT/model.mpq, the epoch with the lowest loss on the held-out text, and a copy of the units beside it;
        OUT/metrics.jsonl, OUT/tensorboard and OUT/checkpoint.pt. A killed run continues at its last finished epoch;
        while one trains, another one with the same OUT is refused.

Perplexity is per word, </s> counted as one, out-of-vocabulary words left out (as SRILM counts), whatever the units.

Example:
  mpq train-lm --config conf/lstm.yaml --train data/lm/train.txt --dev data/lm/dev.txt \\
    --tokenizer exp/lang/tokenizer.model --out exp/lm/lstm
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq train-lm``."""
    from mpq.train.lm import LmTrainConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--train", "--text", type=str, required=True, metavar="TEXT", help="training text")
    parser.add_argument("--dev", type=str, required=True, metavar="TEXT", help="held-out text")
    parser.add_argument("--tokenizer", type=str, required=True, metavar="FILE", help="tokenizer.model or words.txt")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--cache", type=str, metavar="DIR", help="for tokenized text (default: DIR of --train/units)")
    parser.add_class_arguments(LmTrainConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq train-lm``."""
    import time
    from pathlib import Path

    from mpq.data.lmtext import load_tokenizer
    from mpq.io import check_writable
    from mpq.lm import save_lm
    from mpq.lm.files import check_units_copy
    from mpq.train.lm import LmTexts, LmTrainConfig, train_lm

    check_writable(Path(args.out, "model.mpq"))
    started = time.monotonic(), time.process_time()
    config = make_config(LmTrainConfig, args)
    tokenizer = load_tokenizer(args.tokenizer)
    check_units_copy(tokenizer, Path(args.out, "model.mpq"))
    texts = LmTexts.open(args.train, args.dev, tokenizer, args.cache or Path(args.train).parent / "units")
    model, result = train_lm(config, texts, args.out)
    path = Path(args.out) / "model.mpq"
    perplexity = round(result.best["perplexity"], 2)
    save_lm(path, model, tokenizer, extra={"perplexity": perplexity, "epoch": result.best_epoch})
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    minutes, cpu = (time.monotonic() - started[0]) / 60, (time.process_time() - started[1]) / 60
    print(
        f"train-lm: {config.model.arch}, {n_parameters / 1e6:.2f} M parameters, epoch {result.best_epoch} of "
        f"{config.fit.epochs}, perplexity {perplexity} ({texts.dev.n_oov} OOV of {texts.dev.n_words} words left out), "
        f"{minutes:.1f} min ({cpu:.1f} CPU min): {path}"
    )
