"""Packed model files: same numbers after loading, no more bytes than promised, and no damage unnoticed."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mpq.io import BadInput
from mpq.quant import (
    BitPlan,
    load_weights_into,
    quantizable,
    quantize_model,
    quantized_weights,
    read_model_file,
    save_model,
    uniform_plan,
    without_numbers,
)
from mpq.quant.report import describe, render
from tests.quant.quant_models import TinyLm

PLANS: list[dict[str, Any]] = [
    {"n_bits": 1, "scale": "matrix"},
    {"n_bits": 2, "scale": "row"},
    {"n_bits": 3, "scale": 8, "table": "pow2"},
    {"n_bits": 7, "scale": "row"},
    {"n_bits": 8, "scale": 4, "a_bits": 32},
    {"n_bits": 2, "scale": 4, "table": "asym", "a_bits": 4, "clipping": "none"},
    {"n_bits": 8, "scale": "matrix", "table": "asym"},
    {"n_bits": 32},
]
WORDS = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))


def mixed_plan(model: nn.Module) -> BitPlan:
    """Float, layer-level and node-level bits in one model."""
    bits: dict[str, int | tuple[int, ...]] = dict.fromkeys(quantizable(model), 4)
    bits["lstm.weight_hh_l1"] = 32
    bits["output.weight"] = bits["embed.weight"] = tuple(1 + row % 8 for row in range(50))
    bits["lstm.weight_ih_l0"] = tuple(1 + row % 3 for row in range(64))
    return BitPlan(bits, method="kl", budget=4.0, cost=0.5)


def save(path: Path, model: nn.Module, plan: BitPlan) -> None:
    save_model(path, model, "tiny", {"size": 16}, plan, "abc", {"ppl": 12.5})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", [*PLANS, None], ids=lambda s: "-".join(map(str, s.values())) if s else "mixed")
def test_a_loaded_model_gives_the_same_numbers(
    settings: dict[str, Any] | None, packed: bool, tied: bool, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    model = TinyLm(tied=tied).eval()
    if settings:
        plan = uniform_plan(model, **settings)
    else:
        plan = mixed_plan(TinyLm())
        if tied:
            plan = BitPlan({name: plan.bits[name] for name in quantizable(model)})
    quantize_model(model, plan)
    path = tmp_path / "model.mpq"
    save(path, model, plan)
    model_file = read_model_file(path)
    assert (model_file.arch, model_file.config, model_file.vocab_hash) == ("tiny", {"size": 16}, "abc")
    assert model_file.plan == plan and model_file.extra == {"ppl": 12.5}
    assert model_file.n_bytes == path.stat().st_size

    loaded = load_weights_into(TinyLm(tied=tied), model_file, packed)
    with without_numbers():
        built = TinyLm(tied=tied)
    assert all(parameter.is_meta for parameter in built.parameters())
    for served in (load_weights_into(built, model_file, packed), loaded):
        assert not served.training
        with torch.inference_mode():
            assert torch.equal(served(WORDS), model(WORDS))
    save(tmp_path / "again.mpq", loaded, plan)
    assert (tmp_path / "again.mpq").read_bytes() == path.read_bytes()

    floats = TinyLm(tied=tied)
    floats.load_state_dict(model_file.state_dict(), strict=not tied)
    for name, quantized in quantized_weights(model).items():
        assert torch.equal(floats.get_parameter(name), quantized.dequantize())


class Lstm(nn.Module):
    """One layer of 256 units over 1000 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        self.lstm = nn.LSTM(256, 256, batch_first=True)
        self.output = nn.Linear(256, 1000)


