"""Tiles of large maps: nothing is left out, and their noise fits into that of the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vision3d.geometry.tiling import Tiling


@pytest.mark.parametrize("tile", [16, 24, 64, 128, 256, 320, 512])
def test_tiles_cover_every_length_and_their_latents_lie_within_it(tile: int) -> None:
    for length in range(8, 4 * tile + 17):
        rows = [(top, bottom) for top, _, bottom, _ in Tiling(length, 8, tile).boxes]
        assert rows[0][0] == 0 and rows[-1][1] == length
        assert all(start <= end for (_, end), (start, _) in pairwise(rows))
        assert {bottom - top for top, bottom in rows} == {min(tile, length)}
        assert all(top // 8 - (top - bottom) // 8 <= -(-length // 8) for top, bottom in rows)
