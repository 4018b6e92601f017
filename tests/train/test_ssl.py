"""wav2vec 2.0 learns tones from scratch; commands from audio to words, and from a published checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from mpq.am import Wav2Vec2Config, load_am
from mpq.cli.main import main
from mpq.data.batches import FeatureSet
from mpq.data.manifests import Spoken, write_manifests
from mpq.data.waveform import refer_to_audio
from mpq.io import read_text, write_text
from mpq.train.am import AmConfig, AmTask
from mpq.train.loop import FitConfig, fit
from tests.am.test_checkpoint import write_hugging_face
from tests.train.test_am import LEXICON, RATE, speak

MODEL = Wav2Vec2Config(
    conv_channels=(32, 24), conv_kernels=(400, 3), conv_strides=(160, 2), filterbank=True, freeze_extractor=False,
    dim=24, layers=1, heads=2, feed_forward=48, position_kernel=8, position_groups=2, norm_first=True, dropout=0.0,
    activation_dropout=0.0, attention_dropout=0.0, projection_dropout=0.0, layer_drop=0.0, mask_prob=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waveforms of 48 utterances of tones in `w`, transcripts and a lang folder of phones."""
    folder, rng, spoken = tmp_path_factory.mktemp("tones"), np.random.default_rng(0), []
    for i in range(48):
        words = [str(word) for word in rng.choice(LEXICON.words, 4)]
        soundfile.write(folder / f"u{i:02}.flac", speak(words, rng), RATE)
        spoken.append(Spoken(f"u{i:02}", "s", folder / f"u{i:02}.flac", " ".join(words)))
    write_manifests(folder / "data", spoken, RATE)
    refer_to_audio(folder / "data" / "cuts.jsonl.gz", folder / "w")
    (folder / "text").write_text("".join(f"{item.text}\n" for item in spoken))
    (folder / "dictionary").write_text("ab A B\nca C A\nbac B A C\nbac(2) B C\n")
    lang(folder, "lang", "--dictionary", str(folder / "dictionary"))
    return folder


def lang(folder: Path, name: str, *options: str) -> None:
    assert not main([
        "lang", "--text", str(folder / "text"), "--g2p", "none", "--units", "0", "--out", str(folder / name), *options,
    ])  # fmt: skip


def test_training_from_scratch_learns_tones(folder: Path, tmp_path: Path) -> None:
    config = AmConfig(model=MODEL, fit=FitConfig(epochs=6, lr=5e-3), ctc_part=0.0, max_frames=500)
    data = FeatureSet(folder / "w" / "cuts.jsonl.gz")
    task = AmTask(config, data, data, LEXICON)
    result = fit(task, config.fit, tmp_path)
    assert result.best["per"] < 20.0


def test_commands_from_audio_to_words_with_times(folder: Path, tmp_path: Path) -> None:
    cuts, size = str(folder / "w" / "cuts.jsonl.gz"), ["--model.arch", "hubert", "--model.freeze_extractor", "false"]
    for name in ("conv_channels", "conv_kernels", "conv_strides", "dim", "layers", "heads", "feed_forward"):
        size += [f"--model.{name}", str(getattr(MODEL, name)).replace("(", "[").replace(")", "]")]
    size += ["--model.position_kernel", "8", "--model.position_groups", "2", "--fit.epochs", "1"]
    same = ["--train", cuts, "--dev", cuts, "--lang", str(folder / "lang"), "--max_frames", "3000"]
    assert not main(["train-am", *same, *size, "--out", str(tmp_path / "am")])
    assert load_am(tmp_path / "am").subsampling == 2
    decode = ["--features", cuts, "--lang", str(folder / "lang"), "--nj", "1", "--n_best", "3", "--beam", "6"]
    assert not main(["decode", "--am", str(tmp_path / "am"), *decode, "--out", str(tmp_path / "decode")])
    hyp = str(tmp_path / "hyp")
    write_text(hyp, {utt: ["ab", "ca"] for utt in read_text(tmp_path / "decode" / "hyp.txt")})
    align = ["--am", str(tmp_path / "am"), "--lang", str(folder / "lang"), "--features", cuts]
    assert not main(["ctm", "--hyp", hyp, *align, "--out", str(tmp_path / "hyp.ctm")])
    lines = [line.split() for line in (tmp_path / "hyp.ctm").read_text().splitlines()]
    assert len(lines) == 96 and all(float(line[3]) > 0 for line in lines)
    # a trained model is a checkpoint too
    main(
        ["train-am", *same, "--checkpoint", str(tmp_path / "am"), "--fit.epochs", "1", "--out", str(tmp_path / "more")]
    )
    assert load_am(tmp_path / "more").config == load_am(tmp_path / "am").config


