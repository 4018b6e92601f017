"""The recipe librispeech on a small synthetic corpus, and what it says of one that is not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mpq.am import ConformerModel, load_am
from mpq.io import read_jsonl, read_nbest, read_symbols, read_text
from mpq.lang.arpa import read_arpa
from mpq.quant import read_model_file, read_plan
from tests.am.test_checkpoint import LETTERS, write_hugging_face
from tests.recipes.recipe_runs import Recipe, check_table, refuses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_smoke_run(librispeech: Recipe) -> None:
    exp = librispeech.exp
    check_table(librispeech, ("dev-clean", "test-clean"), ["first-pass", "4-gram", "oracle", "lstm", "lstm-2bit"])
    assert len(read_text(exp / "data" / "test-clean" / "text")) == 8
    assert isinstance(load_am(exp / "am"), ConformerModel) and "\u2581the " in (exp / "lang" / "units.txt").read_text()
    lm = read_arpa(exp / "data" / "lm" / "4-gram.arpa.gz")
    for nbest in read_nbest(exp / "rescore" / "lstm" / "test-clean.jsonl.gz"):
        for hyp in nbest.hyps:
            assert hyp.lm == pytest.approx(lm.score(hyp.text.split()))


def test_smoke_run_of_the_table_of_conformers(librispeech: Recipe, tmp_path: Path) -> None:
    exp = shutil.copytree(librispeech.exp, tmp_path / "exp", symlinks=True)
    rows = ["conformer", "conformer-rule-w5a8", "conformer-encoder-w1.5a8-long-cotrain-alone"]
    table = Recipe("librispeech", exp, *librispeech.command[7:])
    table.finish("--table", "conformer", "--rows", ",".join(rows), "--stage", "7")
    lines = [row for _, row in read_jsonl(exp / "table-conformer" / "results.jsonl")]
    results = [row for row in lines if row["set"] == "test-clean"]
    assert [row["system"] for row in results] == rows
    assert results[0]["bits"] == 32 and 4 < results[1]["bits"] <= 5 and "p_float32" in results[1]
    plan = read_plan(exp / "table-conformer" / "plan" / f"{rows[2]}.yaml")
    linear = {bits for name, bits in plan.bits.items() if ".ffn" in name or ".self_attn." in name}
    assert linear == {1} and set(plan.bits.values()) == {1, 4} and results[2]["bits"] <= 1.5


def test_half_a_corpus_is_refused_before_anything_is_computed(librispeech_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(librispeech_dir.parent, tmp_path / "corpus", symlinks=True)
    root = tmp_path / "corpus" / librispeech_dir.name
    shutil.rmtree(root / "test-other")
    gone = sorted((root / "dev-clean").rglob("*.flac"))[0]
    gone.unlink()
    recipe = Recipe("librispeech", tmp_path / "exp", "--corpus-dir", str(root))
    refuses(recipe, "1 parts missing: test-other", f"1 of 8 files of dev-clean missing: {gone.relative_to(root)}")


def test_foundation_models_begin_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = Recipe("librispeech", tmp_path / "exp", "--corpus-dir", str(tmp_path))
    for words, says in (
        (["--am", "ssl"], "--am ssl needs --checkpoint"),
        (["--checkpoint", "X"], "only --am ssl begins"),
    ):
        refused = recipe.run(*words)
        assert refused.returncode == 2 and says in refused.stderr
    refused = recipe.run("--am", "ssl", "--checkpoint", "HUBERT_HUGE", "--dry-run")
    assert refused.returncode == 2 and "--checkpoint HUBERT_HUGE: neither a file or folder nor" in refused.stderr
    for words in (["HUBERT_LARGE"], ["HUBERT_ASR_LARGE", "--acoustic-units", "phones"]):
        printed = recipe.finish("--am", "ssl", "--checkpoint", *words, "--dry-run", "--stop-stage", "4")
        assert "--type waveform" in printed and "--acoustic-units phones" in printed
        assert "--config conf/am_ssl.yaml" in printed and f"--checkpoint {words[0]}" in printed
        assert "mpq import-am" not in printed
    # fine-tuned already, as its name says
    printed = recipe.finish("--am", "ssl", "--checkpoint", "HUBERT_ASR_LARGE", "--dry-run", "--stop-stage", "5")
    assert "mpq import-am --config conf/am_letters.yaml --checkpoint HUBERT_ASR_LARGE" in printed
    assert "--acoustic-units letters --letters" in printed and "mpq train-am" not in printed


def test_rows_that_hold_a_gpu_decode_by_all_processes(tmp_path: Path) -> None:
    """Without a GPU each row has one, and as many rows are decoded at once."""
    words = ("--corpus-dir", str(tmp_path), "--table", "conformer", "--rows", "conformer,conformer-w4a8", "--dry-run")
    recipe = Recipe("librispeech", tmp_path / "exp", *words, "--stage", "9", "--stop-stage", "9", "--nj", "7")
    for gpus, searches in ((0, 1), (1, 7), (2, 3), (8, 1)):
        lines = [line for line in recipe.finish("--gpus", str(gpus)).splitlines() if line.startswith("mpq decode ")]
        assert len(lines) == 4 and all(line.endswith(f" --nj {searches}") for line in lines)


def test_disk_for_the_rows_of_tables(tmp_path: Path) -> None:
    """A checkpoint, four times the float model, stays of each; wav2vec 2.0 has no features on disk."""
    recipe = Recipe("librispeech", tmp_path / "exp", "--corpus-dir", str(tmp_path), "--dry-run", "--stop-stage", "0")
    recipe.command.remove("--smoke")
    large = ["--checkpoint", "HUBERT_ASR_LARGE"]
    rows = ["--rows", "conformer-kl-*"]  # w5a8, w3a8, w2.5a8, rounded
    for words, asked in (
        ([], 106),
        (["--table", "conformer", *rows], 106 + 4 * 1.5),
        (["--table", "ssl", *large, "--rows", "ssl,ssl-w?a8"], 20 + 5 * 6),
        (["--am", "ssl", *large], 20),
        (["--am", "ssl", *large, "--table", "lm", "--rows", "lstm,lstm-ste-2"], 21),
    ):
        assert f" --disk-gb {asked:.0f} --memory-gb " in recipe.finish(*words), words


def test_a_checkpoint_that_is_fine_tuned_already_goes_on_few_bits(librispeech_dir: Path, tmp_path: Path) -> None:
    """By CTC over its letters, nothing else being trained."""
    published = write_hugging_face(tmp_path / "hf", "wav2vec2")
    recipe = Recipe("librispeech", tmp_path / "exp", "--corpus-dir", str(librispeech_dir))
    rows, exp = ["ssl", "ssl-w4a8", "ssl-one-stage-w3.5a8-pass1"], recipe.exp
    recipe.finish("--table", "ssl", "--checkpoint", str(published), "--rows", ",".join(rows))
    assert not [*(exp / ".done").glob("4.*")], "no acoustic model is trained"
    assert [*read_symbols(exp / "lang" / "units.txt").ids][1:] == LETTERS
    for line in (exp / "lang" / "lexicon.txt").read_text().splitlines():
        word, *letters = line.split()
        assert letters == [*word.upper(), "|"]
    search, latent = exp / "table-ssl" / "search" / rows[2].removesuffix("-pass1"), "plan.yaml.search/latent.mpq"
    float_am, learned = (read_model_file(file).state_dict() for file in (exp / "am" / "model.mpq", search / latent))
    for name, weight in float_am.items():
        if weight.dim() > 1:
            assert torch.equal(learned[name], weight) == name.startswith("feature_extractor."), name
    models = {row: read_model_file(exp / "table-ssl" / "quant" / row / "model.mpq") for row in rows[1:]}
    assert [model.extra["train"] for model in models.values()] == ["ste", "none"]
    assert dict(models[rows[2]].plan.bits) == dict(read_plan(search / "plan.yaml").bits)
    for row in rows[1:]:
        assert "smaller than float32, CTC loss " in (exp / "log" / f"stage8.{row}.log").read_text()
    results = [row for _, row in read_jsonl(exp / "table-ssl" / "results.jsonl") if row["set"] == "test-clean"]
    assert [row["system"] for row in results] == rows
    assert results[0]["bits"] == 32 and results[1]["bits"] == 4 and 2 < results[2]["bits"] <= 3.5
    assert all("p_float32" in row for row in results[1:])
