"""mpq export as a user runs it, and the example of its help."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from mpq.am import TdnnConfig, make_am, save_am
from mpq.cli import export
from mpq.data.lmtext import Tokenizer, pad_sentences
from mpq.lang.tokenizer import train_tokenizer
from mpq.lm import LmConfig, build_lm, load_lm, save_lm
from mpq.quant import quantize_model, save_model, uniform_plan

from .conftest import Mpq

AM = TdnnConfig(feature_dim=8, channels=(2, 2), hidden=16, dilations=[1])
TEXT = ["so it is", "so is it", "it is so", "is it so", "so so it is", "this is it"]


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    """Folder of an untrained model of 4 bits over sentencepiece units."""
    train_tokenizer([line.split() for line in TEXT], tmp_path / "units.model", 20)
    units = Tokenizer(tmp_path / "units.model")
    torch.manual_seed(0)
    model = build_lm(LmConfig("lstm", dim=16), len(units))
    plan = uniform_plan(model, 4)
    save_lm(tmp_path / "lm" / "model.mpq", quantize_model(model, plan), units, plan)
    return tmp_path / "lm"


def test_example_of_the_help_scores_a_sentence(
    lm: Path, mpq: Mpq, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = mpq.succeed("export --model lm --out onnx/lm.onnx")
    assert "1 GatherBlockQuantized, 3 MatMulNBits" in out and out.endswith(": onnx/lm.onnx\n")
    assert (lm / "tokenizer.model").read_bytes() == (lm.parent / "onnx/tokenizer.model").read_bytes()
    monkeypatch.chdir(lm.parent / "onnx")
    assert export.__doc__ is not None
    example = textwrap.dedent(export.__doc__.partition("in Python:\n")[2])
    assert len(example.splitlines()) == 6
    exec(example, {})
    ours = load_lm(lm)
    batch = pad_sentences([ours.tokenizer.encode("so it is")], ours.tokenizer.bos, ours.tokenizer.eos)
    assert float(capsys.readouterr().out) == pytest.approx(ours.model.score(batch).item(), rel=1e-4)


def test_acoustic_model(tmp_path: Path, mpq: Mpq) -> None:
    model = make_am(AM, 3)
    plan = uniform_plan(model, 4)
    save_am(tmp_path / "am.mpq", quantize_model(model, plan), ["A", "B"], plan=plan)
    out = mpq.succeed("export --model am.mpq --out am.onnx --activations 32")
    assert (
        out.startswith("export: 5 MatMulNBits; ") and "log-probabilities of noise differ from mpq's by up to 0." in out
    )
    assert f"{(tmp_path / 'am.onnx').stat().st_size} bytes" in out


def test_activations_of_4_bits_are_not_onnxruntimes(lm: Path, mpq: Mpq) -> None:
    stored = load_lm(lm)
    model = build_lm(stored.model.config, len(stored.tokenizer))
    plan = uniform_plan(model, 4, a_bits=4)
    save_lm(lm / "model.mpq", quantize_model(model, plan), stored.tokenizer, plan)
    assert "give --activations 8 or 32" in mpq.fail("export --model lm --out o.onnx")


def test_bad_input_is_one_line(lm: Path, tmp_path: Path, mpq: Mpq) -> None:
    save_am(tmp_path / "am.mpq", make_am(AM, 3), ["A", "B"])
    other = nn.Sequential(nn.Linear(4, 4))
    save_model(tmp_path / "mlp.mpq", other, "mlp", {}, uniform_plan(other, 32), "")
    (tmp_path / "text.mpq").write_text("so it is\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/words.txt").write_text("so\nit\n")
    for command, message in [
        ("--model mlp.mpq --out o.onnx", "mlp.mpq: holds a mlp model; expected a language model"),
        ("--model am.mpq --tokenizer other/words.txt --out o.onnx", "am.mpq is an acoustic model"),
        ("--model text.mpq --out o.onnx", "text.mpq: not an mpq model file"),
        ("--model none.mpq --out o.onnx", "none.mpq: no such file"),
        ("--model lm --tokenizer other/words.txt --out o.onnx", "not the units that"),
        ("--model lm --out lm", "lm: is a folder"),
        ("--model lm --out lm/model.mpq", "is also an input"),
        ("--model lm --out o.onnx --activations 16", "--activations"),
        ("--model lm --out o.onnx --min-bits 3", "--min-bits"),
    ]:
        assert message in mpq.fail(f"export {command}"), command
        assert not (tmp_path / "o.onnx").exists(), command
