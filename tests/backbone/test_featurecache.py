from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vision3d.backbone.featurecache import (
    FeatureCache,
    FeatureKey,
    LatentCache,
    LatentKey,
    image_sha256,
    shared_latents,
)

KEY = FeatureKey("i", "960x960 lanczos", "m", ("s5", "s3"), 100, "c", "fixed42", "float32")


def features(scale=1.0):
    torch.manual_seed(0)
    return {"s5": scale * torch.randn(4, 3, 5), "s3": scale * torch.randn(2, 6, 10)}


def fail():
    pytest.fail("computed although it was stored")


def entry(index: int) -> FeatureKey:
    return replace(KEY, image=str(index))


def kilobytes(count: int) -> dict[str, torch.Tensor]:
    return {"x": torch.ones(512 * count)}


def test_stored_features_come_back_in_half_precision(tmp_path):
    cache = FeatureCache(tmp_path)
    first = cache.get_or_compute(KEY, features)
    again = FeatureCache(tmp_path).get_or_compute(KEY, fail)
    assert (cache.hits, cache.misses) == (0, 1)
    for name, value in features().items():
        assert first[name].dtype == again[name].dtype == torch.float32
        assert again[name].equal(value.half().float())
        assert first[name].equal(again[name]), "a hit and a miss must give the same numbers"
    with safe_open(cache.path(KEY), framework="pt") as archive:
        assert archive.get_tensor("s5").dtype == torch.float16
        assert archive.metadata()["format"] == "vision3d-features"


def test_values_beyond_half_precision_survive(tmp_path):
    big = {"x": torch.tensor([1e6, 1.0 + 1e-6]), "y": torch.tensor([2.0])}
    FeatureCache(tmp_path).put(KEY, big)
    assert FeatureCache(tmp_path).get(KEY)["x"].equal(big["x"])


def test_views_of_one_tensor_can_be_stored(tmp_path):
    whole = torch.randn(6, 4).half()
    cache = FeatureCache(tmp_path)
    cache.put(KEY, {"a": whole[:3], "b": whole.T})
    assert cache.get(KEY)["b"].equal(whole.T.float())


def test_every_field_of_the_key_counts(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features())
    others = {"taps": ("s5",), "timestep": 101}
    for field in fields(KEY):
        other = replace(KEY, **{field.name: others.get(field.name, "other")})
        assert cache.get(other) is None, field.name
    assert cache.get(replace(KEY)) is not None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "text"])
def test_a_damaged_entry_is_dropped_and_computed_again(tmp_path, damage):
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features())
    path = cache.path(KEY)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    if damage == "foreign":
        cache.put(entry(1), features())
        data = bytearray(cache.path(entry(1)).read_bytes())
    path.write_bytes({"cut": data[:-9], "empty": b"", "text": b"no tensors here"}.get(damage, bytes(data)))
    assert cache.get(KEY) is None
    assert not path.exists()
    assert cache.get_or_compute(KEY, features)["s5"].shape == (4, 3, 5)
    assert cache.get(KEY) is not None


def test_the_least_recently_used_go_first(tmp_path):
    cache = FeatureCache(tmp_path, limit="50K")
    for index in range(4):
        cache.put(entry(index), kilobytes(10))
        os.utime(cache.path(entry(index)), (1000 + index, 1000 + index))
    assert cache.get(entry(0)) is not None  # now the latest
    cache.put(entry(4), kilobytes(10))
    cache.put(entry(5), kilobytes(10))
    assert cache.size() <= 50_000
    there = [index for index in range(6) if cache.path(entry(index)).exists()]
    assert 0 in there
    assert 1 not in there
    assert {4, 5} <= set(there)


def test_the_limit_holds_whatever_other_processes_add(tmp_path):
    first, second = FeatureCache(tmp_path, limit=100_000), FeatureCache(tmp_path, limit=100_000)
    for index in range(40):
        (first if index % 2 else second).put(entry(index), kilobytes(5))
        assert first.size() <= 104_000, "no more than what was written since the folder was last measured"
    FeatureCache(tmp_path, limit=100_000).put(KEY, kilobytes(200))
    assert FeatureCache(tmp_path).get(KEY) is None, "larger than the whole cache"


def test_an_unwritable_folder_costs_a_warning_not_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache")
    for index in range(3):
        assert cache.get_or_compute(entry(index), features)["s3"].shape == (2, 6, 10)
    assert capsys.readouterr().err.count("features are not kept") == 1


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features())
    leftover = cache.path(KEY).with_name(".x.1-ab.partial.safetensors")
    leftover.write_bytes(b"x" * 1000)
    os.utime(leftover, (0, 0))
    fresh = leftover.with_name(".y.1-ab.partial.safetensors")
    fresh.write_bytes(b"x" * 1000)
    assert cache.size() == cache.path(KEY).stat().st_size
    assert not leftover.exists()
    assert fresh.exists()


