"""Gaussian filtering of scattered values on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010).

Shapes: N points, d feature dimensions, K channels, M lattice vertices that touch a point. A point lies in a simplex of
d + 1 vertices; the lattice has d + 1 directions. Time and memory grow with N * d, not with N * N.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from segtrain.errors import UserError


class Lattice:
    """The normalised Gaussian kernel of N points: `filter(v)_i = n_i sum_j exp(-|f_i - f_j|^2 / 2) n_j v_j`, about.

    `features` (d, N) fp32 in units of the standard deviation. The sum has j = i in it, and n_i = 1 / sqrt(sum_j exp(...)),
    the symmetric normalisation of Kraehenbuehl and Koltun's code. On the CPU scipy's sparse products are used, two to three
    times as fast as gathering with torch, which is what runs on a GPU.

    Raises `UserError` for features spread so widely that vertices cannot be numbered in 64 bits.
    """

    def __init__(self, features: Tensor) -> None:
        self.weights, keys, steps = _simplices(features)
        numbered, self.vertices = torch.unique(keys, return_inverse=True)  # both (d + 1, N)
        self.size = len(numbered)
        self.pairs = [_neighbours(numbered, step) for step in steps]
        self._sparse = None if features.is_cuda else _SparseProducts(self)
        total = self.filter(torch.ones(features.shape[1], 1, device=features.device))
        norm = (total[:, 0] + 1e-20).rsqrt()
        self.weights = self.weights * norm
        if self._sparse is not None:
            self._sparse.slice.data *= norm.repeat_interleave(len(self.weights)).numpy()

    def filter(self, values: Tensor) -> Tensor:
        """(N, K) fp32 -> (N, K)."""
        return self.gather(values) if self._sparse is None else self._sparse(values)

    def gather(self, values: Tensor) -> Tensor:
        """`filter` in plain torch, for any device."""
        at = values.new_zeros(self.size, values.shape[1])
        for vertex, weight in zip(self.vertices, self.weights, strict=True):
            at.index_add_(0, vertex, weight[:, None] * values)
        for first, second in self.pairs:
            blurred = at.clone()
            blurred.index_add_(0, first, at[second], alpha=0.5)
            blurred.index_add_(0, second, at[first], alpha=0.5)
            at = blurred
        result = torch.zeros_like(values)
        for vertex, weight in zip(self.vertices, self.weights, strict=True):
            result.addcmul_(weight[:, None], at[vertex])
        return result


class _SparseProducts:
    """The same filter as products with scipy's sparse matrices; one thread."""

    def __init__(self, lattice: Lattice) -> None:
        corners, points = lattice.vertices.shape
        index = torch.int32 if points * corners < 2**31 else torch.int64
        columns = lattice.vertices.T.to(index).contiguous().view(-1).numpy()
        starts = np.arange(0, points * corners + 1, corners, dtype=columns.dtype)
        weights = lattice.weights.T.contiguous().view(-1).numpy()
        self.slice = sparse.csr_array((weights, columns, starts), shape=(points, lattice.size))
        self.blurs = [_blur(first, second, lattice.size) for first, second in lattice.pairs]

    def __call__(self, values: Tensor) -> Tensor:
        at = (
            self.slice.T @ values.numpy()
        )  # the transpose shares the memory, and is faster than one that is sorted by row
        for blur in self.blurs:
            at = blur @ at
        return torch.from_numpy(self.slice @ at)


