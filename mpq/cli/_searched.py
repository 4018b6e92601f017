"""What `mpq search` searches: a float language model with texts, or a float acoustic model with features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from mpq.cli._options import make_config

if TYPE_CHECKING:
    from torch import nn

    from mpq.fst.phone_lm import PhoneLmConfig
    from mpq.lm import LoadedLm
    from mpq.search import SearchData

LM_ONLY = ("text", "tokenizer", "nbest", "ref", "test_nbest", "test_ref")
AM_ONLY = ("features", "lang", "test_features")
WITH_LOSS = ("hessian", "nas", "one-stage")  # methods that look at the loss, not only at predictions
TRAINING = ("nas", "one-stage")


@dataclass(frozen=True)
class Searched:
    """A float model of either kind.

    Attributes:
        kind: `language` or `acoustic`.
        model: the model.
        lm: it as it was read, if it is a language model.
        units: of an acoustic model, names of its outputs 1, 2, ...
    """

    kind: str
    model: nn.Module
    lm: LoadedLm | None = None
    units: tuple[str, ...] = ()

    def save(self, path: Path, model: nn.Module, figures: Mapping[str, Any]) -> None:
        """Writes a model of the same kind and units, in float."""
        if self.lm is not None:
            from mpq.lm import LanguageModel, save_lm

            assert isinstance(model, LanguageModel)
            save_lm(path, model, self.lm.tokenizer, extra=figures)
        else:
            from mpq.am import AcousticModel, save_am

            assert isinstance(model, AcousticModel)
            save_am(path, model, self.units, figures)


def load_searched(args: Namespace) -> Searched:
    """Reads --model, whatever it is, and sees that the other options are for its kind.

    Raises:
        BadInput: quantized already, neither kind, or options of the other kind.
    """
    from mpq.am import CONFIGS
    from mpq.am.model import load_float_am
    from mpq.cli._device import find_device
    from mpq.io import BadInput
    from mpq.lm import load_float_lm
    from mpq.quant import model_path, read_model_file

    device = find_device(args.device)
    stored = read_model_file(model_path(args.model))
    is_acoustic = stored.arch in CONFIGS
    for name in LM_ONLY if is_acoustic else AM_ONLY:
        if args[name]:
            kind, needs = ("acoustic", "--features, --dev, --lang") if is_acoustic else ("language", "--text and --dev")
            option = name.replace("_", "-")
            raise BadInput(f"--{option}: {args.model} holds a {stored.arch} {kind} model, whose data are {needs}")
    if not is_acoustic:
        lm = load_float_lm(args.model, args.tokenizer)
        return Searched("language", lm.model.to(device), lm)
    return Searched("acoustic", load_float_am(args.model).to(device), units=tuple(stored.config["phones"]))


def inputs_key(args: Namespace, searched: Searched) -> dict[str, Any]:
    """What identifies the data of a search, for the file of costs."""
    from mpq.io import sha256_file

    if searched.kind == "language":
        return {"texts": [sha256_file(path) for path in (args.text, args.dev) if path]}
    lang = [Path(args.lang, name) for name in ("lexicon.txt", "units.txt")] if args.lang else []
    files = [path for path in (args.features, args.dev, *lang) if path and Path(path).exists()]
    return {"files": [sha256_file(path) for path in files], "loss": args.loss, "phones": asdict(phone_options(args))}


def phone_options(args: Namespace) -> PhoneLmConfig:
    """Of the loss's denominator; with --lossless that of the training that follows."""
    from mpq.fst.phone_lm import PhoneLmConfig

    return make_config(PhoneLmConfig, args, "quantize_am" if args.lossless else "")


def open_data(args: Namespace, searched: Searched) -> SearchData:
    """The data that --method looks at.

    Raises:
        BadInput: an option is missing, or data are not those of the model.
    """
    from mpq.io import BadInput

    if not args.dev:
        what = "text (--dev)" if searched.kind == "language" else "features (--dev)"
        raise BadInput(f"--method {args.method} needs held-out {what}")
    if searched.lm is None:
        return _am_data(args, searched)
    from mpq.data.lmtext import open_lm_text
    from mpq.search import LmSearchData

    if args.method in TRAINING and not args.text:
        raise BadInput(f"--method {args.method} needs the training text (--text)")
    cache, tokenizer = args.cache or Path(args.dev).parent / "units", searched.lm.tokenizer
    train = open_lm_text(args.text, tokenizer, cache) if args.method in TRAINING else None
    return LmSearchData(searched.lm.model, open_lm_text(args.dev, tokenizer, cache), train)


def _am_data(args: Namespace, searched: Searched) -> SearchData:
    from mpq.am import AcousticModel
    from mpq.cli._options import am_data
    from mpq.data.batches import FeatureSet
    from mpq.io import BadInput
    from mpq.search import AmSearchData
    from mpq.train.am import AmConfig, AmTask

    model = searched.model
    assert isinstance(model, AcousticModel)
    if args.method not in WITH_LOSS:
        return AmSearchData(model, FeatureSet(args.dev, model.normalization))
    for name in ("features", "lang"):
        if not args[name]:
            raise BadInput(f"--method {args.method} looks at the model's loss: it needs --{name}")
    data = am_data(args, model, searched.units)
    config = AmConfig(model=model.config, **asdict(phone_options(args)))
    task = AmTask(config, data.train, data.dev, data.lexicon, data.units, model)
    return AmSearchData(model, data.dev, task, ctc=args.loss == "ctc")
