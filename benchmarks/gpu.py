"""Training steps, LF-MMI and language models on a GPU; JSON lines.

`train`: one step of the recipes' own configurations (`egs/RECIPE/conf`), with the loop, task and loss that `mpq
train-am`, `train-lm` and `quantize` run, float (precision `auto`) and quantized to 4 bits with a float teacher.
Features and transcripts are random, of plausible lengths; the batches are planned as in training. `hours_per_hour` is
speech over time without loading and validation; `lfmmi_share` is path sums' part of the step, measured in steps of
their own.
`lfmmi`: loss and gradient on the device, there without our kernels (`plain`), and on the CPU with one thread.
`forward`: log-probabilities of a batch of sentences by 2-bit models, packed and as int8, against the same network in
float32 and in bfloat16 on the same device; `mb` is what the model holds there.

    python benchmarks/gpu.py                          # needs a GPU
    python benchmarks/gpu.py --device cpu --small     # whether it runs
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from timing import medians
from torch import Tensor, nn

from mpq.am import AcousticModel
from mpq.cli._options import am_config
from mpq.data.batches import IVECTOR_PERIOD, FeatureSet
from mpq.data.lmtext import LmBatch, pad_sentences
from mpq.fst import recursion
from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import native_path_sums
from mpq.fst.phone_lm import PhoneNgram, apply_phone_ngram, estimate_phone_ngram
from mpq.fst.units import Units
from mpq.lang.lexicon import Lexicon
from mpq.lm import LmConfig, build_lm
from mpq.quant import freeze, quantize_model, uniform_plan
from mpq.train import loop
from mpq.train.am import AmConfig, AmTask
from mpq.train.lm import LmTask
from mpq.train.loop import FitConfig, Task
from mpq.train.quant_am import AmData, QuantAmConfig, QuantAmTask, without_dropout

EGS = Path(__file__).resolve().parents[1] / "egs"
MB = 1 << 20
RECIPES = [  # recipe, its file, kinds of units, seconds of an utterance (median), units a second
    ("swbd", "am.yaml", 45, 3.5, 12.0),
    ("ami", "am.yaml", 45, 2.5, 12.0),
    ("librispeech", "am.yaml", 500, 12.0, 4.5),
    ("librispeech", "am_ssl.yaml", 40, 12.0, 12.0),
]
LMS = [("swbd", "lstm.yaml", 30_000), ("swbd", "transformer.yaml", 30_000)]
PAPERS = [LmConfig("lstm", 1024, 2), LmConfig("transformer", 512, 6, heads=8, dim_ff=4096)]
HELD = ("float32", "bfloat16", "int8", "packed")
GRAPHS = [(45, 2), (500, 2), (45, 4)]  # kinds of units, and order of the denominator's n-gram model


class RandomFeatures(FeatureSet):
    """A set of noise with transcripts of random words."""

    def __init__(self, config: AmConfig, lexicon: Lexicon, seconds: float, rate: float, n_frames: int) -> None:
        rng = np.random.default_rng(0)
        self.path = "random"
        self.is_waveform = config.model.__class__.__name__ in ("Wav2Vec2Config", "HubertConfig")
        self.normalization = "none" if self.is_waveform else config.normalization
        lengths = np.clip(100 * seconds * rng.lognormal(0.0, 0.6, n_frames), 40, 1600).astype(np.int64)
        self.lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), n_frames)) + 1]
        self.n_features = 160 if self.is_waveform else config.model.feature_dim
        self.ivector_dim = getattr(config.model, "ivector_dim", 0)
        self.utts = [f"u{i}" for i in range(len(self.lengths))]
        self.speakers = [f"s{i // 50}" for i in range(len(self.lengths))]
        self.n_without_speaker = 0
        words = [lexicon.words[i] for i in rng.integers(len(lexicon), size=5000)]
        sizes = [len(lexicon.pronunciations(word)[0]) for word in words]
        n_words = np.maximum(1, self.lengths / 100 * rate / np.mean(sizes)).astype(int)
        self._texts = [" ".join(rng.choice(words, n)) for n in n_words]
        self.has_texts, self._left_out, self.sampling_rate = True, [], 16000
        self._noise = rng.standard_normal((2000, self.n_features), dtype=np.float32)

    def load(self, index: int) -> NDArray[np.float32]:
        return self._noise[: self.lengths[index]]

    def _ivectors(self, indexes: Any) -> Tensor:
        longest = int(self.lengths[list(indexes)].max())
        return torch.randn(len(indexes), -(-longest // IVECTOR_PERIOD), self.ivector_dim)


def random_lexicon(n_phones: int) -> Lexicon:
    """2000 words of so many kinds of phones, or of pieces, of which a word has fewer."""
    rng, phones = np.random.default_rng(1), [f"p{i}" for i in range(n_phones)]
    mean = 3.0 if n_phones < 100 else 0.7
    entries = {f"w{i}": [[str(p) for p in rng.choice(phones, 1 + rng.poisson(mean))]] for i in range(2000)}
    return Lexicon(entries, phones)


def settle(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time on the clock until the device is done."""
    settle(device)
    begin = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begin


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median of some turns after one that warms up, each until the device is done."""
    return medians([lambda: (work(), settle(device))], repeats)[0][0]


def measure_steps(task: Task, config: FitConfig, batches: list[Any], device: torch.device) -> dict[str, Any]:
    """Seconds of a step over the batches, after as many that warm up, and the peak of memory."""
    fabric = loop._fabric(config)
    optimizer = torch.optim.AdamW(loop._groups(task.model, config), lr=1e-5)
    model, wrapped = fabric.setup(task.model, optimizer)
    task.model.train()
    plugins = getattr(task, "plugins", [])
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def step(batch: Any) -> None:
        loop._step(task, fabric, model, wrapped, batch, 9, 10, config, plugins)  # nine tenths are done

    for batch in batches:
        step(batch)
    taken = [seconds_of(lambda batch=batch: step(batch), device) for batch in batches]  # type: ignore[misc]
    peak = torch.cuda.max_memory_allocated() / MB if device.type == "cuda" else 0.0
    found: dict[str, Any] = {"step_seconds": round(float(np.mean(taken)), 4), "peak_mb": round(peak)}
    if isinstance(task, AmTask):
        spent = 0.0
        sums = task._path_sums

        def timed(*args: Any) -> tuple[Tensor, Tensor]:
            nonlocal spent
            settle(device)
            begin = time.perf_counter()
            result = sums(*args)
            settle(device)
            spent += time.perf_counter() - begin
            return result

        task._path_sums = timed
        for batch in batches:
            step(batch)
        found["lfmmi_share"] = round(spent / sum(taken), 3)
    return found


def acoustic_lines(
    args: argparse.Namespace, recipe: str, name: str, n_phones: int, seconds: float, rate: float
) -> Iterator[dict[str, Any]]:
    """Steps of a recipe's acoustic model."""
    settings = yaml.safe_load((EGS / recipe / "conf" / name).read_text())
    if args.small:
        settings["max_frames"] = 600
    model = {"arch": "wav2vec2-base", **settings["model"]} if name == "am_ssl.yaml" else settings["model"]
    fit = FitConfig(**settings["fit"])
    size = am_config(shrink(model) if args.small else model)
    config = AmConfig(**{**settings, "model": size, "fit": fit, "epoch_part": 1.0})
    lexicon = random_lexicon(n_phones)
    units = Units(lexicon.phones)
    data = RandomFeatures(config, lexicon, seconds, rate, (args.steps + 1) * config.max_frames)
    task = AmTask(config, data, data, lexicon, units)
    batches = list(task.batches(0))[: args.steps]
    speech = sum(float(batch.lengths.sum()) for batch in batches) / 100 / len(batches)
    about = {
        "benchmark": "train", "recipe": recipe, "config": name, "model": config.model.__class__.__name__,
        "parameters": sum(p.numel() for p in task.acoustic.parameters()), "batch_seconds": round(speech, 1),
        "batch": list(batches[0].features.shape), "denominator_states": len(task.denominator.state_form.label),
        "denominator_arcs": len(task.denominator.state_form.src),
    }  # fmt: skip
    yield line(about, "float", measure_steps(task, fit, batches, args.device), speech)
    found = measure_steps(quantized_task(task, config, data), fit, batches, args.device)
    yield line(about, "4-bit", found, speech)
    del task


