"""The shared face over the networks: what it refuses, what it never reads, where it finds weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

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


def test_plain_attention_gives_the_same_features(subject):
    latents, context = subject
    plain, fast = (
        Backbone.from_pretrained(PRIOR, device="cpu", attn=attn).features(latents, 100, context, taps=("s3",))
        for attn in ("math", "auto")
    )
    torch.testing.assert_close(plain["s3"].tensor, fast["s3"].tensor, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-2-1", "runwayml/stable-diffusion-v1-5"])
def test_withdrawn_repositories_lead_to_their_mirrors(name):
    with pytest.raises(
        WeightsError, match=r"not on this machine; `vision3d weights pull sd.*` gets it from [\w-]+/"
    ):
        Backbone.from_pretrained(name, device="cpu")
    with pytest.raises(WeightsError, match="no such weights"):
        Backbone.from_pretrained(Path("nowhere"), device="cpu")
