"""Checkpoints in their published formats, made here: outputs are torchaudio's, wrong ones are named in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchaudio
from torch import Tensor

from mpq.am import Wav2Vec2Config, make_am, save_am
from mpq.am.checkpoint import Checkpoint, find_checkpoint, initial_am, read_checkpoint
from mpq.cli._options import am_config
from mpq.io import BadInput
from mpq.quant import BitPlan, quantize_model, save_model

LETTERS = list(torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H.get_labels()[1:])
SMALL: dict[str, Any] = {
    "conv_channels": [8, 12, 12], "conv_kernels": [10, 8, 8], "conv_strides": [5, 8, 8], "dim": 16, "layers": 2,
    "heads": 2, "feed_forward": 24, "position_kernel": 6, "position_groups": 4,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"conv_norm": "group_norm", "conv_bias": False, "norm_first": False, "normalize": False},
    "hubert": {"conv_norm": "layer_norm", "conv_bias": True, "norm_first": True, "normalize": True},
}
CONV = ("channels", "kernels", "strides")
WAVE = torch.randn(1, 60, 160, generator=torch.Generator().manual_seed(5))


def theirs(kind: str, n_outputs: int | None = 32) -> torchaudio.models.Wav2Vec2Model:
    """A small model of torchaudio's, by default with a classifier as fairseq's dictionary of letters has it."""
    torch.manual_seed(3)
    size = {**SMALL, **KINDS[kind]}
    return torchaudio.models.wav2vec2_model(
        size["conv_norm"], list(zip(*(size[f"conv_{part}"] for part in CONV), strict=True)),
        size["conv_bias"], size["dim"], 0.0, size["position_kernel"], size["position_groups"], size["layers"],
        size["heads"], 0.0, size["feed_forward"], 0.0, 0.0, size["norm_first"], 0.0, n_outputs,
    ).eval()  # fmt: skip


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the positional convolution's weight as torch called them before 2.0, and as files have them."""
    parts = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in parts.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return state


def write_hugging_face(folder: Path, kind: str, prefix: str | None = None, **config: Any) -> Path:
    """A fine-tuned model as transformers saves it: its names of tensors, config.json, vocab.json."""
    folder.mkdir()
    tensors = {}
    for name, tensor in old_names(theirs(kind).state_dict()).items():
        if name.startswith("aux."):
            tensors[name.replace("aux.", "lm_head.")] = tensor
            continue
        name = name.replace("encoder.feature_projection.", "feature_projection.").replace(
            "encoder.transformer.", "encoder."
        )
        tensors[f"{f'{kind}.' if prefix is None else prefix}{name}"] = tensor
    tensors[f"{f'{kind}.' if prefix is None else prefix}masked_spec_embed"] = torch.arange(16.0)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    size = {**SMALL, **KINDS[kind]}
    content = {
        "model_type": kind, "conv_dim": size["conv_channels"], "conv_kernel": size["conv_kernels"],
        "conv_stride": size["conv_strides"], "conv_bias": size["conv_bias"], "hidden_size": size["dim"],
        "feat_extract_norm": size["conv_norm"].removesuffix("_norm"), "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"], "intermediate_size": size["feed_forward"],
        "num_conv_pos_embeddings": size["position_kernel"], "num_conv_pos_embedding_groups": size["position_groups"],
        "do_stable_layer_norm": size["norm_first"], "pad_token_id": 0, "vocab_size": 32, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content))
    names = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": size["normalize"]}))
    return folder


def expected(kind: str) -> Tensor:
    """What torchaudio's bundle of such a model gives: log-probabilities of the blank and the letters."""
    samples = WAVE.flatten(1)
    if KINDS[kind]["normalize"]:
        samples = torch.nn.functional.layer_norm(samples, samples.shape)
    with torch.no_grad():
        logits, _ = theirs(kind)(samples)
    return logits[..., [0, *range(4, 32)]].log_softmax(-1)


def outputs(checkpoint: Checkpoint, **options: Any) -> Tensor:
    """What the model made of it gives."""
    model = initial_am(am_config(options, checkpoint), checkpoint.labels, checkpoint).eval()
    with torch.no_grad():
        log_probs: Tensor = model(WAVE, torch.tensor([60]))[0]
    return log_probs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["old", "new"])
