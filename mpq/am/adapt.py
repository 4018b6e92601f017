"""Unsupervised adaptation to the speakers of a test set by LHUC, on what a first pass recognized.

Learning hidden unit contributions (Swietojanski and Renals 2014; Swietojanski, Li and Renals 2016): each speaker has
an amplitude `2 sigmoid(r)` for every hidden unit, and r alone is learned, from r = 0. The criterion is
lattice-free MMI, as in training: CTC would be the numerator alone, which is not what the model was trained for.
The numerator is the first pass's n-best list as a whole, each hypothesis weighted by its
language model score, so that words the first pass was unsure of pull less (Klejch et al. 2019,
"Lattice-based unsupervised test-time adaptation of neural network acoustic models").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from mpq.am.base import AcousticModel
from mpq.am.model import run_batch
from mpq.data.batches import FeatureSet
from mpq.data.parallel import map_processes
from mpq.fst.fsa import Fsa, ctc_graph, pronunciation_graph
from mpq.fst.lfmmi import PathSums, lfmmi_loss, native_path_sums
from mpq.fst.phone_lm import PhoneLmConfig, PhoneNgram, apply_phone_ngram
from mpq.fst.units import Units
from mpq.io import BadInput, Hyp, PathLike, atomic_write, check_ranges, progress, read_nbest
from mpq.lang.lexicon import Lexicon


@dataclass
class LhucConfig(PhoneLmConfig):
    """How to adapt.

    Attributes:
        steps: optimizer steps for each speaker; each sees one batch of the speaker's utterances.
        lr: learning rate of Adam.
        decay: weight of the squared logits, which holds amplitudes near 1.
        hyps: hypotheses of the first pass that supervise; 1: only the best.
        lm_scale: weight of the language model's scores among them.
        max_frames: frames (10 ms) of a batch, padding included.
    """

    steps: int = 5
    lr: float = 0.02
    decay: float = 1e-4
    hyps: int = 10
    lm_scale: float = 1.0
    max_frames: int = 6000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, steps="[1, inf)", lr="(0, inf)", decay="[0, inf)", hyps="[1, inf)", lm_scale="[0, inf)")
        check_ranges(self, max_frames="[1, inf)")


@dataclass(frozen=True)
class _Job:
    """What every process needs; set before processes are forked."""

    model: AcousticModel
    features: FeatureSet
    supervision: Mapping[str, Fsa]
    denominator: Fsa
    config: LhucConfig
    path_sums: PathSums


_jobs: list[_Job] = []


def read_supervision(
    path: PathLike, lexicon: Lexicon, units: Units, phone_lm: PhoneNgram, config: LhucConfig
) -> dict[str, Fsa]:
    """What a first pass's n-best file says, by utterance; those where it recognized no words are left out."""
    return {
        nbest.utt: supervision_graph(nbest.hyps[: config.hyps], lexicon, units, phone_lm, config.lm_scale)
        for nbest in read_nbest(path)
        if nbest.hyps[0].text
    }


def recognized(path: PathLike, n_hyps: int) -> list[str]:
    """What the best hypotheses of a first pass's n-best file say."""
    return [hyp.text for nbest in read_nbest(path) for hyp in nbest.hyps[:n_hyps]]


def save_logits(path: PathLike, logits: Mapping[str, Tensor], key: str) -> None:
    """Writes LHUC logits by speaker; `key` identifies everything they depend on."""
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save({name: r.contiguous() for name, r in logits.items()}, {"key": key}))


def load_logits(path: PathLike, key: str) -> dict[str, Tensor] | None:
    """Reads what `save_logits` wrote under the same key; None: there is nothing of that key."""
    if not Path(path).exists():
        return None
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping


def check_speakers(features: FeatureSet) -> None:
    """See that utterances have speakers to adapt to.

    Raises:
        BadInput: some have none.
    """
    if features.n_without_speaker:
        raise BadInput(
            f"{features.path}: {features.n_without_speaker} of {len(features)} utterances have no speaker; LHUC "
            "adapts to speakers: give them to the supervisions of the manifest, or leave LHUC out"
        )


