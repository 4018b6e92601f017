"""Train an acoustic model: CNN-TDNN, by CTC and then lattice-free MMI.

Reads   the features of `mpq features` (training and held-out), the lexicon and phones of `mpq lang`, a YAML file.
Writes  OUT/model.mpq, the epoch with the lowest LF-MMI loss on the held-out features; OUT/metrics.jsonl,
        OUT/tensorboard and OUT/checkpoint.pt. A killed run continues at its last finished epoch.

Example:
  mpq train-am --config conf/am.yaml --train exp/features/train/cuts.jsonl.gz \\
    --dev exp/features/dev/cuts.jsonl.gz --lang exp/lang --out exp/am
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of ``mpq train-am``."""
    from mpq.train.am import AmConfig

    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with any of these options")
    parser.add_argument("--train", type=str, required=True, metavar="MANIFEST", help="training features")
    parser.add_argument("--dev", type=str, required=True, metavar="MANIFEST", help="held-out features")
    parser.add_argument("--lang", type=str, required=True, metavar="DIR", help="folder made by mpq lang")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to write")
    parser.add_class_arguments(AmConfig)


def run(args: Namespace) -> None:
    """Runs ``mpq train-am``."""
    import time
    from pathlib import Path

    from mpq.am import Tdnn, TdnnConfig, save_am
    from mpq.data.batches import FeatureSet
    from mpq.io import check_writable
    from mpq.lang.lexicon import read_lexicon
    from mpq.train.am import AmConfig, AmTask, run_key
    from mpq.train.loop import FitConfig, fit

    check_writable(Path(args.out, "model.mpq"))
    started = time.monotonic(), time.process_time()
    options = {name: args[name] for name in AmConfig.__dataclass_fields__}
    options["model"], options["fit"] = TdnnConfig(**args.model.as_dict()), FitConfig(**args.fit.as_dict())
    config = AmConfig(**options)
    lexicon = read_lexicon(Path(args.lang))
    task = AmTask(config, FeatureSet(args.train), FeatureSet(args.dev), lexicon)
    result = fit(task, config.fit, args.out, key=run_key(config, [args.train, args.dev], lexicon))
    assert isinstance(task.model, Tdnn)
    figures = {"dev_loss": round(result.best["loss"], 4), "epoch": result.best_epoch}
    path = Path(args.out) / "model.mpq"
    save_am(path, task.model, lexicon.phones, figures)
    minutes, cpu = (time.monotonic() - started[0]) / 60, (time.process_time() - started[1]) / 60
    print(
        f"train-am: epoch {result.best_epoch} of {config.fit.epochs}, LF-MMI loss {figures['dev_loss']} per frame, "
        f"{minutes:.1f} min ({cpu:.1f} CPU min): {path}"
    )