def test_files_of_torchaudios_format(kind: str, names: str, tmp_path: Path) -> None:
    state = theirs(kind).state_dict()
    torch.save(old_names(state) if names == "old" else state, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert checkpoint.labels == LETTERS
    assert torch.allclose(outputs(checkpoint, arch=kind, **SMALL, **KINDS[kind]), expected(kind), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", [None, ""])
def test_folders_of_the_hugging_face_format(kind: str, prefix: str | None, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_hugging_face(tmp_path / "hf", kind, prefix))
    assert checkpoint.labels == LETTERS and checkpoint.options["arch"] == kind
    assert torch.allclose(outputs(checkpoint), expected(kind), atol=1e-5)
    assert torch.equal(checkpoint.tensors["mask_embedding"], torch.arange(16.0))
    torch.save(
        safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "hf" / "pytorch_model.bin"
    )
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert torch.equal(outputs(read_checkpoint(tmp_path / "hf")), outputs(checkpoint))


def test_a_blank_that_is_not_the_first_unit(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path / "hf", "hubert", pad_token_id=31)
    names = [*LETTERS, "<unk>", "<s>", "</s>", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.labels == LETTERS
    rows = safetensors.torch.load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(checkpoint.tensors["output.weight"], rows[[31, *range(28)]])


def test_bundles_come_from_torch_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        BadInput, match=r"hubert_fairseq_large_ll60k.pth: no such file: run torchaudio.pipelines.HUBERT_LARGE"
    ):
        find_checkpoint("HUBERT_LARGE")
    place = tmp_path / "hub" / "checkpoints" / "hubert_fairseq_large_ll60k_asr_ls960.pth"
    place.parent.mkdir(parents=True)
    torch.save(theirs("hubert").state_dict(), place)
    checkpoint = read_checkpoint("HUBERT_ASR_LARGE")
    config = am_config({}, checkpoint)
    assert isinstance(config, Wav2Vec2Config) and config.normalize and config.norm_first
    assert (config.dim, config.layers, config.heads, config.conv_kernels[0]) == (1024, 24, 16, 10)
    assert am_config({"layers": 3, "mask_prob": 0.1}, checkpoint) != config
    assert checkpoint.labels == LETTERS


def test_other_units_get_a_fresh_classifier(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_hugging_face(tmp_path / "hf", "wav2vec2"))
    model = initial_am(am_config({}, checkpoint), ["a", "b"], checkpoint)
    assert model.output.weight.shape == (3, 16)
    same = initial_am(am_config({}, checkpoint), LETTERS, checkpoint)
    extractor = "feature_extractor.conv_layers.1.conv.weight"
    assert torch.equal(model.state_dict()[extractor], same.state_dict()[extractor])


def test_models_of_this_project(tmp_path: Path) -> None:
    model = make_am(Wav2Vec2Config(**SMALL), 3).eval()
    save_am(tmp_path / "model.mpq", model, ["a", "b"])
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.labels == ["a", "b"]
    assert torch.equal(outputs(checkpoint, mask_prob=0.3), model(WAVE, torch.tensor([60]))[0])


def broken(tensors: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    first = "encoder.transformer.layers.0.attention.k_proj.weight"
    if how == "lacks":
        return {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    if how == "unknown":
        return {**tensors, "encoder.transformer.rel_attn_embed.weight": torch.zeros(3)}
    if how == "damaged":
        return {**tensors, first: torch.full((16, 16), torch.nan)}
    return {**tensors, first: torch.zeros(4, 4)}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("lacks", r"it lacks encoder.transformer.layers.1.attention.k_proj.weight; .* and 13 more; set arch"),
        ("unknown", r"the model has no encoder.transformer.rel_attn_embed.weight; set arch"),
        ("shape", r"layers.0.attention.k_proj.weight is \(4, 4\), expected \(16, 16\); set arch"),
        ("damaged", r"model.pth: encoder.*k_proj.weight holds NaN or infinity; fetch the file again"),
    ],
)
def test_checkpoints_of_another_architecture(how: str, says: str, tmp_path: Path) -> None:
    torch.save(broken(theirs("hubert").state_dict(), how), tmp_path / "model.pth")
    with pytest.raises(BadInput, match=says):
        outputs(read_checkpoint(tmp_path / "model.pth"), arch="hubert", **SMALL, **KINDS["hubert"])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "wavlm"}, "config.json: model_type: 'wavlm'; expected wav2vec2 or hubert"),
        ({"add_adapter": True}, "add_adapter: True; models with this are not supported"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu'"),
    ],
)
def test_configurations_of_other_models(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        read_checkpoint(write_hugging_face(tmp_path / "hf", "hubert", **config))


def test_a_configuration_without_sizes_and_a_short_vocabulary(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path / "hf", "hubert")
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 40}))
    with pytest.raises(BadInput, match=r"32 outputs, but .*vocab.json numbers up to 40"):
        read_checkpoint(folder)
    (folder / "config.json").write_text('{"model_type": "hubert"}')
    with pytest.raises(BadInput, match=r"config.json: lacks 'hidden_size'"):
        read_checkpoint(folder)


class Trap:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path("/").joinpath, ("trap",))


@pytest.mark.parametrize("content", [Trap(), {"epoch": 3}, {}, [1]])
def test_files_that_hold_more_than_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(BadInput, match=r"model.pth: not a file of tensors only \("):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(BadInput, match=f"{name}: not a file of tensors only"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"enough bytes, but of no pickle"])
def test_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(BadInput, match=r"model.pth: not a file of tensors only \(empty, broken or something else\)"):
        read_checkpoint(tmp_path / "model.pth")


def test_unknown_names_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--checkpoint HUBERT_HUGE: neither a file or folder nor a bundle"):
        read_checkpoint("HUBERT_HUGE")
    with pytest.raises(BadInput, match=r"holds none of model.safetensors"):
        read_checkpoint(tmp_path)
    save_model(tmp_path / "lm.mpq", torch.nn.Linear(2, 2), "lstm", {}, BitPlan({"weight": 32}), "")
    with pytest.raises(BadInput, match=r"lm.mpq: holds a lstm model; expected an acoustic model"):
        read_checkpoint(tmp_path / "lm.mpq")
    plan = BitPlan({"0.weight": 4})
    packed = quantize_model(torch.nn.Sequential(torch.nn.Linear(8, 2)), plan)
    save_model(tmp_path / "packed.mpq", packed, "tdnn", {}, plan, "")
    with pytest.raises(BadInput, match=r"packed.mpq: is quantized already"):
        read_checkpoint(tmp_path / "packed.mpq")
    torch.save(theirs("hubert").state_dict(), tmp_path / "model.pth")
    with pytest.raises(BadInput, match=r"model.pth: does not tell its size; give it, such as --model.arch"):
        am_config({}, read_checkpoint(tmp_path / "model.pth"))
    checkpoint = read_checkpoint(write_hugging_face(tmp_path / "hf", "wav2vec2"))
    with pytest.raises(BadInput, match="a wav2vec2 model, but model: arch is hubert; leave arch out"):
        am_config({"arch": "hubert-large"}, checkpoint)
