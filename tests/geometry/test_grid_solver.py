"""The multigrid solver against SciPy's direct one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import spsolve

from vision3d.geometry.grid_solver import GridMatrix, solve_grid


def matrix(shape: tuple[int, int], seed: int, diagonal: float) -> GridMatrix:
    """Weights over four orders of magnitude, with a cut through the middle."""
    rng = np.random.default_rng(seed)
    h, w = shape
    right, down = 10 ** rng.uniform(-2, 2, (h, w - 1)), 10 ** rng.uniform(-2, 2, (h - 1, w))
    right[:, w // 2] = 0
    return GridMatrix(right, down, np.full(shape, diagonal))


def test_the_product_is_that_of_the_sparse_matrix() -> None:
    a = matrix((7, 10), 0, 0.5)
    x = np.random.default_rng(1).normal(size=(7, 10))
    np.testing.assert_allclose((a @ x).ravel(), a.to_sparse() @ x.ravel(), rtol=1e-12)


@pytest.mark.parametrize("shape", [(37, 52), (64, 64), (5, 90)])
def test_the_solution_is_the_direct_solvers(shape: tuple[int, int]) -> None:
    a = matrix(shape, 2, 0.01)
    b = np.random.default_rng(3).normal(size=shape)
    found = solve_grid(a, b, np.zeros(shape), tolerance=1e-10, max_iterations=1000)
    np.testing.assert_allclose(found.values.ravel(), spsolve(a.to_sparse(), b.ravel()), rtol=1e-5, atol=1e-6)
    assert found.residual <= 1e-10


def test_the_number_of_iterations_hardly_grows_with_the_grid() -> None:
    counts = []
    for side in (64, 512):
        a = GridMatrix(np.ones((side, side - 1)), np.ones((side - 1, side)), np.full((side, side), 1e-4))
        b = a @ np.cumsum(np.random.default_rng(0).normal(size=(side, side)), axis=0)
        counts.append(solve_grid(a, b, np.zeros((side, side))).iterations)
    assert max(counts) <= 12, counts


def test_pixels_outside_the_matrix_keep_their_start() -> None:
    a = matrix((20, 20), 4, 0.1)
    right, down, diagonal = a.right.copy(), a.down.copy(), a.diagonal.copy()
    right[:, :5] = down[:, :5] = diagonal[:, :5] = 0
    right[:, 4] = 0
    a = GridMatrix(right, down, diagonal)
    b = np.where(diagonal > 0, 1.0, 0.0)
    found = solve_grid(a, b, np.full((20, 20), 7.0)).values
    np.testing.assert_array_equal(found[:, :5], 7.0)
    # Every row sums to the diagonal, so a constant right-hand side has a constant solution.
    np.testing.assert_allclose(found[:, 5:], 10.0, rtol=1e-5)