def test_a_published_checkpoint_decodes_and_is_fine_tuned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, cuts, am = (
        write_hugging_face(tmp_path / "hf", "hubert"),
        str(folder / "w" / "cuts.jsonl.gz"),
        tmp_path / "am",
    )
    assert not main(["import-am", "--checkpoint", str(published), "--check"]) and not am.exists()
    assert capsys.readouterr().out == f"import-am: fine-tuned: {published}\n"
    masks = ["--model.mask_prob", "0.25", "--model.layer_drop", "0"]
    assert not main(["import-am", "--checkpoint", str(published), "--out", str(am), *masks])
    assert (load_am(am).config.mask_prob, load_am(am).config.layer_drop) == (0.25, 0.0)
    assert not main(["import-am", "--checkpoint", str(am), "--check"])
    assert "import-am: not fine-tuned: " in capsys.readouterr().out, "but of this project"
    lang(folder, "letters", "--acoustic-units", "letters", "--letters", str(am / "units.txt"))
    letters = (folder / "letters" / "lexicon.txt").read_text().splitlines()
    assert letters == ["ab A B |", "bac B A C |", "ca C A |"]
    decode = ["--features", cuts, "--lang", str(folder / "letters"), "--nj", "1", "--n_best", "3", "--beam", "6"]
    assert not main(["decode", "--am", str(am), *decode, "--out", str(tmp_path / "decode")])
    assert "48 utterances" in capsys.readouterr().out
    same = ["--train", cuts, "--dev", cuts, "--lang", str(folder / "lang"), "--max_frames", "3000", "--fit.epochs", "1"]
    assert not main(["train-am", *same, "--checkpoint", str(published), "--out", str(tmp_path / "tuned")])
    tuned = load_am(tmp_path / "tuned")
    frozen = "feature_extractor.conv_layers.1.conv.weight"
    assert (
        tuned.state_dict()[frozen] == safetensors.torch.load_file(published / "model.safetensors")[f"hubert.{frozen}"]
    ).all()
    assert tuned.n_outputs == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["import-am", "--checkpoint", "{hf}", "--out", "{out}"],
            "no classifier of known units; train one by mpq train-am",
        ),
        (
            ["import-am", "--checkpoint", "{foreign}", "--model.arch", "wav2vec2-base", "--out", "{out}"],
            "not a checkpoint of this model: it lacks feature_extractor",
        ),
        (["import-am", "--checkpoint", "{hf}"], "give the folder to write by --out, or --check"),
        (["import-am", "--checkpoint", "{hf}", "--check", "--out", "{out}"], "give the folder to write by --out, or"),
        (["lang", "--text", "{text}", "--acoustic-units", "letters", "--out", "{out}"], "--letters go together"),
        (
            ["lang", "--text", "{text}", "--acoustic-units", "letters", "--letters", "{units}", "--out", "{out}"],
            "2 words have letters that the model does not know: bac, ca",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(
    words: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf, units = write_hugging_face(tmp_path / "hf", "hubert"), tmp_path / "units.txt"
    (hf / "vocab.json").unlink()
    units.write_text("<blk> 0\n| 1\nA 2\nB 3\n")
    foreign = tmp_path / "foreign.pt"
    torch.save({"a": torch.zeros(3)}, foreign)
    places = {"hf": hf, "out": tmp_path / "out", "text": folder / "text", "units": units, "foreign": foreign}
    assert main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and says in error[0]
