from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vision3d.errors import InputError
from vision3d.training.data import (
    FIELDS,
    HELD_OUT_SEED,
    RenderedWorld,
    WorldBatches,
    augmented_crop,
    open_source,
)

MAPS = tuple(name for name in FIELDS if name != "caption")


def batches(world, **changes) -> WorldBatches:
    settings = {"batch_size": 4, "size": 16, "seed": 3, "fields": FIELDS, "photometric": 0.0}
    return WorldBatches(world, **{**settings, **changes})


def test_a_batch_depends_on_seed_and_index_alone(world):
    forwards = [batches(world)[k] for k in range(12)]
    other = batches(world)
    for k in reversed(range(12)):
        again = other[k]
        assert again["caption"] == forwards[k]["caption"]
        assert all(torch.equal(again[name], forwards[k][name]) for name in MAPS)
    assert not torch.equal(batches(world, seed=4)[0]["image"], forwards[0]["image"])
    assert not torch.equal(forwards[1]["image"], forwards[0]["image"])


def test_shapes_types_and_ranges(world):
    batch = batches(world)[0]
    assert batch["image"].shape == batch["clean"].shape == (4, 3, 16, 16)
    assert batch["normals"].shape == (4, 3, 16, 16)
    assert batch["depth"].shape == batch["semantic"].shape == (4, 16, 16)
    assert batch["K"].shape == (4, 3, 3)
    assert batch["semantic"].dtype == torch.int64
    assert set(batch["semantic"].unique().tolist()) <= {3, 255}
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert torch.equal(batch["image"], batch["clean"])
    assert len(batch["caption"]) == 4


def test_every_epoch_sees_every_sample_once_in_another_order(world):
    stream = batches(world)
    epochs = [[stream.sample_index(e * len(world) + i) for i in range(len(world))] for e in range(3)]
    assert all(sorted(epoch) == list(range(len(world))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def position_sample(height: int, width: int) -> SimpleNamespace:
    """A sample whose every map says where its pixel's ray points."""
    f, cx, cy = 37.0, 0.4 * width, 0.55 * height
    v, u = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(u - cx) / f, (v - cy) / f, np.ones_like(u)], axis=-1).astype(np.float32)
    return SimpleNamespace(
        image=np.zeros((height, width, 3), np.uint8),
        depth=rays[..., 0],
        normals=rays,
        semantic=np.zeros((height, width), np.uint8),
        K=np.array([[f, 0, cx], [0, f, cy], [0, 0, 1.0]]),
        caption="",
    )


@pytest.mark.parametrize("seed", range(8))
def test_intrinsics_follow_crop_resize_and_flip(seed):
    sample = position_sample(48, 64)
    rng = np.random.default_rng(seed)
    crop = augmented_crop(sample, 24, rng, FIELDS, (0.5, 1.0), flip=True)
    v, u = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    k = crop["K"]
    x, y = (u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]
    # Nearest sampling is off by half a source pixel at most.
    tolerance = 0.51 / 37
    assert (crop["normals"][0] - x).abs().max() < tolerance
    assert (crop["normals"][1] - y).abs().max() < tolerance
    mirrored = bool(crop["depth"][0, 0] > crop["depth"][0, -1])
    torch.testing.assert_close(crop["normals"][0], -crop["depth"] if mirrored else crop["depth"])