WORKER = """
import sys, torch
from dataclasses import replace
from vision3d.backbone.featurecache import FeatureCache, FeatureKey
cache = FeatureCache(sys.argv[1], limit=60_000)
for turn in range(60):
    index = turn % 9
    key = FeatureKey(str(index), "c", "m", ("x",))
    got = cache.get_or_compute(key, lambda: {"x": torch.full((5000,), float(index))})
    assert got["x"].eq(index).all(), index
print(cache.hits, cache.misses)
"""


def test_two_processes_share_a_folder(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(sum(map(int, output.split())) == 60 for output in outputs)
    assert FeatureCache(tmp_path).size() <= 60_000 + 12_000
    assert not list(tmp_path.rglob("*.partial*"))


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path))
    assert FeatureCache().folder == tmp_path / "features"
    assert FeatureCache().limit == 20_000_000_000


def test_images_are_told_apart_by_content():
    image = np.zeros((4, 6, 3), np.uint8)
    assert image_sha256(image) == image_sha256(image.copy()) == image_sha256(torch.from_numpy(image))
    changed = image.copy()
    changed[3, 5, 2] = 1
    distinct = {
        image_sha256(x) for x in (image, changed, image.reshape(6, 4, 3), image.astype(np.uint16), b"")
    }
    assert len(distinct) == 5
    assert image_sha256(np.asfortranarray(changed)) == image_sha256(changed)
    values = torch.linspace(0, 1, 6)
    assert image_sha256(values) == image_sha256(values.numpy())
    assert (
        len({image_sha256(values.to(kind)) for kind in (torch.float32, torch.float16, torch.bfloat16)}) == 3
    )


def test_the_second_pipeline_on_an_image_encodes_nothing():
    cache, encoded = LatentCache(), []

    def encode():
        encoded.append(1)
        return torch.randn(1, 4, 8, 8, requires_grad=True)

    key = LatentKey("image", "64x64", "vae")
    first = cache.get_or_compute(key, encode)
    assert cache.get_or_compute(LatentKey("image", "64x64", "vae"), encode) is first
    assert not first.requires_grad
    cache.get_or_compute(replace(key, vae="other"), encode)
    assert len(encoded) == 2
    assert (cache.hits, cache.misses) == (1, 2)
    assert shared_latents() is shared_latents()


def test_latents_stay_below_the_memory_limit():
    cache = LatentCache(limit=3000)
    keys = [LatentKey(str(i), "c", "v") for i in range(4)]
    for key in keys[:2]:
        cache.get_or_compute(key, lambda: torch.zeros(256))
    cache.get_or_compute(keys[0], fail)
    cache.get_or_compute(keys[2], lambda: torch.zeros(256))
    assert (len(cache), cache.bytes) == (2, 2048)
    cache.get_or_compute(keys[0], fail)  # the one in between was let go
    cache.get_or_compute(keys[3], lambda: torch.zeros(1000))
    assert len(cache) == 2, "too large to keep"
    cache.clear()
    assert len(cache) == 0


def test_threads_that_want_the_same_latents_encode_them_once():
    cache, encoded = LatentCache(), []
    key = LatentKey("image", "c", "v")

    def encode():
        encoded.append(1)
        time.sleep(0.05)
        return torch.zeros(4)

    threads = [threading.Thread(target=cache.get_or_compute, args=(key, encode)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(encoded) == 1
    assert (cache.hits, cache.misses) == (3, 1)


def test_an_encoder_that_fails_leaves_nothing_behind():
    cache = LatentCache()
    key = LatentKey("image", "c", "v")
    with pytest.raises(RuntimeError, match="no memory"):
        cache.get_or_compute(key, lambda: (_ for _ in ()).throw(RuntimeError("no memory")))
    assert cache.get_or_compute(key, lambda: torch.ones(1)).item() == 1


def test_features_are_kept_on_disk_only_for_networks_that_a_later_process_can_tell(tmp_path):
    from dataclasses import replace

    from vision3d.backbone import Backbone
    from vision3d.backbone.stable_diffusion import load_stable_diffusion
    from vision3d.weights import MINI

    loaded = load_stable_diffusion(MINI / "primedepth", dtype=torch.float32)
    cache = FeatureCache(tmp_path / "cache")
    told = Backbone(loaded, device="cpu", feature_cache=cache)
    latents, context = torch.randn(1, 16, 8, 8), torch.randn(1, 77, 64)
    kept = told.features(latents, 100, context, taps=("s3",))
    files = len(list((tmp_path / "cache").rglob("*.*")))
    assert files > 0
    again = told.features(latents, 100, context, taps=("s3",))
    assert torch.equal(kept["s3"].tensor, again["s3"].tensor)
    told.features(latents.bfloat16().float(), 100, context.bfloat16(), taps=("s3",))
    # Another autoencoder gives other latents of the same picture.
    other = told.features(latents + 1, 100, context, taps=("s3",))
    assert not torch.equal(kept["s3"].tensor, other["s3"].tensor)
    files = len(list((tmp_path / "cache").rglob("*.*")))

    nameless = type(loaded.unet)(**dict(loaded.unet.config)).eval()
    untold = Backbone(replace(loaded, unet=nameless), device="cpu", feature_cache=cache)
    untold.features(latents, 100, context, taps=("s3",))
    assert len(list((tmp_path / "cache").rglob("*.*"))) == files