def quantized_task(task: AmTask, config: AmConfig, data: FeatureSet) -> QuantAmTask:
    """The same model on 4 bits with the float one as its teacher."""
    teacher: AcousticModel = task.acoustic
    student = without_dropout(teacher)
    student.load_state_dict(teacher.state_dict())
    options = QuantAmConfig(fit=config.fit, max_frames=config.max_frames, augment=False)
    quantize_model(student, uniform_plan(student, 4))
    return QuantAmTask(options, AmData(data, data, task.lexicon, task.units), student, teacher)


def line(about: dict[str, Any], weights: str, found: dict[str, Any], speech: float) -> dict[str, Any]:
    """What is printed of a model's steps."""
    return {**about, "weights": weights, **found, "hours_per_hour": round(speech / found["step_seconds"])}


def shrink(model: dict[str, Any]) -> dict[str, Any]:
    """A model of the same kind that a CPU can train in seconds."""
    small = {"dim": 32, "heads": 2, "feed_forward": 32, "layers": 1, "hidden": 32, "bottleneck": 8,
             "first_bottleneck": 8, "prefinal": 8, "channels": [4] * 6, "strides": [1],
             "conv_channels": [8] * 7}  # fmt: skip
    size = {name: value for name, value in small.items() if name in model}
    return {**model, **(small_ssl(small) if "wav2vec2" in model["arch"] else size)}


