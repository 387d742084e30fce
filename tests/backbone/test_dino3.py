from __future__ import annotations

import json

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from vision3d.backbone.dino import normalise
from vision3d.backbone.dino3 import Dinov3
from vision3d.errors import InputError, WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, patch_size=16,
        num_register_tokens=4, layerscale_value=0.5,
    )  # fmt: skip
    model = DINOv3ViTModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.3)
    path = tmp_path_factory.mktemp("dinov3")
    model.save_pretrained(path)
    return path


def test_tokens_are_those_of_transformers(folder):
    images = torch.rand(3, 3, 50, 64)
    network = Dinov3(folder)
    theirs = DINOv3ViTModel.from_pretrained(folder).eval()(
        normalise(images[..., :48, :]), output_hidden_states=True
    )
    normed, plain = network.features(images, norm=True, batch_size=2), network.features(images, layer=0)
    assert normed.grid == (3, 4)
    assert normed.prefix.shape == (3, 5, 32)
    torch.testing.assert_close(normed.all, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.all, theirs.hidden_states[1], atol=1e-5, rtol=1e-5)
    raw = network.features(images)
    torch.testing.assert_close(network.model.norm(raw.all), normed.all, atol=1e-5, rtol=1e-5)
    assert (raw.all - normed.all).abs().max() > 0.1


def test_what_is_no_dinov3_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(WeightsError, match="holds dinov2"):
        Dinov3(tmp_path)
    with pytest.raises(WeightsError, match=r"no config\.json"):
        Dinov3(tmp_path / "none")
    with pytest.raises(InputError, match="no block 3"):
        Dinov3(folder).features(torch.rand(1, 3, 32, 32), layer=3)
    with pytest.raises(InputError, match="no patch of 16"):
        Dinov3(folder).features(torch.rand(1, 3, 32, 15))
    with pytest.raises(InputError, match="facet 'key'"):
        Dinov3(folder).features(torch.rand(1, 3, 32, 32), facet="key")
    with pytest.raises(InputError, match="16 pixels apart"):
        Dinov3(folder).features(torch.rand(1, 3, 32, 32), stride=8)
