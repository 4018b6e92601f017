"""Commands on a GPU as a user runs them: training, search, quantization, decoding, perplexity, rescoring."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mpq.io import Hyp, NBest, read_nbest, read_text, write_nbest
from mpq.quant import read_plan
from tests.cli.conftest import Mpq, mpq
from tests.cli.test_lm_commands import lm
from tests.cli.test_lossless_acoustic import folder, trained

__all__ = ["folder", "lm", "mpq", "trained"]
NOWHERE = "cuda:99"


def test_language_models(lm: Path, tmp_path: Path, mpq: Mpq, device: torch.device) -> None:
    texts, where = "--text train.txt --dev dev.txt", f"--device {device}"
    for method in ("kl", "kl --level node", "hessian --hessian.max-probes 4"):
        mpq.succeed(f"search --method {method} --model lm --bits 3 {texts} {where} --out plan.yaml")
        assert read_plan("plan.yaml").method == method.split()[0]
    (tmp_path / "q.yaml").write_text("fit: {epochs: 1, lr: 0.01, precision: auto}\nbatch_tokens: 64\ndistill: 0.5\n")
    train = f"--plan plan.yaml --config q.yaml {texts} --out q/model.mpq"
    for method in ("ste", "admm"):
        mpq.succeed(f"quantize --model lm --train {method} {train}")
    found = {}
    for place in {"cpu", str(device)}:
        out = mpq.succeed(f"ppl --lm q --text dev.txt --device {place}")
        found[place] = float(re.search(r"perplexity ([\d.]+)", out)[1])  # type: ignore[index]
    assert found[str(device)] == pytest.approx(found["cpu"], rel=0.01)

    hyps = [Hyp("the king up went", -10.0, -1.0), Hyp("the king went up", -10.5, -1.0), Hyp("", -30.0, 0.0)]
    write_nbest(tmp_path / "nbest.jsonl.gz", [NBest("u1", hyps)])
    for name in ("lm", "lm --merge-order 3", "q"):
        scores = []
        for place in ("cpu", device):
            mpq.succeed(f"rescore --nbest nbest.jsonl.gz --lm {name} --lm-weight 1 --device {place} --out out.jsonl")
            scores.append({hyp.text: hyp.nnlm for hyp in next(read_nbest(tmp_path / "out.jsonl")).hyps})
        assert scores[1] == pytest.approx(scores[0], abs=0.1 if name == "q" else 1e-4)
    for command in ("ppl --lm q --text dev.txt", f"search --method kl --model lm --bits 3 {texts} --out p.yaml"):
        assert f"--device {NOWHERE}: this machine has no such device" in mpq.fail(f"{command} --device {NOWHERE}")


def test_acoustic_models(folder: Path, device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    """`folder` holds a model that was trained by `mpq train-am`, on the GPU where there is one."""
    run = Mpq(capsys)
    data = "--features train/features/cuts.jsonl.gz --dev dev/features/cuts.jsonl.gz --lang lang"
    for method in ("kl", "hessian --hessian.max-probes 2", "nas --nas.batch-tokens 60"):
        run.succeed(f"search --method {method} --model am --bits 6 {data} --device {device} --out plan.yaml")
    run.succeed(
        f"quantize --model am --plan plan.yaml --train ste {data} --fit.epochs 1 --max-frames 300 --out am4.mpq"
    )
    for am in ("am", "am4.mpq"):
        words = []
        for place, nj in (("cpu", 1), (device, 2)):
            out = f"decode-{am}-{torch.device(place).type}"
            decode = f"decode --am {am} --features test/features/cuts.jsonl.gz --lang lang --device {place}"
            run.succeed(f"{decode} --nj {nj} --out {out}")
            words.append(read_text(folder / out / "hyp.txt"))
        assert words[0] == words[1] and len(words[0]) == 12
    if device.type == "cuda":
        run.succeed("decode --am am --features test/features/cuts.jsonl.gz --lang lang --out auto --device auto")
    assert f"--device {NOWHERE}" in run.fail(f"{decode} --device {NOWHERE} --out no")
