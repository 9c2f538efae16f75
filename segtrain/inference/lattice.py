"""Filter scattered values by a Gaussian on the permutohedral lattice.

The lattice is that of Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the
Permutohedral Lattice", Eurographics 2010. Values are spread from the points to the vertices around
them, blurred along the lattice's directions, and gathered back.

Shapes: N points, d feature dimensions, K channels, M lattice vertices that touch a point. A point
lies in a simplex of d + 1 vertices; the lattice has d + 1 directions. Time and memory grow with
N * d, not with N * N.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from segtrain.errors import UserError

MAX_VERTEX_NUMBERS = 2**62  # with room for a step to a neighbour in 64 bits
EMPTY_SUM = 1e-20  # keeps the inverse root finite for a point whose kernel underflows


class Lattice:
    """Apply the normalised Gaussian kernel of N points.

    `filter(v)_i` is about n_i sum_j exp(-|f_i - f_j|^2 / 2) n_j v_j, for `features` f (d, N) fp32
    in units of the standard deviation. The sum has j = i in it, and n_i = 1 / sqrt(sum_j exp(...))
    is the symmetric normalisation of Kraehenbuehl and Koltun's code. On the CPU scipy's sparse
    products are used; they are two to three times as fast as gathering with torch, which is what
    runs on a GPU.

    Errors: UserError for features spread so widely that vertices cannot be numbered in 64 bits.
    """

    def __init__(self, features: Tensor) -> None:
        self.weights, keys, steps = _simplices(features)
        numbered, self.vertices = torch.unique(keys, return_inverse=True)  # (M,), (d + 1, N)
        self.size = len(numbered)
        self.pairs = [_neighbours(numbered, step) for step in steps]
        self._sparse = None if features.is_cuda else _SparseProducts(self)
        total = self.filter(torch.ones(features.shape[1], 1, device=features.device))
        norm = (total[:, 0] + EMPTY_SUM).rsqrt()
        # Both spreading and gathering use the weights, so each multiplies by n once.
        self.weights = self.weights * norm
        if self._sparse is not None:
            self._sparse.slice.data *= norm.repeat_interleave(len(self.weights)).numpy()

    def filter(self, values: Tensor) -> Tensor:
        """Filter values (N, K) fp32, channel by channel."""
        return self.gather(values) if self._sparse is None else self._sparse(values)

    def gather(self, values: Tensor) -> Tensor:
        """Do what `filter` does in plain torch, on any device."""
        at_vertices = values.new_zeros(self.size, values.shape[1])
        for vertex, weight in zip(self.vertices, self.weights, strict=True):
            at_vertices.index_add_(0, vertex, weight[:, None] * values)
        for first, second in self.pairs:
            blurred = at_vertices.clone()
            blurred.index_add_(0, first, at_vertices[second], alpha=0.5)
            blurred.index_add_(0, second, at_vertices[first], alpha=0.5)
            at_vertices = blurred
        result = torch.zeros_like(values)
        for vertex, weight in zip(self.vertices, self.weights, strict=True):
            result.addcmul_(weight[:, None], at_vertices[vertex])
        return result


class _SparseProducts:
    """Apply the same filter as products with scipy's sparse matrices, on one thread."""

    def __init__(self, lattice: Lattice) -> None:
        corners, points = lattice.vertices.shape
        index = torch.int32 if points * corners < 2**31 else torch.int64
        columns = lattice.vertices.T.to(index).contiguous().view(-1).numpy()
        starts = np.arange(0, points * corners + 1, corners, dtype=columns.dtype)
        weights = lattice.weights.T.contiguous().view(-1).numpy()
        self.slice = sparse.csr_array((weights, columns, starts), shape=(points, lattice.size))
        self.blurs = [_blur(first, second, lattice.size) for first, second in lattice.pairs]

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values (N, K) fp32."""
        # The transpose shares the memory of `slice`, and is faster than a copy sorted by row.
        at_vertices = self.slice.T @ values.numpy()
        for blur in self.blurs:
            at_vertices = blur @ at_vertices
        return torch.from_numpy(self.slice @ at_vertices)


def _blur(first: Tensor, second: Tensor, size: int) -> sparse.csr_array:
    """Return (M, M): one on the diagonal, a half at the neighbours in one direction."""
    own = np.arange(size, dtype=np.int32)
    a = first.int().numpy()
    b = second.int().numpy()
    data = np.full(size + 2 * len(a), 0.5, dtype=np.float32)
    data[:size] = 1
    rows = np.concatenate([own, a, b])
    columns = np.concatenate([own, b, a])
    return sparse.coo_array((data, (rows, columns)), shape=(size, size)).tocsr()


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Find the simplex of every point.

    Returns barycentric weights (d + 1, N), numbers of its vertices (d + 1, N) int64, and what to
    add to a vertex's number for its neighbour in each of the d + 1 directions.

    The lattice is the integer grid of d + 1 dimensions, scaled by d + 1 and projected to the plane
    whose coordinates sum to zero. All coordinates of a vertex are equal modulo d + 1; that is its
    remainder, and a simplex has one vertex of each remainder.
    """
    corners = len(features) + 1
    raised = _elevate(features)
    nearest = (raised / corners).round_()  # the vertex of remainder 0 nearby, in units of d + 1
    rank = _ranks(raised - nearest * corners)
    # Rounding may leave the plane: the coordinates that rounding moved furthest step back, and
    # the ranks turn with them.
    rank += nearest.sum(0).long()
    back = (rank < 0).long() - (rank >= corners).long()
    rank += corners * back
    nearest += back
    offset = raised / corners - nearest
    ordered = torch.empty_like(raised).scatter_(0, rank, offset)  # the largest offset first
    first_weight = 1 + ordered[-1:] - ordered[:1]
    other_weights = (ordered[:-1] - ordered[1:]).flip(0)
    keys, steps = _number(nearest, rank)
    return torch.cat([first_weight, other_weights]), keys, steps