class Transformer(nn.Module):
    """The weights of four layers of 256 units over 1000 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        for layer in range(4):
            for name in "qkvo":
                self.add_module(f"{name}{layer}", nn.Linear(256, 256))
            self.add_module(f"up{layer}", nn.Linear(256, 1024))
            self.add_module(f"down{layer}", nn.Linear(1024, 256))
            self.add_module(f"norm{layer}", nn.LayerNorm(256))
        self.output = nn.Linear(256, 1000)


@pytest.mark.parametrize("n_bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("build", [Lstm, Transformer])
def test_files_are_no_larger_than_their_nominal_bits(build: type[nn.Module], n_bits: int, tmp_path: Path) -> None:
    model = build()
    n_weights = sum(rows * columns for rows, columns in quantizable(model).values())
    # a scale for each row is 16 bits: of 256 bits it is more than the 2 %
    plan = uniform_plan(model, n_bits, scale="matrix" if n_bits == 1 else "row")
    quantize_model(model, plan)
    save(tmp_path / "model.mpq", model, plan)
    size = (tmp_path / "model.mpq").stat().st_size
    assert size <= n_weights * n_bits / 8 * 1.02 + 64 * 1024
    if n_bits == 2:  # five levels to a byte: beyond the 16 times of two whole bits
        n_parameters = n_weights + sum(p.numel() for p in model.parameters() if p.dim() == 1)
        assert 4 * n_parameters / size > 16


def test_the_same_model_gives_the_same_bytes(tiny_lm: TinyLm, tmp_path: Path) -> None:
    plan = uniform_plan(tiny_lm, 4)
    quantize_model(tiny_lm, plan)
    save(tmp_path / "a.mpq", tiny_lm, plan)
    save(tmp_path / "b.mpq", copy.deepcopy(tiny_lm), plan)
    assert (tmp_path / "a.mpq").read_bytes() == (tmp_path / "b.mpq").read_bytes()


@pytest.fixture
def stored(tiny_lm: TinyLm, tmp_path: Path) -> Path:
    plan = mixed_plan(tiny_lm)
    quantize_model(tiny_lm, plan)
    save(tmp_path / "model.mpq", tiny_lm, plan)
    return tmp_path / "model.mpq"


def refused(path: Path) -> str:
    """The message with which a file is refused."""
    with pytest.raises(BadInput) as caught:
        read_model_file(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_every_cut_is_noticed(stored: Path) -> None:
    data = stored.read_bytes()
    lengths = {0, 1, 7, 8, 9, len(data) - 1, *random.Random(1).sample(range(len(data)), 150)}
    for length in sorted(lengths):
        stored.write_bytes(data[:length])
        refused(stored)
    stored.write_bytes(data + b"\0")
    refused(stored)


def test_every_flipped_bit_is_noticed(stored: Path) -> None:
    data = stored.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(2)
    places = [*range(64), *draw.sample(range(header), 250), *draw.sample(range(header, len(data)), 150)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        stored.write_bytes(flipped)
        refused(stored)
    stored.write_bytes(data)
    read_model_file(stored)


def forge(path: Path, **changes: Any) -> None:
    """Rewrite the metadata of a model file, with a checksum that fits."""
    from mpq.quant.file import _digest, _digest_place

    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = {**json.loads(header["__metadata__"]["mpq"]), **changes}
    header["__metadata__"]["mpq"] = json.dumps(content, separators=(",", ":"))
    raw = json.dumps(header, separators=(",", ":")).encode()
    forged = len(raw).to_bytes(8, "little") + raw + data[8 + int.from_bytes(data[:8], "little") :]
    start, end = _digest_place(forged)
    path.write_bytes(forged[:start] + _digest(forged, start, end) + forged[end:])


def test_other_versions_and_contents_are_refused(stored: Path) -> None:
    data = stored.read_bytes()
    forge(stored)
    read_model_file(stored)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"format_version": 2}, "format version 2"),
        ({"plan": None}, "TypeError"),
        ({"plan": {"bits": {"embed.weight": 9}}}, "9 bits"),
        ({"plan": {"bits": {"embed.weight": 4}}}, "no bits for"),
        ({"shapes": {"embed.weight": [50, 16]}}, "no quantizable weight"),
    ]
    for change, words in changes:
        stored.write_bytes(data)
        forge(stored, **change)
        assert words in refused(stored)
    plan = json.loads(json.dumps(read_plan_of(data)))
    plan["bits"]["embed.weight"] = 2
    stored.write_bytes(data)
    forge(stored, plan=plan)
    assert "embed.weight.codes: expected (50, 4)" in refused(stored)


def test_a_weight_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 8))
    plan = uniform_plan(model, 4)
    quantize_model(model, plan)
    save(tmp_path / "model.mpq", model, plan)
    with pytest.raises(BadInput, match=r"0\.weight is \(8, 16\), the model has \(9, 16\)"):
        load_weights_into(nn.Sequential(nn.Linear(16, 9)), read_model_file(tmp_path / "model.mpq"))


def read_plan_of(data: bytes) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    plan: dict[str, Any] = json.loads(header["__metadata__"]["mpq"])["plan"]
    return plan


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.mpq"
    assert "no such file" in refused(path)
    for data in (b"", b"hello", b"\xff" * 1000, safetensors.torch.save({"w": torch.zeros(3)})):
        path.write_bytes(data)
        assert "not an mpq model file" in refused(path)
    assert refused(tmp_path) == refused(path), "a folder is its model.mpq"
    (tmp_path / "empty").mkdir()
    assert "empty/model.mpq: no such file" in refused(tmp_path / "empty")


def test_a_file_for_another_model_is_refused(stored: Path) -> None:
    model_file = read_model_file(stored)
    for model, words in [
        (TinyLm(words=51), "50 rows, but it has 51 rows"),
        (TinyLm(size=32), "64 rows, but it has 128 rows"),
        (nn.Sequential(nn.Linear(4, 4)), "no quantizable weight"),
    ]:
        with pytest.raises(BadInput, match=words):
            load_weights_into(model, model_file)
    plain = TinyLm()
    plain.norm = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(BadInput, match=r"norm\.bias"):
        load_weights_into(plain, model_file)
    wider = TinyLm()
    wider.norm = nn.LayerNorm((1, 16))
    with pytest.raises(BadInput, match=r"norm\.weight is \(16,\), the model has \(1, 16\)"):
        load_weights_into(wider, model_file)


def test_a_model_that_is_not_the_plans_is_not_saved(tiny_lm: TinyLm, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize_model"):
        save(tmp_path / "model.mpq", tiny_lm, uniform_plan(tiny_lm, 4))
    plan = uniform_plan(tiny_lm, 4)
    quantize_model(tiny_lm, plan)
    with pytest.raises(ValueError, match="quantize_model"):
        save(tmp_path / "model.mpq", tiny_lm, uniform_plan(tiny_lm, 32))
    with torch.no_grad():
        tiny_lm.norm.weight[3] = float("nan")
    with pytest.raises(BadInput, match=r"norm\.weight holds NaN"):
        save(tmp_path / "model.mpq", tiny_lm, plan)
    assert not list(tmp_path.iterdir())


def test_nan_in_a_quantized_weight_is_not_saved(tiny_lm: TinyLm, tmp_path: Path) -> None:
    plan = uniform_plan(tiny_lm, 4)
    quantize_model(tiny_lm, plan)
    with torch.no_grad():
        tiny_lm.output.weight[2, 2] = float("nan")
    with pytest.raises(BadInput, match=r"output\.weight"):
        save(tmp_path / "model.mpq", tiny_lm, plan)


def test_buffers_are_stored(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        model.register_buffer("not_stored", torch.zeros(1), persistent=False)
        return model

    model, x = build(), torch.randn(30, 8)
    plan = uniform_plan(model, 4)
    quantize_model(model, plan)
    model(x)
    save(tmp_path / "model.mpq", model, plan)
    model_file = read_model_file(tmp_path / "model.mpq")
    assert "not_stored" not in model_file.tensors
    loaded = load_weights_into(build(), model_file)
    expected: Tensor = model.eval()(x)
    assert torch.equal(loaded(x), expected)


def test_inspect_counts_every_byte(stored: Path) -> None:
    report = json.loads(json.dumps(describe(read_model_file(stored))))
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["embed.weight"] == {
        "name": "embed.weight", "shape": [50, 16], "bits": 4.38, "codes_bytes": 438, "scale_bytes": 100
    }  # fmt: skip
    assert layers["lstm.weight_hh_l1"]["codes_bytes"] == 64 * 16 * 4
    residue = {row["name"]: row["bytes"] for row in report["residue"]}
    assert residue["norm.weight"] == 64 and residue["output.bias"] == 200
    total = report["header_bytes"] + sum(residue.values())
    total += sum(layer["codes_bytes"] + layer["scale_bytes"] for layer in report["layers"])
    assert total == report["bytes"] == stored.stat().st_size
    assert report["parameters"] == sum(parameter.numel() for parameter in TinyLm().parameters())
    assert report["ratio"] == pytest.approx(32 / report["bits_per_parameter"])
    table = render(report)
    assert all(name in table for name in [*layers, *residue])
    assert f"{report['ratio']:.2f} times" in table.splitlines()[-1]


def test_inspect_command(stored: Path, mpq_cli: Any) -> None:
    assert json.loads(mpq_cli("inspect", stored, "--json").stdout)["bytes"] == stored.stat().st_size
    stored.write_bytes(stored.read_bytes()[:-5])
    done = mpq_cli("inspect", stored)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "cut short or altered" in done.stderr