def supervision_graph(
    hyps: Sequence[Hyp], lexicon: Lexicon, units: Units, phone_lm: PhoneNgram, lm_scale: float
) -> Fsa:
    """Frame-level acceptor of all pronunciations of some hypotheses.

    It is weighted by their language model scores times `lm_scale`, and by the phone n-gram model, as the denominator.
    """
    arcs: list[tuple[int, int, int, float]] = []
    final: dict[int, float] = {}
    n_states = 1
    for hyp in hyps:
        one = pronunciation_graph([lexicon.pronunciations(word) for word in hyp.text.split()])
        weight = lm_scale * hyp.lm
        # The start states are joined: nothing enters them.
        numbers = np.arange(n_states - 1, n_states - 1 + len(one.final))
        numbers[one.start] = 0
        n_states += len(one.final) - 1
        for src, dst, label in zip(one.src.tolist(), one.dst.tolist(), one.label.tolist(), strict=True):
            arcs.append((int(numbers[src]), int(numbers[dst]), label, weight if src == one.start else 0.0))
        for end in np.flatnonzero(one.final > -np.inf).tolist():
            final[int(numbers[end])] = weight if end == one.start else 0.0
    phones = Fsa.from_arcs(arcs, final, n_states)
    return ctc_graph(units.expand(apply_phone_ngram(phones, phone_lm)))


def adapt(
    model: AcousticModel,
    features: FeatureSet,
    supervision: Mapping[str, Fsa],
    denominator: Fsa,
    config: LhucConfig,
    nj: int,
    path_sums: PathSums = native_path_sums,
) -> dict[str, Tensor]:
    """LHUC logits `(layers, units)` of every speaker of a set.

    Args:
        model: the unadapted model; it is not changed.
        features: the utterances.
        supervision: numerators by utterance; those without are not adapted to.
        denominator: acceptor of everything that can be said.
        config: how to adapt.
        nj: number of processes; it does not change the result.
        path_sums: what computes LF-MMI.

    Raises:
        BadInput: utterances without a speaker.
    """
    check_speakers(features)
    speakers = sorted(set(features.speakers))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes are the parallelism, and sums keep their order
    _jobs[:] = [_Job(model.eval(), features, supervision, denominator, config, path_sums)]
    try:
        nj = 1 if next(model.parameters()).is_cuda else nj  # forked processes cannot use a GPU
        logits = progress(map_processes(_adapt_speaker, speakers, nj), len(speakers), "adapt (speakers)")
        return dict(zip(speakers, map(torch.from_numpy, logits), strict=True))
    finally:
        _jobs.clear()
        torch.set_num_threads(threads)


def _adapt_speaker(speaker: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    (job,) = _jobs
    features, config = job.features, job.config
    indexes = [
        index
        for index, name in enumerate(features.speakers)
        if name == speaker and features.utts[index] in job.supervision
    ]
    logits = torch.zeros(job.model.lhuc_shape, device=next(job.model.parameters()).device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=config.lr)
    groups = _group(indexes, features, config.max_frames)
    for step in range(config.steps if groups else 0):
        batch = features.batch(groups[step % len(groups)])
        log_probs, lengths = run_batch(job.model, batch, {speaker: logits})
        graphs = [job.supervision[utt] for utt in batch.utts]
        losses = lfmmi_loss(log_probs, lengths, graphs, job.denominator, path_sums=job.path_sums)
        loss = losses.sum() / lengths.sum()
        (logits.grad,) = torch.autograd.grad(loss + config.decay * logits.square().sum(), logits)
        optimizer.step()
    return logits.detach().cpu().numpy()


def _group(indexes: Sequence[int], features: FeatureSet, max_frames: int) -> list[list[int]]:
    """Utterances in their order, as batches of at most `max_frames` padded frames."""
    groups: list[list[int]] = []
    longest = 0
    for index in indexes:
        longest = max(longest, int(features.lengths[index]))
        if groups and longest * (len(groups[-1]) + 1) <= max_frames:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = int(features.lengths[index])
    return groups
