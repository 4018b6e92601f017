"""`mpq results`: one record for each system and set, with sizes, significance and the oracle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpq.am import TdnnConfig, make_am, save_am
from mpq.cli.main import main
from mpq.data.lmtext import Tokenizer
from mpq.io import Hyp, NBest, write_nbest, write_text, write_yaml
from mpq.lm import LmConfig, build_lm, save_lm
from mpq.quant import quantize_model, uniform_plan
from mpq.score import mapsswe
from mpq.score.records import ResultRecord, read_results
from mpq.score.table import verdict

REF = {f"u{i:03}": ["a", "b", "c", "d"] for i in range(60)}
HYPS = {  # words wrong in every n-th utterance
    "first-pass": {utt: ["a", "x", "c", "x"] if i % 3 == 0 else words for i, (utt, words) in enumerate(REF.items())},
    "lstm": {utt: ["a", "x", "c", "d"] if i % 10 == 0 else words for i, (utt, words) in enumerate(REF.items())},
    "lstm-2bit": {utt: ["a", "x", "c", "d"] if i % 9 == 0 else words for i, (utt, words) in enumerate(REF.items())},
}


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """A finished experiment: first pass, a float LSTM, and its 2-bit version."""
    (tmp_path / "words.txt").write_text("<eps> 0\na 1\nb 2\nc 3\nd 4\n#0 5\n<s> 6\n</s> 7\n")
    tokenizer = Tokenizer(tmp_path / "words.txt")
    model = build_lm(LmConfig("lstm", dim=64), len(tokenizer))
    save_lm(tmp_path / "lm/lstm/model.mpq", model, tokenizer, extra={"perplexity": 4.5})
    plan = uniform_plan(model, 2)
    quantized = quantize_model(model, plan)
    save_lm(
        tmp_path / "quant/lstm-2bit/model.mpq", quantized, tokenizer, plan, extra={"perplexity": 4.75, "train": "none"}
    )
    for set_name in ("dev", "test"):
        write_text(tmp_path / "data" / set_name / "text", REF)
        lists = [NBest(u, [Hyp("a x c x", -1.0, -1.0), Hyp("a b c x", -2.0, -1.0)]) for u in REF]
        write_nbest(tmp_path / "decode" / set_name / "nbest.jsonl.gz", lists)
        for system, hyp in HYPS.items():
            write_text(tmp_path / "rescore" / system / f"hyp-{set_name}.txt", hyp)
            write_yaml(tmp_path / "rescore" / system / "weights.yaml", {"ngram_weight": 1.0})
    return tmp_path


def test_records(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    assert main(["results", str(exp), "--seed", "3"]) == 0
    assert "results: 3 systems on dev and test; best on test: lstm 2.50 %" in capsys.readouterr().out
    records = {(r.system, r.set): r for r in read_results(exp / "results.jsonl")}
    assert len(records) == 8
    first, lstm, low, oracle = (records[s, "test"] for s in ("first-pass", "lstm", "lstm-2bit", "oracle"))
    assert (first.role, first.errors, first.words, first.bits) == ("first-pass", 40, 240, None)
    assert (oracle.role, oracle.errors) == ("oracle", 60)
    assert (lstm.family, lstm.bits, lstm.ratio, lstm.p_float32, lstm.perplexity) == ("lstm", 32.0, 1.0, None, 4.5)
    assert lstm.seed == 3
    assert lstm.bytes == (exp / "lm/lstm/model.mpq").stat().st_size
    assert (low.bits, low.perplexity, low.errors, low.family) == (2.0, 4.75, 7, "lstm")
    assert (lstm.line, low.line) == (None, "only rounded")
    assert low.ratio == pytest.approx(lstm.bytes / (exp / "quant/lstm-2bit/model.mpq").stat().st_size, abs=1e-3)
    assert low.p_float32 == pytest.approx(mapsswe(REF, HYPS["lstm-2bit"], HYPS["lstm"]).p)
    assert low.p_first_pass == pytest.approx(mapsswe(REF, HYPS["lstm-2bit"], HYPS["first-pass"]).p)
    assert isinstance(low, ResultRecord) and low.interval and low.interval[0] < low.wer < low.interval[1]


def test_where_mixed_bits_went(exp: Path) -> None:
    tokenizer = Tokenizer(exp / "words.txt")
    model = build_lm(LmConfig("transformer", layers=2, dim=64, dim_ff=64, heads=2), len(tokenizer))
    plan = replace(uniform_plan(model, 2), method="kl")
    mixed = replace(plan, bits={**plan.bits, "embedding.weight": 4, "blocks.0.attention.query.weight": 8})
    for name, one in (("mixed", mixed), ("same", plan)):
        save_lm(exp / f"quant/{name}/model.mpq", quantize_model(model, one), tokenizer, one)
        shutil.copytree(exp / "rescore" / "lstm", exp / "rescore" / name)
    assert main(["results", str(exp)]) == 0
    bits = {(r.system, r.set): r.layer_bits for r in read_results(exp / "results.jsonl")}
    kinds = {"embedding": 4.0, "blocks.attention": 2.75, "blocks.expand": 2.0, "blocks.contract": 2.0, "output": 2.0}
    assert bits["mixed", "test"] == kinds  # one of eight equally large attention matrices has 8 bits
    assert bits["same", "test"] == bits["lstm", "test"] == {}
    assert main(["report", str(exp)]) == 0
    text = (exp / "RESULTS.md").read_text()
    assert "## Where the bits went: transformer" in text
    assert "| System | embedding | blocks.attention | blocks.expand | blocks.contract | output |" in text
    assert "| mixed | 4 | 2.8 | 2 | 2 | 2 |" in text and "| same |" not in text.partition("## Where")[2]
    assert '<th scope="col" class="number">blocks.attention</th>' in (exp / "report.html").read_text()


def test_a_second_system_without_a_model(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (exp / "quant/lstm-2bit/model.mpq").unlink()
    assert main(["results", str(exp)]) == 2
    assert "expected one system without a model, the first pass" in capsys.readouterr().err


def test_a_larger_ngram_model_is_compared_with_the_first_pass(exp: Path) -> None:
    shutil.copytree(exp / "rescore" / "lstm", exp / "rescore" / "4-gram")
    assert main(["results", str(exp), "--ngram", "4-gram"]) == 0
    records = read_results(exp / "results.jsonl")
    ngram, lstm = (next(r for r in records if (r.system, r.set) == (name, "test")) for name in ("4-gram", "lstm"))
    assert (ngram.role, ngram.bits, ngram.errors) == ("rescored", None, lstm.errors)
    assert ngram.p_first_pass == lstm.p_first_pass
    assert verdict(ngram, records) == verdict(lstm, records) == "better than first pass"


def test_a_missing_hypothesis_file(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (exp / "rescore/lstm/hyp-test.txt").unlink()
    assert main(["results", str(exp)]) == 2
    assert "rescore/lstm/hyp-test.txt: no such file" in capsys.readouterr().err


def test_acoustic_models_need_no_first_pass(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = exp / "table-tdnn"
    model = make_am(TdnnConfig(feature_dim=8, channels=(2, 2), hidden=16), 3)
    save_am(out / "am/tdnn/model.mpq", model, ["A", "B"])
    plan = uniform_plan(model, 4)
    save_am(out / "quant/tdnn-4/model.mpq", quantize_model(model, plan), ["A", "B"], {"train": "ste"}, plan)
    for system, like in (("tdnn", "lstm"), ("tdnn-4", "first-pass")):
        for set_name in ("dev", "test"):
            write_text(out / "rescore" / system / f"hyp-{set_name}.txt", HYPS[like])
        write_yaml(out / "rescore" / system / "weights.yaml", {"ngram_weight": 1.0})
    (exp / "rows.jsonl").write_text('{"system": "tdnn"}\n{"system": "tdnn-4", "columns": {"Train min": 2}}\n')
    for set_name, seconds in (("dev", 0.5), ("test", 1.0)):
        speed = {"am_seconds": seconds, "audio_seconds": 50.0}
        write_yaml(out / "decode/tdnn-4" / set_name / "speed.yaml", speed)
    command = ["results", str(exp), "--systems", str(out), "--rows", str(exp / "rows.jsonl")]
    assert main(command) == 0
    records = {(r.system, r.set): r for r in read_results(out / "results.jsonl")}
    assert len(records) == 4
    low = records["tdnn-4", "test"]
    assert (low.family, low.line, low.bits, low.p_first_pass) == ("tdnn", "STE", 4.0, None)
    assert low.p_float32 == mapsswe(REF, HYPS["first-pass"], HYPS["lstm"]).p
    assert low.extra == {"Stored bits": low.extra["Stored bits"], "Train min": 2, "AM RTF": 0.015}
    (exp / "rows.jsonl").write_text('{"system": "tdnn"}\n{"system": "lstm"}\n')
    assert main(command) == 2
    assert "expected one system without a model, the first pass" in capsys.readouterr().err


def test_where_the_bits_of_two_models_went(exp: Path) -> None:
    """Both have a matrix `output`, of 8 bits in one and of 4 in the other."""
    tokenizer, names = Tokenizer(exp / "words.txt"), ["quant/am/model.mpq", "quant/lm/model.mpq"]
    acoustic = make_am(TdnnConfig(feature_dim=8, channels=(2, 2), hidden=16), 3)
    language = build_lm(LmConfig("lstm", dim=64), len(tokenizer))
    plans = []
    for model, n_bits in ((acoustic, 8), (language, 4)):
        plan = uniform_plan(model, 2)
        plans.append(replace(plan, method="kl", bits={**plan.bits, "output.weight": n_bits}))
    save_am(exp / names[0], quantize_model(acoustic, plans[0]), ["A", "B"], {}, plans[0])
    save_lm(exp / names[1], quantize_model(language, plans[1]), tokenizer, plans[1])
    shutil.copytree(exp / "rescore" / "lstm", exp / "rescore" / "both")
    rows = [{"system": "first-pass"}, {"system": "both", "models": names}]
    (exp / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["results", str(exp), "--rows", str(exp / "rows.jsonl")]) == 0
    (both,) = (r for r in read_results(exp / "results.jsonl") if (r.system, r.set) == ("both", "test"))
    assert (both.layer_bits["tdnn output"], both.layer_bits["lstm output"]) == (8.0, 4.0)


def test_a_system_of_two_models(exp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, rows = exp / "table-both", exp / "rows.jsonl"
    model = make_am(TdnnConfig(feature_dim=8, channels=(2, 2), hidden=16), 3)
    save_am(exp / "am/tdnn/model.mpq", model, ["A", "B"])
    plan = uniform_plan(model, 4)
    save_am(exp / "quant/tdnn-4/model.mpq", quantize_model(model, plan), ["A", "B"], {"train": "ste"}, plan)
    systems = {
        "float": ["am/tdnn", "lm/lstm"],
        "both": ["quant/tdnn-4", "quant/lstm-2bit"],
        "lm": ["am/tdnn", "quant/lstm-2bit"],
    }
    lines = []
    for (system, names), like in zip(systems.items(), HYPS, strict=True):
        for set_name in ("dev", "test"):
            write_text(out / "rescore" / system / f"hyp-{set_name}.txt", HYPS[like])
        write_yaml(out / "rescore" / system / "weights.yaml", {"ngram_weight": 1.0})
        models = [f"{name}/model.mpq" for name in names]
        lines.append(json.dumps({"system": system, "columns": {}, "models": models}))
    rows.write_text("\n".join(lines) + "\n")
    command = ["results", str(exp), "--systems", str(out), "--rows", str(rows)]
    assert main(command) == 0
    records = {r.system: r for r in read_results(out / "results.jsonl") if r.set == "test"}
    n_bytes = {s: sum((exp / name / "model.mpq").stat().st_size for name in names) for s, names in systems.items()}
    assert {name: record.bytes for name, record in records.items()} == n_bytes
    both = records["both"]
    assert (both.family, both.perplexity, both.line) == ("tdnn+lstm", 4.75, "STE + only rounded")
    assert both.ratio == pytest.approx(n_bytes["float"] / n_bytes["both"], abs=1e-3)
    assert both.p_float32 == mapsswe(REF, HYPS["lstm"], HYPS["first-pass"]).p and records["float"].p_float32 is None
    assert both.bits is not None and records["lm"].bits is not None and 2 < both.bits < 4 < records["lm"].bits < 32
    assert verdict(both, list(records.values())) == "better than float32"

    rows.write_text(lines[0].replace("am/tdnn", "am/none"))
    assert main(command) == 2
    assert "am/none/model.mpq: no such file" in capsys.readouterr().err