def _blur(first: Tensor, second: Tensor, size: int) -> sparse.csr_array:
    """(M, M): one on the diagonal, a half at the neighbours in one direction."""
    own, a, b = np.arange(size, dtype=np.int32), first.int().numpy(), second.int().numpy()
    data = np.full(size + 2 * len(a), 0.5, dtype=np.float32)
    data[:size] = 1
    place = np.concatenate([own, a, b]), np.concatenate([own, b, a])
    return sparse.coo_array((data, place), shape=(size, size)).tocsr()


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The simplex of every point: barycentric weights (d + 1, N), numbers of its vertices (d + 1, N) int64, and what to
    add to a vertex's number for its neighbour in each of the d + 1 directions.

    The lattice is the projection of the integer grid of d + 1 dimensions, scaled by d + 1, to the plane whose coordinates
    sum to zero. A vertex has coordinates that are equal modulo d + 1: its remainder.
    """
    corners = len(features) + 1
    raised = _elevate(features)
    nearest = (raised / corners).round_()  # the vertex of remainder 0 nearby, in units of d + 1
    rank = _ranks(raised - nearest * corners)
    # Rounding may leave the plane: the coordinates that rounding moved furthest step back, and the ranks turn with them.
    rank += nearest.sum(0).long()
    back = (rank < 0).long() - (rank >= corners).long()
    rank += corners * back
    nearest += back
    offset = torch.empty_like(raised).scatter_(
        0, rank, raised / corners - nearest
    )  # sorted, the largest first
    weights = torch.cat([1 + offset[-1:] - offset[:1], (offset[:-1] - offset[1:]).flip(0)])
    keys, steps = _number(nearest, rank)
    return weights, keys, steps


def _elevate(features: Tensor) -> Tensor:
    """(d, N) -> (d + 1, N) in the plane, scaled so that the blur's standard deviation is that of the features.

    Rounded where Kraehenbuehl's code rounds. The last bit matters: for a point on a face it decides which vertices of
    weight zero exist, and the blur passes values on through those (up to 0.02 in a few marginals of a photo).
    """
    d, points = features.shape
    deviation = np.float32(math.sqrt(2 / 3) * (d + 1))
    raised, total = features.new_empty(d + 1, points), features.new_zeros(points)
    for j in range(d, 0, -1):
        scaled = features[j - 1] * float(np.float32(1 / math.sqrt(j * (j + 1)) * float(deviation)))
        raised[j] = total - j * scaled
        total = total + scaled
    raised[0] = total
    return raised


def _ranks(values: Tensor) -> Tensor:
    """(d + 1, N) -> int64 place of every value among the d + 1 of its point, 0 for the largest; ties in order."""
    rank = torch.zeros(values.shape, dtype=torch.int8, device=values.device)
    for i in range(len(values)):
        for j in range(i + 1, len(values)):  # faster than sorting for so few
            less = values[i] < values[j]
            rank[i] += less
            rank[j] += ~less
    return rank.long()


def _number(nearest: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """Numbers (d + 1, N) of the vertices with remainder 0 to d, and the steps to the neighbours.

    A number is linear in the first d coordinates of a vertex (the last follows from them), so a step is a constant.
    """
    corners = len(nearest)
    low = [int(side) - 2 for side in nearest[:-1].amin(1).tolist()]  # with room for the neighbours
    spans = [
        (int(side) + 2 - least) * corners
        for least, side in zip(low, nearest[:-1].amax(1).tolist(), strict=True)
    ]
    factors = [math.prod(spans[:i]) for i in range(corners - 1)]
    if math.prod(spans) >= 2**62:
        raise UserError(
            "inference.crf: position_std or color_std is too small for an image of this size"
        )
    factor = torch.tensor([*factors, 0], device=rank.device)
    keys = torch.empty_like(rank)
    keys[0] = sum(
        (side.long() - least) * (corners * f)
        for side, least, f in zip(nearest[:-1], low, factors, strict=True)
    )
    by_rank = torch.empty_like(rank).scatter_(0, rank, factor[:, None].expand_as(rank))
    for remainder in range(
        1, corners
    ):  # every coordinate grows by 1, but the smallest left falls by d
        keys[remainder] = (
            keys[remainder - 1] + sum(factors) - corners * by_rank[corners - remainder]
        )
    return keys, [corners * f - sum(factors) for f in (*factors, 0)]


def _neighbours(numbered: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Indices (P,) of the vertices that have a neighbour one `step` away, and of the neighbours. `numbered` is sorted."""
    wanted = numbered + step
    place = torch.searchsorted(numbered, wanted).clamp_(max=len(numbered) - 1)
    found = (numbered[place] == wanted).nonzero()[:, 0]
    return found, place[found]
