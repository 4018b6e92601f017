"""Train an acoustic model: CNN-TDNN, CNN-TDNN-F, Conformer, wav2vec 2.0 or HuBERT, by CTC and then lattice-free MMI.

Reads   the features of `mpq features` (training and held-out; with i-vectors from `mpq ivector extract`; waveforms for
        wav2vec 2.0 and HuBERT), the lexicon, phones and units of `mpq lang`, a YAML file with model and training.
Writes  OUT/model.mpq, the epoch with the lowest loss on the held-out features; OUT/metrics.jsonl,
        OUT/tensorboard and OUT/checkpoint.pt. A killed run continues at its last finished epoch, which need not be a
        whole pass (epoch_part); while one trains, another one with the same OUT is refused.

`model` in the YAML file is a group like {arch: cnn-tdnnf, hidden: 512}; on the command line: --model.hidden 512.
Published sizes are archs too: wav2vec2-base, wav2vec2-large, wav2vec2-large-lv60k, hubert-base, hubert-large,
hubert-xlarge. With --checkpoint the sizes are the checkpoint's, and need not be given: a bundle of torchaudio.pipelines
by name (its file is taken from torch hub's cache), a file of torchaudio's format, a folder of the Hugging Face
format, or a model.mpq.

Examples:
  mpq train-am --config conf/am.yaml --train exp/features/train/cuts.jsonl.gz \\
    --dev exp/features/dev/cuts.jsonl.gz --lang exp/lang --out exp/am
  mpq train-am --config conf/am_ssl.yaml --checkpoint HUBERT_LARGE --train exp/features/train/cuts.jsonl.gz \\
    --dev exp/features/dev/cuts.jsonl.gz --lang exp/lang --out exp/am
"""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace

from mpq.cli._options import make_config


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq train-am``."""
    from mpq.am import CONFIGS
    from mpq.train.am import AmConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--train", type=str, required=True, metavar="MANIFEST", help="training features")
    parser.add_argument("--dev", type=str, required=True, metavar="MANIFEST", help="held-out features")
    parser.add_argument("--lang", type=str, required=True, metavar="DIR", help="folder made by mpq lang")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--checkpoint", type=str, metavar="NAME", help="initial weights: bundle, file or folder")
    parser.add_class_arguments(AmConfig, skip={"model"})
    options = "; ".join(f"{arch}: {', '.join(kind.__dataclass_fields__)}" for arch, kind in CONFIGS.items())
    parser.add_argument(
        "--model", type=dict[str, Any], default={}, help=f"arch and options of the model ({options}), as --model.arch"
    )


def run(args: Namespace) -> None:
    """Runs ``mpq train-am``."""
    import time
    from pathlib import Path

    import torch

    from mpq.am import save_am
    from mpq.am.checkpoint import initial_am, read_checkpoint
    from mpq.cli._options import am_config
    from mpq.data.batches import FeatureSet
    from mpq.fst.backend import check_backend
    from mpq.fst.units import read_units
    from mpq.io import check_writable, sha256_file
    from mpq.lang.lexicon import read_lexicon
    from mpq.train.am import AmConfig, AmTask, loss_name, run_key
    from mpq.train.loop import fit

    check_writable(Path(args.out, "model.mpq"))
    started = time.monotonic(), time.process_time()
    checkpoint = None if args.checkpoint is None else read_checkpoint(args.checkpoint)
    config = make_config(AmConfig, args, model=am_config(args.model, checkpoint))
    check_backend(config.fst)
    lexicon = read_lexicon(Path(args.lang))
    units = read_units(args.lang, lexicon.phones)
    train, dev = (FeatureSet(path, config.normalization) for path in (args.train, args.dev))
    acoustic, key = None, run_key(config, [args.train, args.dev], lexicon, units)
    if checkpoint is not None:
        torch.manual_seed(config.fit.seed)  # of the classifier
        acoustic = initial_am(config.model, units.names, checkpoint)
        acoustic.normalization, key["checkpoint"] = train.normalization, sha256_file(checkpoint.path)
    task = AmTask(config, train, dev, lexicon, units, acoustic)
    result = fit(task, config.fit, args.out, task.plugins, key)
    figures = {"dev_loss": round(result.best["loss"], 4), "epoch": result.best_epoch}
    path = Path(args.out) / "model.mpq"
    save_am(path, task.acoustic, units.names, figures)
    minutes, cpu = (time.monotonic() - started[0]) / 60, (time.process_time() - started[1]) / 60
    print(
        f"train-am: epoch {result.best_epoch} of {config.fit.epochs}, {loss_name(config.ctc_part)} loss "
        f"{figures['dev_loss']} per frame, {minutes:.1f} min ({cpu:.1f} CPU min): {path}"
    )
