from __future__ import annotations

import numpy as np
import pytest

from vision3d.errors import InputError
from vision3d.evaluation import protocols


@pytest.mark.parametrize(
    ("size", "left", "top"), [((375, 1242), 13, 23), ((370, 1224), 4, 18), ((376, 1241), 12, 24)]
)
def test_kitti_crop_sits_at_the_bottom_and_in_the_middle(size, left, top):
    image = np.arange(size[0] * size[1]).reshape(size)
    crop = protocols.kitti_benchmark_crop(image)
    assert crop.shape == (352, 1216)
    assert crop[0, 0] == image[top, left] and crop[-1, -1] == image[size[0] - 1, left + 1215]
    assert protocols.kitti_benchmark_crop(np.zeros((*size, 3))).shape == (352, 1216, 3)


def test_kitti_crop_refuses_a_resized_image():
    with pytest.raises(InputError, match="1216×352"):
        protocols.kitti_benchmark_crop(np.zeros((192, 640)))


def test_kitti_eigen_mask_of_the_crop():
    mask = protocols.kitti_eigen_mask(352, 1216)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1]) == (117, 320) and (columns[0], columns[-1]) == (43, 1171)
    assert mask.sum() == 204 * 1129


def test_nyu_eigen_mask():
    mask = protocols.nyu_eigen_mask(480, 640)
    assert mask.sum() == 426 * 560
    assert mask[45, 41] and mask[470, 600] and not mask[44, 41] and not mask[45, 40] and not mask[471, 600]
    with pytest.raises(InputError):
        protocols.nyu_eigen_mask(240, 320)


def test_ranges_are_open_intervals_of_finite_depth():
    depth = np.array([0.0, 1e-3, 0.5, 10.0, np.inf, np.nan])
    assert protocols.NYU_RANGE.contains(depth).tolist() == [False, False, True, False, False, False]
    assert protocols.ETH3D_RANGE.contains(np.array([1e6, np.inf, 0.0])).tolist() == [True, False, False]