def small_ssl(small: dict[str, Any]) -> dict[str, Any]:
    """What a wav2vec 2.0 takes of it."""
    return {name: small[name] for name in ("dim", "heads", "feed_forward", "layers", "conv_channels")}


def lm_batches(n_units: int, n_tokens: int, n_batches: int) -> list[LmBatch]:
    """Sentences of about 13 units, of similar lengths in each batch as training has them."""
    rng = np.random.default_rng(0)
    made = []
    for length in rng.integers(6, 24, n_batches).tolist():
        made.append(pad_sentences(rng.integers(3, n_units, (n_tokens // length, length - 1)).tolist(), 1, 2))
    return made


def language_lines(args: argparse.Namespace, recipe: str, name: str, n_units: int) -> Iterator[dict[str, Any]]:
    """Steps of a recipe's language model."""
    settings = yaml.safe_load((EGS / recipe / "conf" / name).read_text())
    if args.small:
        n_units, settings["batch_tokens"] = 300, 128
        settings["model"].update(dim=32, layers=1)
    config, fit, n_tokens = LmConfig(**settings["model"]), FitConfig(**settings["fit"]), settings["batch_tokens"]
    batches = lm_batches(n_units, n_tokens, args.steps)
    words = sum(int(batch.mask.sum()) for batch in batches) / len(batches)
    texts: Any = SimpleNamespace(train=SimpleNamespace(n_batches=lambda _: 10))
    teacher = build_lm(config, n_units)
    student = build_lm(replace(config, dropout=0.0), n_units)
    quantize_model(student, uniform_plan(student, 4))
    tasks = {"float": LmTask("float", teacher, texts, n_tokens, 1)}
    tasks["4-bit"] = LmTask("4-bit", student, texts, n_tokens, 1, teacher, 0.5)
    for weights, task in tasks.items():
        found = measure_steps(task, fit, batches, args.device)
        yield {
            "benchmark": "train", "recipe": recipe, "config": name, "model": config.arch, "weights": weights,
            "units": n_units, "parameters": sum(p.numel() for p in teacher.parameters()), **found,
            "units_per_second": round(words / found["step_seconds"]),
        }  # fmt: skip


def random_phone_lm(n_phones: int, order: int) -> tuple[PhoneNgram, list[list[int]]]:
    """A model of random sentences of the words of a lexicon, and the sentences."""
    rng, lexicon = np.random.default_rng(2), random_lexicon(n_phones)
    said = [rng.choice(lexicon.words[:300], 12) for _ in range(2000 if order < 4 else 300)]
    sentences = [[p for word in words for p in lexicon.pronunciations(str(word))[0]] for words in said]
    return estimate_phone_ngram(sentences, n_phones, order, smooth=order < 4), sentences


def lfmmi_lines(args: argparse.Namespace, n_phones: int, order: int) -> Iterator[dict[str, Any]]:
    """Path sums alone."""
    n_utts, n_frames = (2, 100) if args.small else (16, 300)
    phone_lm, sentences = random_phone_lm(n_phones, order)
    denominator = ctc_graph(phone_lm.fsa)
    graphs = [ctc_graph(apply_phone_ngram(pronunciation_graph([[s]]), phone_lm)) for s in sentences[:n_utts]]
    frames = torch.randn(n_utts, n_frames, n_phones + 1).log_softmax(-1)
    lengths = torch.full((n_utts,), n_frames)

    def sums(place: torch.device, which: Fsa | list[Fsa], frames: Tensor = frames, lengths: Tensor = lengths) -> Any:
        there, many = frames.to(place), lengths.to(place)
        return lambda: native_path_sums(there, many, which)

    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    parts: dict[str, Fsa | list[Fsa]] = {"denominator": denominator, "numerators": graphs}
    here = {name: seconds_of(sums(cpu, which), cpu) for name, which in parts.items()}
    there = {name: median_seconds(sums(args.device, which), args.device, 3) for name, which in parts.items()}
    with mock.patch.object(recursion, "kernels", lambda _: None):
        plain = {name: median_seconds(sums(args.device, which), args.device, 1) for name, which in parts.items()}
    yield {
        "benchmark": "lfmmi", "units": n_phones, "order": order, "states": len(denominator.state_form.label),
        "arcs": len(denominator.state_form.src), "utts": n_utts, "frames": n_frames,
        **{f"{name}_seconds": round(value, 4) for name, value in there.items()},
        **{f"{name}_plain_seconds": round(value, 4) for name, value in plain.items()},
        **{f"{name}_cpu_seconds": round(value, 4) for name, value in here.items()},
        "speedup": round(sum(here.values()) / sum(there.values()), 1),
    }  # fmt: skip


def held_mb(model: nn.Module) -> float:
    """Memory of a model's tensors."""
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    return round(sum(held.values()) / MB, 1)


@torch.no_grad()
def forward_lines(args: argparse.Namespace, config: LmConfig, held: str) -> Iterator[dict[str, Any]]:
    """A language model of the papers' size."""
    n_units, n_sentences = 30_000, 500
    if args.small:
        config, n_units, n_sentences = replace(config, dim=64, layers=1), 1000, 20
    torch.manual_seed(0)
    model = build_lm(config, n_units).eval()
    batch = pad_sentences(torch.randint(3, n_units, (n_sentences, 19)).tolist(), 1, 2).to(args.device)
    if held in ("int8", "packed"):
        quantize_model(model.to(args.device), uniform_plan(model, 2))
        freeze(model, packed=held == "packed").eval()
    model.to(args.device, torch.bfloat16 if held == "bfloat16" else None)
    seconds = median_seconds(lambda: model.log_probs(batch), args.device, args.steps)
    yield {
        "benchmark": "forward", "arch": config.arch, "dim": config.dim, "layers": config.layers,
        "units": n_units, "weights": held, "seconds": round(seconds, 5), "mb": held_mb(model),
        "units_per_second": round(20 * n_sentences / seconds),
    }  # fmt: skip


PARTS: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], list[tuple[Any, ...]]]] = {
    "lfmmi": (lfmmi_lines, GRAPHS),
    "forward": (forward_lines, [(config, held) for config in PAPERS for held in HELD]),
    "lm": (language_lines, LMS),
    "am": (acoustic_lines, RECIPES),
}


def main() -> None:
    """Print a JSON line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small models and batches: does it run?")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--steps", type=int, default=4, help="training steps, of which the mean counts")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # training takes a GPU that it sees
    args.device = torch.device(args.device)
    gpu = torch.cuda.get_device_name() if args.device.type == "cuda" else "none"
    print(json.dumps({"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda}), flush=True)
    for part in args.parts:
        measure, cases = PARTS[part]
        for case in cases:
            try:
                for found in measure(args, *case):
                    print(json.dumps(found), flush=True)
            except RuntimeError as error:  # such as too little memory: the others can still be measured
                print(json.dumps({"benchmark": part, "case": str(case), "error": str(error)[:300]}), flush=True)


if __name__ == "__main__":
    main()
