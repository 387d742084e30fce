"""Screened Poisson equations on the pixel grid: conjugate gradients, preconditioned by aggregation multigrid.

The energy ``Σ_edges a (x_j - x_i - t)² + Σ_pixels m (x_i - p_i)²`` over the 4-neighbourhood leads to a weighted graph
Laplacian plus a diagonal. Weights may vary by many orders of magnitude and be zero, which is how surfaces are cut.
Joining 2×2 pixels to one coarse unknown turns such a matrix into another of the same kind (the weights between two
blocks add up), so every level is three arrays and nothing but slices is ever computed with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_COARSEST = 300  # unknowns that a factorisation takes over
_DAMPING = 0.8  # of the Jacobi sweeps
_SWEEPS = 2  # before and after each coarse correction


@dataclass
class GridMatrix:
    """``A x = diagonal x + Σ weight (x_i - x_j)`` on an (H, W) grid; symmetric, positive semi-definite.

    Attributes:
        right: (H, W - 1) weights between (i, j) and (i, j + 1), not negative.
        down: (H - 1, W) weights between (i, j) and (i + 1, j), not negative.
        diagonal: (H, W), not negative. Pixels with neither weight nor diagonal are left out.
    """

    right: np.ndarray
    down: np.ndarray
    diagonal: np.ndarray
    total: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        total = self.diagonal.copy()
        total[:, 1:] += self.right
        total[:, :-1] += self.right
        total[1:] += self.down
        total[:-1] += self.down
        self.total = total

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        out = self.total * x
        out[:, 1:] -= self.right * x[:, :-1]
        out[:, :-1] -= self.right * x[:, 1:]
        out[1:] -= self.down * x[:-1]
        out[:-1] -= self.down * x[1:]
        return out

    def astype(self, kind: type[np.floating]) -> GridMatrix:
        """The same matrix in another precision."""
        return GridMatrix(*(part.astype(kind) for part in (self.right, self.down, self.diagonal)))

    def coarser(self) -> GridMatrix:
        """The matrix of 2×2 blocks of pixels.

        The exact restriction makes smooth functions twice as stiff as they are, since a block is constant inside;
        half the summed weight is what the grid of twice the spacing has.
        """
        height, width = self.diagonal.shape
        even = np.pad(self.diagonal, ((0, height % 2), (0, width % 2)))
        diagonal = even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]
        right, down = self.right[:, 1::2], self.down[1::2]
        right = np.pad(right, ((0, height % 2), (0, 0)))
        down = np.pad(down, ((0, 0), (0, width % 2)))
        half = self.diagonal.dtype.type(0.5)
        return GridMatrix(
            (right[0::2] + right[1::2]) * half, (down[:, 0::2] + down[:, 1::2]) * half, diagonal
        )

    def to_sparse(self):  # type: ignore[no-untyped-def]
        """The matrix as SciPy's CSC, pixels in row-major order."""
        from scipy.sparse import coo_matrix

        height, width = self.diagonal.shape
        index = np.arange(height * width).reshape(height, width)
        a = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
        b = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
        w = np.concatenate([self.right.ravel(), self.down.ravel()])
        rows = np.concatenate([index.ravel(), a, b])
        columns = np.concatenate([index.ravel(), b, a])
        values = np.concatenate([self.total.ravel(), -w, -w])
        return coo_matrix((values, (rows, columns)), shape=(index.size, index.size)).tocsc()