@pytest.mark.parametrize("seed", range(6))
def test_intrinsics_and_normals_follow_a_turned_crop(seed):
    sample = position_sample(90, 120)
    x, y = np.meshgrid(np.arange(120) + 0.5, np.arange(90) + 0.5)
    rays = np.stack([(x - sample.K[0, 2]) / 37, (y - sample.K[1, 2]) / 37, np.ones_like(x)], -1)
    plane = np.array([0.2, -0.5, -0.8])
    sample.depth = (rays @ plane).astype(np.float32)  # inverse depth of a plane, but for its distance
    sample.normals = np.broadcast_to(plane, rays.shape).astype(np.float32)
    crop = augmented_crop(
        sample, (40, 48), np.random.default_rng(seed), ("depth", "normals", "K"), (0.7, 1.0), True, 0.0, 20.0
    )
    normals = crop["normals"].numpy()
    assert np.ptp(normals, axis=(1, 2)).max() < 1e-5
    K, normal = crop["K"].numpy(), normals[:, 0, 0]
    x, y = np.meshgrid(np.arange(48) + 0.5, np.arange(40) + 0.5)
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)
    # Both samplings, that of the turn and that of the resize, are off by half a pixel at most, in x and in y.
    slack = 0.51 / 37 * (np.abs(plane[:2]).sum() + np.abs(normal[:2]).sum())
    assert np.abs(crop["depth"].numpy() - rays @ normal).max() < slack


def test_half_of_the_crops_are_turned_and_none_where_pixels_are_not_square():
    sample = position_sample(90, 120)
    sample.normals = np.broadcast_to(np.float32([1, 0, 0]), (90, 120, 3))

    def turned(source: SimpleNamespace, seed: int) -> bool:
        rng = np.random.default_rng(seed)
        crop = augmented_crop(source, 30, rng, ("normals",), (0.5, 1.0), turn=15.0)
        return abs(float(crop["normals"][1, 0, 0])) > 1e-4

    assert 0.4 < np.mean([turned(sample, k) for k in range(200)]) < 0.6
    sample.K = np.diag([1.0, 1.1, 1.0]) @ sample.K
    assert not any(turned(sample, k) for k in range(50))


def test_half_of_the_crops_are_mirrored():
    sample = position_sample(32, 32)
    flips = 0
    for seed in range(200):
        depth = augmented_crop(sample, 16, np.random.default_rng(seed), ("depth",), flip=True)["depth"]
        flips += int(depth[0, 0] > depth[0, -1])
    assert 70 < flips < 130


def test_image_and_labels_are_resized_by_the_same_rule():
    """A vertical edge stays at the same place in the picture and in the labels."""
    sample = position_sample(48, 48)
    sample.image[:, 24:] = 255
    sample.semantic[:, 24:] = 1
    for size in (12, 16, 32, 96):
        crop = augmented_crop(sample, size, np.random.default_rng(0), ("image", "semantic"))
        assert torch.equal(crop["image"][0] > 0.5, crop["semantic"] == 1), size


def test_the_central_square_is_untouched_without_augmentation(world):
    sample = world[3]
    crop = augmented_crop(sample, 40, np.random.default_rng(0), ("image", "depth", "K"))
    assert np.array_equal(
        (crop["image"].permute(1, 2, 0) * 255).round().byte().numpy(), sample.image[:, 4:44]
    )
    assert np.array_equal(crop["depth"].numpy(), sample.depth[:, 4:44])
    assert crop["K"][0, 2] == sample.K[0, 2] - 4


def test_scenes_for_evaluation_are_not_trained_on(tmp_path):
    pytest.importorskip("open3d")
    from vision3d.synthetic import ShardCache

    ShardCache(tmp_path).fill(range(HELD_OUT_SEED, HELD_OUT_SEED + 1), (24, 32), workers=0)
    with pytest.raises(InputError, match="which is for evaluation"):
        open_source(tmp_path)
    assert len(open_source(tmp_path, held_out=True)) == 1


def test_wrong_arguments_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match="unknown fields"):
        batches(world, fields=("picture",))
    with pytest.raises(ValueError, match="not an increasing pair"):
        batches(world, scale=(0.9, 0.5))
    with pytest.raises(InputError, match="there is no folder"):
        open_source(tmp_path / "nothing")


def test_the_rendered_world_names_its_seeds():
    world = RenderedWorld(HELD_OUT_SEED, 5, (32, 48))
    assert len(world) == 5
    assert world.describe()["seeds"] == [HELD_OUT_SEED, HELD_OUT_SEED + 5]
    with pytest.raises(IndexError):
        world[5]
