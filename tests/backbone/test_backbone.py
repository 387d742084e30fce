"""The shared face over the networks: what it refuses, what it never reads, where it finds weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.backends.cuda import flash_sdp_enabled

from vision3d.backbone import Backbone, loading
from vision3d.backbone.featurecache import FeatureCache
from vision3d.errors import InputError, WeightsError
from vision3d.weights import MINI, locate

PRIOR = MINI / "primedepth"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_pretrained(PRIOR, device="cpu")


@pytest.fixture(scope="module")
def subject() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and a context."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 16, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"t": 1000}, "diffusion step 1000"),
        ({"t": torch.tensor([-1])}, "diffusion step"),
        ({"noise": "foo"}, "noise 'foo'"),
        ({"ensemble": 0}, "ensemble of 0"),
        ({"taps": ("s9",)}, "s9"),
        ({"taps": ("dift9",)}, "dift9"),
        ({"taps": ("difta",)}, "difta"),
        ({"taps": ()}, "no taps"),
    ],
)
def test_wrong_arguments_are_named(backbone, subject, changed, words):
    latents, context = subject
    with pytest.raises(InputError, match=words):
        backbone.features(latents, **{"t": 100, "cond": context, "taps": ("s3",), **changed})


def test_other_wrong_words_are_named(backbone):
    with pytest.raises(InputError, match="sample 'foo'"):
        backbone.encode(torch.zeros(1, 3, 64, 64), sample="foo")
    with pytest.raises(InputError, match="attn 'foo'"):
        Backbone(attn="foo")


def test_a_tap_may_be_asked_for_by_two_names(backbone, subject):
    latents, context = subject
    found = backbone.features(latents, 100, context, taps=("s5", "u0r1", "s4"))
    assert set(found) == {"s5", "u0r1", "s4"}
    assert torch.equal(found["s5"].tensor, found["u0r1"].tensor)


def test_plain_attention_gives_the_same_features(subject, tmp_path):
    latents, context = subject
    found, fused = {}, {}
    for attn in ("math", "auto"):
        backbone = Backbone.from_pretrained(
            PRIOR, device="cpu", attn=attn, feature_cache=FeatureCache(tmp_path) if attn == "math" else None
        )
        asked = []
        first = backbone.sd.unet.down_blocks[0].resnets[0]
        seen = first.register_forward_hook(lambda *_, asked=asked: asked.append(flash_sdp_enabled()))
        found[attn] = backbone.features(latents, 100, context, taps=("s3",))["s3"].tensor
        seen.remove()
        fused[attn] = asked
    assert fused == {"math": [False], "auto": [True]}
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing to be taken for the other's later
    torch.testing.assert_close(found["math"], found["auto"], atol=1e-4, rtol=1e-4)


def test_features_on_disk_cost_no_reading_of_weights(subject, tmp_path, monkeypatch):
    latents, context = subject
    cache = FeatureCache(tmp_path / "cache")
    first = Backbone.from_pretrained(PRIOR, device="cpu", memory="low", feature_cache=cache)
    kept = first.features(latents, 100, context, taps=("s3",))["s3"].tensor

    def read(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading.WeightSource, "read", read)
    again = Backbone.from_pretrained(PRIOR, device="cpu", memory="low", feature_cache=cache)
    assert torch.equal(again.features(latents, 100, context, taps=("s3",))["s3"].tensor, kept)


def test_a_damaged_text_tower_is_no_missing_one(tmp_path):
    shutil.copytree(PRIOR, tmp_path / "prior")
    file = next((tmp_path / "prior" / "text_encoder").glob("*.safetensors"))
    file.write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"):
        Backbone.from_pretrained(tmp_path / "prior", device="cpu")
    shutil.rmtree(tmp_path / "prior" / "text_encoder")
    assert Backbone.from_pretrained(tmp_path / "prior", device="cpu").text_encoder is None


def test_weights_are_found_in_the_hubs_cache_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--foo--sd", "0123456789" * 4
    snapshot = repository / "snapshots" / commit
    shutil.copytree(PRIOR, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert locate("foo/sd") == (snapshot, "foo/sd@01234567")
    assert Backbone.from_pretrained("foo/sd", device="cpu").sd.source == snapshot


def test_a_repository_of_one_file_is_that_file_and_a_pulled_one_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--foo--one"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    (snapshot / "README.md").write_text("")
    (snapshot / "model.ckpt").write_bytes(b"x")
    assert locate("foo/one") == (snapshot / "model.ckpt", "foo/one@01234567")
    monkeypatch.setattr(
        "vision3d.weights.registry.pulled",
        lambda name: SimpleNamespace(label="label") if name == "sd21" else None,
    )
    monkeypatch.setattr("vision3d.weights.registry.entry", lambda name: tmp_path / name)
    assert locate("stabilityai/stable-diffusion-2-1") == (tmp_path / "sd21", "label")


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1",
        "runwayml/stable-diffusion-v1-5",
    ],
)
def test_withdrawn_repositories_lead_to_their_mirrors(name):
    with pytest.raises(
        WeightsError, match=r"not on this machine; `vision3d weights pull sd.*` gets it from [\w-]+/"
    ):
        Backbone.from_pretrained(name, device="cpu")
    with pytest.raises(WeightsError, match="no such weights"):
        Backbone.from_pretrained(Path("nowhere"), device="cpu")
