"""Masks by optional packages: what they are asked, what becomes of what they find, and what is said without them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError, ResourceError
from vision3d.io.photo import Photo, load_photo
from vision3d.pipelines.sd_dino.masks import object_mask, segment_at


@pytest.fixture
def photo(tmp_path: Path) -> Photo:
    image = np.full((40, 64, 3), 30, np.uint8)
    image[10:30, 20:50] = 220
    Image.fromarray(image).save(tmp_path / "thing.png")
    return load_photo(tmp_path / "thing.png")


@pytest.fixture
def model_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "isnet-general-use.onnx").touch()
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "models"))


def rembg_that(monkeypatch: pytest.MonkeyPatch, new_session: object) -> list[dict]:
    """A stand-in for the package: bright pixels are the object."""
    module = ModuleType("rembg")
    calls: list[dict] = []

    def remove(image: Image.Image, **options: object) -> Image.Image:
        calls.append(options)
        return image.convert("L").point(lambda value: 255 * (value > 100))

    module.remove, module.new_session = remove, new_session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rembg", module)
    return calls


@pytest.mark.usefixtures("model_is_here")
def test_rembg_finds_the_object_with_a_model_that_all_may_use(
    photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = rembg_that(monkeypatch, lambda name: f"session of {name}")
    mask = object_mask(photo)
    assert mask.shape == photo.size and mask[10:30, 20:50].all() and mask.sum() == 600
    assert calls == [{"only_mask": True, "session": "session of isnet-general-use"}]


def test_rembg_is_not_let_download_its_model(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "none"))
    asked: list[str] = []
    rembg_that(monkeypatch, asked.append)
    with pytest.raises(ResourceError, match="rembg d isnet-general-use"):
        object_mask(photo)
    assert not asked


@pytest.mark.usefixtures("model_is_here")
def test_a_model_that_rembg_cannot_get_is_one_line(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError("github.com cannot be reached\nand more of it")

    rembg_that(monkeypatch, unreachable)
    with pytest.raises(ResourceError, match="cannot be reached") as caught:
        object_mask(photo)
    assert "\n" not in str(caught.value) and "--mask-a" in str(caught.value)


def test_rembg_without_its_runtime_counts_as_not_installed(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    (tmp_path / "rembg.py").write_text("import sys\nsys.exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ResourceError, match="not installed"):
        object_mask(photo)


def test_segment_anything_is_asked_at_a_point(photo: Photo, tmp_path: Path) -> None:
    """The published network's code with random weights: pixels, points and masks pass through."""
    import torch
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16,
        global_attn_indexes=[0], window_size=2, mlp_dim=16, num_pos_feats=8,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).save_pretrained(tmp_path / "sam")
    side = {"height": 64, "width": 64}
    SamProcessor(
        SamImageProcessor(size={"longest_edge": 64}, pad_size=side, mask_size={"longest_edge": 16})
    ).save_pretrained(tmp_path / "sam")
    model = str(tmp_path / "sam")
    mask = segment_at(photo, (35, 20), model=model, device="cpu")
    assert mask.shape == photo.size and mask.dtype == bool
    with pytest.raises(InputError, match="outside"):
        segment_at(photo, (70, 20), model=model)
    with pytest.raises(ResourceError, match="not on this machine"):
        segment_at(photo, (5, 5), model=str(tmp_path / "nothing"))