def _elevate(features: Tensor) -> Tensor:
    """Bring points (d, N) to the plane, as (d + 1, N).

    They are scaled so that the blur's standard deviation is that of the features, and rounded where
    Kraehenbuehl's code rounds. The last bit matters: for a point on a face it decides which
    vertices of weight zero exist, and the blur passes values on through those (up to 0.02 in a few
    marginals of a photo).
    """
    d, points = features.shape
    deviation = np.float32(math.sqrt(2 / 3) * (d + 1))
    raised = features.new_empty(d + 1, points)
    total = features.new_zeros(points)
    for j in range(d, 0, -1):
        scale = float(np.float32(1 / math.sqrt(j * (j + 1)) * float(deviation)))
        scaled = features[j - 1] * scale
        raised[j] = total - j * scaled
        total = total + scaled
    raised[0] = total
    return raised


def _ranks(values: Tensor) -> Tensor:
    """Rank each value (d + 1, N) among the d + 1 of its point: int64, 0 for the largest.

    Ties are in order. For so few values, comparing all pairs is faster than sorting.
    """
    rank = torch.zeros(values.shape, dtype=torch.int8, device=values.device)
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            less = values[i] < values[j]
            rank[i] += less
            rank[j] += ~less
    return rank.long()


def _number(nearest: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """Number the vertices with remainder 0 to d (d + 1, N), and the steps to the neighbours.

    A number is linear in the first d coordinates of a vertex (the last follows from them), so the
    step to a neighbour is a constant. Errors: UserError where 64 bits do not suffice.
    """
    corners = len(nearest)
    coordinates = nearest[:-1]
    # Two on each side make room for the neighbours.
    lows = [int(low) - 2 for low in coordinates.amin(1).tolist()]
    highs = [int(high) + 2 for high in coordinates.amax(1).tolist()]
    spans = [(high - low) * corners for low, high in zip(lows, highs, strict=True)]
    if math.prod(spans) >= MAX_VERTEX_NUMBERS:
        raise UserError(
            "inference.crf: position_std or color_std is too small for an image of this size"
        )
    factors = [math.prod(spans[:i]) for i in range(corners - 1)]
    keys = torch.empty_like(rank)
    keys[0] = sum(
        (coordinate.long() - low) * (corners * factor)
        for coordinate, low, factor in zip(coordinates, lows, factors, strict=True)
    )
    factor = torch.tensor([*factors, 0], device=rank.device)
    factor_by_rank = torch.empty_like(rank).scatter_(0, rank, factor[:, None].expand_as(rank))
    for remainder in range(1, corners):
        # From one remainder to the next every coordinate grows by 1, but the smallest of those
        # that have not fallen yet falls by d.
        fallen = corners * factor_by_rank[corners - remainder]
        keys[remainder] = keys[remainder - 1] + sum(factors) - fallen
    steps = [corners * factor - sum(factors) for factor in (*factors, 0)]
    return keys, steps


def _neighbours(numbered: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the indices (P,) of the vertices with a neighbour one `step` away, and its index.

    `numbered` is sorted.
    """
    wanted = numbered + step
    index = torch.searchsorted(numbered, wanted).clamp_(max=len(numbered) - 1)
    known = (numbered[index] == wanted).nonzero()[:, 0]
    return known, index[known]
