"""mpq search as a user runs it: every method's plan goes into mpq quantize; bad input is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mpq.cli.main import main
from mpq.data.lmtext import Tokenizer
from mpq.lm import LmConfig, build_lm, load_lm, save_lm
from mpq.quant import quantizable, quantize_model, read_model_file, read_plan
from mpq.quant.model import quantized_weights
from mpq.quant.table import SCALE_DTYPE, round_to

TRAIN = ["the king went up", "the people went down", "the king said", "people said the king went down"] * 25


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts and a float model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("\n".join(TRAIN) + "\n")
    (tmp_path / "dev.txt").write_text("the people said\nthe king went down\n")
    (tmp_path / "words.txt").write_text("the\nking\npeople\nwent\nup\ndown\nsaid\n")
    tokenizer = Tokenizer(tmp_path / "words.txt")
    save_lm(tmp_path / "lm/model.mpq", build_lm(LmConfig("lstm", dim=8), len(tokenizer)), tokenizer)
    return tmp_path


def succeed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    status = main(command.split())
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def fail(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = main(command.split())
    except SystemExit as stop:  # what the parser refuses
        status = int(str(stop.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2, command
    return line


@pytest.mark.parametrize(
    "method",
    [
        "kl --dev dev.txt",
        "kl --dev dev.txt --level node",
        "hessian --dev dev.txt --hessian.max_probes 4",
        "hessian --dev dev.txt --hessian.max_probes 4 --hessian.probe gaussian --level node --scale 4",
        "nas --text train.txt --dev dev.txt --nas.batch_tokens 64",
        "random --level node",
        "rule --rule embedding.*=+3 --table asym",
        "uniform",
        "kl --dev dev.txt --a-bits 32",
    ],
)
def test_plans_are_within_the_budget_and_can_be_used(
    method: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = method.split()[0]
    out = succeed(f"search --method {method} --model lm --bits 2.5 --out plan.yaml", capsys)
    (line,) = out.splitlines()
    found = re.match(
        rf"search: {name}, (layer|node) level: ([\d.]+) bits a weight of 2.5 allowed, .* s: plan.yaml", line
    )
    assert found, line
    plan = read_plan(folder / "plan.yaml")
    shapes = quantizable(load_lm(folder / "lm").model)
    assert plan.average_bits(shapes) == pytest.approx(float(found[2]), abs=1e-3)
    assert plan.average_bits(shapes) <= 2.5 and plan.method == name and plan.budget == 2.5
    assert plan.a_bits == (32 if "a-bits" in method else 8)
    assert ("node" in method) == all(isinstance(bits, tuple) for bits in plan.bits.values())
    succeed("quantize --model lm --plan plan.yaml --out q.mpq", capsys)
    report = json.loads(succeed("inspect --json q.mpq", capsys))
    assert report["average_bits"] == pytest.approx(plan.average_bits(shapes))


@pytest.mark.parametrize("method", ["rule --level node", "uniform"])
def test_ratio_of_file_sizes(method: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer(folder / "words.txt")
    save_lm(folder / "big/model.mpq", build_lm(LmConfig("lstm", dim=96), len(tokenizer)), tokenizer)
    out = succeed(f"search --method {method} --model big --ratio 8 --out plan.yaml", capsys)
    assert re.match(r"search: \w+, \w+ level: [\d.]+ bits a weight, 8 times smaller, ", out)
    succeed("quantize --model big --plan plan.yaml --out q.mpq", capsys)
    assert json.loads(succeed("inspect --json q.mpq", capsys))["ratio"] >= 8
    message = fail("search --method uniform --model big --ratio 40 --out plan.yaml", capsys)
    assert "--ratio: 40 cannot be met" in message
    # nothing is measured before that
    message = fail("search --method rule --model big --ratio 40 --costs none/costs.json --out plan.yaml", capsys)
    assert "--ratio: 40 cannot be met" in message and not Path("none").exists()
    assert "by --bits or by --ratio" in fail("search --method uniform --model big --ratio 4 --bits 2 --out p", capsys)
    assert "by --bits or by --ratio" in fail("search --method uniform --model big --out p", capsys)


def test_costs_are_measured_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = "search --method kl --model lm --costs costs.json"
    succeed(f"{search} --dev dev.txt --bits 2 --out a.yaml", capsys)
    measured = (folder / "costs.json").read_bytes()
    succeed(f"{search} --dev dev.txt --bits 3 --out b.yaml", capsys)
    succeed("search --method kl --model lm --dev dev.txt --bits 3 --out c.yaml", capsys)
    assert (folder / "costs.json").read_bytes() == measured
    assert read_plan(folder / "b.yaml") == read_plan(folder / "c.yaml") != read_plan(folder / "a.yaml")
    message = fail(f"{search} --dev train.txt --bits 2 --out d.yaml", capsys)
    assert "costs.json: costs of another model, text" in message and not (folder / "d.yaml").exists()


def test_admm_by_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeed("search --method random --model lm --bits 3 --out plan.yaml", capsys)
    (folder / "q.yaml").write_text("fit: {epochs: 2, lr: 0.01}\nadmm: {rho: 0.01, every: 5}\nbatch_tokens: 64\n")
    train = "--train admm --config q.yaml --text train.txt --dev dev.txt"
    out = succeed(f"quantize --model lm --plan plan.yaml {train} --out q/model.mpq", capsys)
    before, after = map(float, re.search(r"perplexity ([\d.]+) -> ([\d.]+)", out).groups())  # type: ignore[union-attr]
    assert after < before, "the model was not trained before"
    assert f"perplexity {after:.2f}" in succeed("ppl --lm q --text dev.txt", capsys)
    assert (folder / "q/model.mpq.train/admm.jsonl").exists()


def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeed("search --method uniform --model lm --bits 2 --out good.yaml", capsys)
    succeed("quantize --model lm --bits 2 --out small.mpq", capsys)
    good = (folder / "good.yaml").read_text()
    (folder / "unknown.yaml").write_text(good.replace("lstm.weight_ih_l0", "lstm.weight_ih_l7"))
    (folder / "lacking.yaml").write_text(re.sub(r" *lstm.weight_ih_l0: 2\n", "", good))
    (folder / "wide.yaml").write_text(good.replace("lstm.weight_ih_l0: 2", "lstm.weight_ih_l0: 9"))
    (folder / "bad.yaml").write_text("nas: {beta: -1}\n")
    search = "search --model lm --out p.yaml --bits"
    for command, message in [
        (f"{search} 1.5 --method rule --candidates 2,4", "1.5 cannot be met: the fewest of --candidates are 2"),
        (f"{search} 0.5 --method rule", "--bits: 0.5: expected 1 to 8"),
        (f"{search} 9 --method rule", "--bits: 9: expected 1 to 8"),
        (f"{search} 2 --method rule --candidates 1,two", "candidates: '1,two'"),
        (f"{search} 2 --method rule --candidates 1,16", "candidates: 1,16: expected bits from 1 to 8"),
        (f"{search} 2 --method rule --rule x.*=+1", "rule: 'x.*' fits none"),
        (f"{search} 2 --method rule --scale 3", "groups of 3"),
        (f"{search} 2 --method rule --scale rows", "scale: 'rows'"),
        (f"{search} 2 --method magic", "magic"),
        (f"{search} 2 --method kl", "--method kl needs held-out text"),
        (f"{search} 2 --method kl --dev dev.txt --tokens 0", "--tokens: 0"),
        (f"{search} 2 --method kl --dev none.txt", "none.txt: no such file"),
        (f"{search} 2 --method nas --dev dev.txt", "--method nas needs the training text"),
        (f"{search} 2 --method nas --dev dev.txt --text train.txt --level node", "level: node"),
        (f"{search} 2 --method nas --dev dev.txt --text train.txt --config bad.yaml", "beta: -1"),
        (f"{search} 2 --method hessian --dev dev.txt --hessian.probe uniform", "probe: 'uniform'"),
        ("search --model small.mpq --out p.yaml --bits 2 --method rule --tokenizer words.txt", "quantized already"),
        ("search --model none --out p.yaml --bits 2 --method rule", "none"),
        ("quantize --model lm --plan unknown.yaml --out p.yaml", "no quantizable weight 'lstm.weight_ih_l7'"),
        ("quantize --model lm --plan lacking.yaml --out p.yaml", "no bits for 'lstm.weight_ih_l0'"),
        ("quantize --model lm --plan wide.yaml --out p.yaml", "9 bits: expected 1 to 8"),
        ("quantize --model lm --bits 2 --train admm --out p.yaml", "--train admm needs the training text"),
        ("search --model lm --method uniform --bits 4 --a-bits 3 --out p.yaml", "--a-bits"),
        (
            "quantize --model lm --bits 2 --train admm --admm.rho 0 --dev dev.txt --text train.txt --out p.yaml",
            "rho: 0",
        ),
    ]:
        assert message in fail(command, capsys), command
        assert not (folder / "p.yaml").exists(), command


def check_packed_as_it_is(folder: Path, quantize: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without training the codes are the latent weights in the learned scales, which fitting does not find."""
    stored = read_model_file(folder / "plan.yaml.search" / "latent.mpq").state_dict()
    out = succeed(f"{quantize} --out packed/model.mpq", capsys)
    assert re.search(r"perplexity [\d.]+ -> [\d.]+", out)
    packed, plan = load_lm(folder / "packed").model, read_plan(folder / "plan.yaml")
    fitted = quantize_model(load_lm(folder / "lm").model, plan)
    for name, codes in quantized_weights(packed).items():
        precision, scale = plan.precision(name), stored[f"{name}_log_scale"].exp().to(SCALE_DTYPE).float()[:, None]
        assert precision is not None
        assert torch.equal(codes.scale, scale) and not torch.equal(scale, quantized_weights(fitted)[name].scale)
        assert torch.equal(codes.codes, round_to(stored[name], scale, precision).codes)


