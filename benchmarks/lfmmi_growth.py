"""How the time of LF-MMI's loss and gradient grows with arcs and with frames; JSON lines.

Each line holds this project's time and that of a peer on the same graph and batch, one thread: the peer is the
same path sum written arc by arc in plain torch (gather, add, scatter by destination, autograd).

    python benchmarks/lfmmi_growth.py     # grows arcs at 150 frames, then frames at 6,400 arcs
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mpq.fst.fsa import Fsa
from mpq.fst.lfmmi import total_score

N_UTTS, N_STATES, N_CLASSES = 8, 200, 101


def random_graph(n_states: int, n_arcs: int, seed: int = 0) -> Fsa:
    """A graph with labels on states, as CTC and HMM topologies have them."""
    rng = np.random.default_rng(seed)
    dst = np.concatenate((np.arange(n_states), rng.integers(0, n_states, n_arcs - n_states)))
    src = rng.integers(0, n_states, n_arcs)
    return Fsa(src, dst, dst % N_CLASSES, rng.normal(size=n_arcs) - 4, np.zeros(n_states))


def arc_by_arc(log_probs: Tensor, graph: Fsa) -> Tensor:
    """The peer: scaled probabilities, one product for each arc and frame, gradient by autograd."""
    src, dst, label = (torch.from_numpy(a) for a in (graph.src, graph.dst, graph.label))
    weight = torch.from_numpy(graph.weight).exp().to(log_probs.dtype)
    final = torch.from_numpy(graph.final).exp().to(log_probs.dtype)
    alpha = torch.zeros(len(log_probs), len(final))
    alpha[:, graph.start] = 1
    total = torch.zeros(len(log_probs))
    probs = log_probs.exp()
    for t in range(log_probs.shape[1]):
        mass = alpha[:, src] * weight * probs[:, t, label]
        alpha = torch.zeros_like(alpha).index_add(1, dst, mass)
        scale = alpha.sum(1)
        total, alpha = total + scale.log(), alpha / scale[:, None]
    return total + (alpha * final).sum(1).log()


def seconds(score: Callable[[Tensor], Tensor], log_probs: Tensor, repeats: int) -> tuple[float, Tensor]:
    """Shortest CPU time of score and gradient, and the scores."""
    times, value = [], torch.zeros(0)
    for _ in range(repeats + 1):  # the first one fills caches
        leaf = log_probs.clone().requires_grad_()
        begin = time.process_time()
        value = score(leaf)
        value.sum().backward()
        times.append(time.process_time() - begin)
    return min(times[1:]), value.detach()


def measure(n_states: int, n_arcs: int, n_frames: int, repeats: int) -> dict[str, object]:
    """One line: sizes, both times, and how far the two scores are apart."""
    torch.manual_seed(0)
    log_probs = torch.randn(N_UTTS, n_frames, N_CLASSES).log_softmax(-1)
    lengths = torch.full((N_UTTS,), n_frames)
    graph = random_graph(n_states, n_arcs)
    ours, value = seconds(lambda x: total_score(x, lengths, graph), log_probs, repeats)
    peer, expected = seconds(lambda x: arc_by_arc(x, graph), log_probs, repeats)
    return {
        "benchmark": "lfmmi_growth",
        "utts": N_UTTS,
        "frames": n_frames,
        "states": n_states,
        "arcs": n_arcs,
        "seconds": round(ours, 4),
        "peer_seconds": round(peer, 4),
        "speedup": round(peer / ours, 1),
        "relative_difference": float(((value - expected) / expected).abs().max()),
    }


def main() -> None:
    """Print one JSON line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="measurements, of which the shortest counts")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(json.dumps({"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}))
    for factor in (1, 2, 4, 8, 16):
        print(json.dumps(measure(N_STATES * factor, 6400 * factor, 150, repeats)), flush=True)
    for n_frames in (75, 300, 600, 1200):
        print(json.dumps(measure(N_STATES, 6400, n_frames, repeats)), flush=True)


if __name__ == "__main__":
    main()
