"""The smallest acoustic model whose word error rate is not significantly worse than the float model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mpq.am import AcousticModel, load_am, save_am
from mpq.am.decode import decode_set
from mpq.data.batches import FeatureSet
from mpq.fst.decoder import Decoder
from mpq.io import hash_config, read_text, sha256_file, split_words
from mpq.quant import BitPlan
from mpq.rescore.lossless import Lists, LosslessSearch, Made, Rescored
from mpq.train.quant_am import AmData, QuantAmConfig, train_quantized_am


@dataclass(frozen=True)
class Decoding:
    """How sets are decoded.

    Attributes:
        nj: processes.
        key: identifies graph and options.
    """

    decoder: Decoder
    nj: int
    key: str

    def __call__(self, model: AcousticModel, features: FeatureSet, out: Path, key: object) -> Rescored:
        """The best words; `key` identifies model and features, and `out` takes what `mpq decode` writes."""
        decode_set(model, features, self.decoder, out, [self.key, key], self.nj)
        return Rescored(None, read_text(out / "hyp.txt"))


def reference(features: FeatureSet) -> Lists:
    """What was said in a set."""
    refs = {utt: split_words(text) for utt, text in zip(features.utts, features.texts, strict=True)}
    return Lists([], refs, hash_config([sha256_file(features.path), refs]))


class AmLosslessSearch(LosslessSearch):
    """Acoustic models, used to decode.

    Args:
        model: float.
        units: names of its outputs 1, 2, ...
        data: to train; what is held out is decoded to decide.
        decoding: how.
        config: how to train; `train` is `ste` or `admm`.
        folder: as of `LosslessSearch`.
        key: identifies the float model.
    """

    def __init__(
        self,
        model: AcousticModel,
        units: Sequence[str],
        data: AmData,
        decoding: Decoding,
        config: QuantAmConfig,
        train: str,
        folder: Path,
        key: str,
    ) -> None:
        parts = {"config": asdict(config), "train": train, "data": data.key, "float": key, "decoding": decoding.key}
        super().__init__(model, reference(data.dev), folder, parts)
        self.model, self.units, self.data, self.decoding = model, units, data, decoding
        self.config, self.train, self.key = config, train, key
        self.uncompressed = decoding(model, data.dev, folder / "float", [key, data.key])

    def make(self, plan: BitPlan, path: Path) -> Made:
        """Trains, packs and decodes."""
        model, _ = train_quantized_am(self.model, plan, self.config, self.data, f"{path}.train", self.key, self.train)
        save_am(path, model, self.units, {"train": self.train}, plan)
        n_bytes = path.stat().st_size
        system = self.decoding(
            load_am(path), self.data.dev, path.with_name("decode"), [sha256_file(path), self.data.key]
        )
        n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return Made(system, n_bytes, 4 * n_parameters / n_bytes)