def test_one_stage_leaves_a_plan_and_weights_to_train_on_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = "--text train.txt --dev dev.txt"
    options = "--candidates 2,4,8 --one-stage.batch-tokens 64 --one-stage.fit.lr 0.01"
    out = succeed(f"search --method one-stage --model lm --bits 3.5 {texts} {options} --out plan.yaml", capsys)
    assert re.match(r"search: one-stage, layer level: [\d.]+ bits a weight of 3.5 allowed, ", out)
    plan, latent = read_plan(folder / "plan.yaml"), "plan.yaml.search/latent.mpq"
    assert plan.method == "one-stage" and set(plan.bits.values()) <= {2, 4, 8}
    assert plan.average_bits(quantizable(load_lm(folder / "lm").model)) <= 3.5
    train = f"quantize --model lm --plan plan.yaml --train ste {texts} --batch-tokens 64 --fit.epochs 1 --fit.lr 1e-9"
    loss = []
    for init in ("", f"--init {latent}"):
        out = succeed(f"{train} {init} --out q{len(loss)}/model.mpq", capsys)
        loss.append(float(re.search(r"-> ([\d.]+)", out)[1]))  # type: ignore[index]
    assert loss[1] < loss[0], "the weights that were learned beside the bits are kept"
    check_packed_as_it_is(folder, f"quantize --model lm --plan plan.yaml --init {latent} --dev dev.txt", capsys)
    save_lm(folder / "wide/model.mpq", build_lm(LmConfig("lstm", dim=16), 10), Tokenizer(folder / "words.txt"))
    text = (folder / "plan.yaml").read_text()
    (folder / "pow2.yaml").write_text(text.replace("table: uniform", "table: pow2"))
    (folder / "whole.yaml").write_text(text.replace("scale: row", "scale: matrix"))
    for command, message in [
        (f"{train} --init wide --out q.mpq", "wide: embedding.weight has the shape (10, 16), in lm (10, 8)"),
        (f"{train} --init {latent} --scratch true --out q.mpq", "--init: weights to start from"),
        (
            f"{train} --init {latent} --out q.mpq".replace("--plan plan.yaml", "--bits 4"),
            "holds scales for another plan (bits)",
        ),
        (f"{train} --init {latent} --out q.mpq".replace("plan.yaml", "pow2.yaml", 1), "for another plan (table)"),
        (f"{train} --init {latent} --out q.mpq".replace("plan.yaml", "whole.yaml", 1), "for another plan (scale)"),
        (f"search --method one-stage --model lm --ratio 8 {texts} --out p.yaml", "give these by --bits"),
        (f"search --method one-stage --model lm --bits 3 {texts} --costs c.json --out p.yaml", "--costs: one-stage"),
        (f"search --method one-stage --model lm --bits 3 --level node {texts} --out p.yaml", "level: node"),
        ("search --method one-stage --model lm --bits 3 --dev dev.txt --out p.yaml", "needs the training text"),
        ("search --method kl --model lm --bits 6 --candidates 2,4 --dev dev.txt --out p.yaml", "cannot be reached"),
    ]:
        assert message in fail(command, capsys), command