class Multigrid:
    """One symmetric V-cycle as a preconditioner; single precision, which is enough for a direction.

    Args:
        matrix: of the finest level.
    """

    def __init__(self, matrix: GridMatrix) -> None:
        level = matrix.astype(np.float32)
        scale = float(level.total.max()) or 1.0
        self.scale = np.float32(scale)
        level = GridMatrix(level.right / self.scale, level.down / self.scale, level.diagonal / self.scale)
        self.levels = [level]
        while self.levels[-1].diagonal.size > _COARSEST:
            self.levels.append(self.levels[-1].coarser())
        self.inverse = [_damped_inverse(m.total) for m in self.levels]
        from scipy.sparse import identity
        from scipy.sparse.linalg import splu

        last = self.levels[-1].astype(np.float64).to_sparse()
        # Blocks that nothing ties down have no solution of their own; a grain of diagonal leaves them where they are.
        grain = 1e-7 * float(last.diagonal().max() or 1.0)
        self.factor = splu((last + grain * identity(last.shape[0])).tocsc())

    def __call__(self, residual: np.ndarray) -> np.ndarray:
        """An approximate solution for a right-hand side (H, W)."""
        return self._cycle(0, residual.astype(np.float32)).astype(np.float64) / float(self.scale)

    def _cycle(self, depth: int, b: np.ndarray) -> np.ndarray:
        matrix = self.levels[depth]
        if depth == len(self.levels) - 1:
            return self.factor.solve(b.ravel().astype(np.float64)).reshape(b.shape).astype(np.float32)
        inverse = self.inverse[depth]
        x = inverse * b
        for _ in range(_SWEEPS - 1):
            x += inverse * (b - matrix @ x)
        coarse = self._cycle(depth + 1, _sum_blocks(b - matrix @ x))
        x += np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)[: b.shape[0], : b.shape[1]]
        for _ in range(_SWEEPS):
            x += inverse * (b - matrix @ x)
        return x


def _damped_inverse(total: np.ndarray) -> np.ndarray:
    there = total > 0
    return np.where(there, _DAMPING / np.where(there, total, 1), 0).astype(np.float32)


def _sum_blocks(values: np.ndarray) -> np.ndarray:
    height, width = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2)))
    rows = even[0::2] + even[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


@dataclass(frozen=True)
class Solution:
    """Of a linear system on the grid.

    Attributes:
        values: (H, W) float64.
        iterations: of conjugate gradients.
        residual: norm of what is left over, relative to that of the right-hand side.
    """

    values: np.ndarray
    iterations: int
    residual: float


def solve_grid(
    matrix: GridMatrix,
    rhs: np.ndarray,
    start: np.ndarray,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> Solution:
    """Solve ``matrix @ x = rhs`` from ``start``, both (H, W), by multigrid-preconditioned conjugate gradients.

    Args:
        matrix: positive semi-definite; a singular one needs a consistent ``rhs`` and keeps the mean of ``start``.
        rhs: right-hand side.
        start: first guess; where the matrix is zero it is returned as it is.
        tolerance: norm of the residual relative to that of ``rhs`` at which to stop.
        max_iterations: at most so many.
    """
    precondition = Multigrid(matrix)
    x = start.astype(np.float64)
    r = rhs - matrix @ x
    # Without a diagonal the right-hand side is small next to the matrix times a large constant, but not its norm.
    goal = tolerance * max(float(np.linalg.norm(rhs)), 1e-300)
    norm = float(np.linalg.norm(r))
    count = 0
    direction, rho = np.zeros_like(r), 1.0
    active = matrix.total > 0  # a coarse correction reaches pixels that no equation holds, too
    previous = r
    while norm > goal and count < max_iterations:
        z = np.where(active, precondition(r), 0.0)
        # Polak–Ribière: single precision makes the preconditioner a slightly different one each time.
        beta = float(np.vdot(z, r - previous)) / rho if count else 0.0
        rho = float(np.vdot(r, z))
        if not rho > 0:
            break
        direction = z + max(beta, 0.0) * direction
        image = matrix @ direction
        curvature = float(np.vdot(direction, image))
        if not curvature > 0:
            break
        alpha = float(np.vdot(r, direction)) / curvature
        x += alpha * direction
        previous, r = r, r - alpha * image
        norm = float(np.linalg.norm(r))
        count += 1
    return Solution(x, count, norm / max(float(np.linalg.norm(rhs)), 1e-300))
