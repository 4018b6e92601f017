"""The adapter to k2: path sums and lattices, on tensors alone.

This module is the only one that imports k2, and nothing of mpq, so that the same code runs in two places: in mpq's own
process, where k2 is installed beside a current torch; and, by :mod:`mpq.fst.k2_server`, in a process of an environment
of its own (CPython 3.9, torch 1.13.1 and the k2 of PyPI, which `utils/k2_env.sh` makes), where it is not. It is
therefore written for Python 3.9. What converts graphs and finds k2 is :mod:`mpq.fst.backend`.

k2's algorithms: Povey et al. 2021, "Speech recognition with next-generation Kaldi (k2, Lhotse, Icefall)".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALL = 1e10  # a beam that prunes nothing


def path_sums(log_probs: Tensor, lengths: Tensor, arcs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logs of the sums over all paths, unpruned, and their gradients, by `k2.intersect_dense`.

    Args:
        log_probs: natural log, ``(N, T, C)``; a k2 without CUDA works on the CPU, wherever they are.
        lengths: frames of each utterance, ``(N,)``.
        arcs: one graph for all utterances or one for each: k2's arcs ``(A, 4)``, int32 (source, destination, label,
            bits of the float32 score), sorted by source and label; labels are classes, -1 on those that end.

    Returns:
        totals ``(N,)`` in float64, ``-inf`` where there is no path, and posteriors ``(N, T, C)`` in float32.
    """
    import k2

    order = torch.argsort(lengths.cpu(), descending=True)  # as intersect_dense wants it
    zeros = torch.zeros_like(order)
    segments = torch.stack((order, zeros, lengths.cpu()[order]), 1).to(torch.int32)
    device = log_probs.device if k2.with_cuda else torch.device("cpu")
    leaf = log_probs.detach().to(device, torch.float32).requires_grad_()
    graphs = [k2.Fsa(one) for one in arcs]
    one_each = [graphs[int(utt)] for utt in order] if len(graphs) > 1 else graphs * len(order)
    graph = k2.create_fsa_vec(one_each).to(device)
    lattices = k2.intersect_dense(graph, k2.DenseFsaVec(leaf, segments), output_beam=_ALL)
    scores = lattices.get_tot_scores(log_semiring=True, use_double_scores=True)
    (posteriors,) = torch.autograd.grad(scores.sum(), leaf)
    totals = torch.empty_like(scores)
    totals[order.to(device)] = scores.detach()
    return totals.to(log_probs.device), posteriors.to(log_probs.device)


class Graph:
    """A decoding graph without input epsilons.

    Args:
        arcs: as those of :func:`path_sums`, ``(A, 4)``.
        words: output labels of all arcs, one after the other, ``(W,)``, int32.
        splits: where the words of each arc begin, and W, ``(A + 1,)``, int32.
    """

    def __init__(self, arcs: Tensor, words: Tensor, splits: Tensor) -> None:
        import k2

        shape = k2.ragged.create_ragged_shape2(splits, cached_tot_size=len(words))
        graph = k2.Fsa(arcs, aux_labels=k2.RaggedTensor(shape, words))
        graph.graph_scores = graph.scores.clone()
        self._graph = k2.create_fsa_vec([graph])

    def search(self, scores: Tensor, beam: float, lattice_beam: float) -> tuple[Tensor, Tensor, Tensor]:
        """Lattice of one utterance by `k2.intersect_dense_pruned`.

        Args:
            scores: scaled log-probabilities ``(T, C)``, float32.
            beam: states that are worse than the best of a frame by more than this are dropped.
            lattice_beam: so are arcs on no path within this of the best one.

        Returns:
            arcs ``(A, 4)``; of each its word, 0 or -1 for none, ``(A,)``; and its graph score ``(A,)``. No arcs if no
            path reached the end.
        """
        import k2

        segments = torch.tensor([[0, 0, len(scores)]], dtype=torch.int32)
        lattices = k2.intersect_dense_pruned(
            self._graph, k2.DenseFsaVec(scores[None], segments), beam, lattice_beam, 0, 1 << 30
        )
        lattice = k2.expand_ragged_attributes(lattices[0])
        return lattice.arcs_as_tensor(), lattice.aux_labels, lattice.graph_scores
