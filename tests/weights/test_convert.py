"""Every tensor of a checkpoint survives the way to the other layout and back, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vision3d.backbone import keymap
from vision3d.backbone.loading import empty_weights, open_checkpoint
from vision3d.backbone.stable_diffusion import load_stable_diffusion
from vision3d.backbone.text import encode, load_text_tower, to_open_clip, tokenise
from vision3d.errors import InputError, WeightsError
from vision3d.evaluation.parity.recipe import RecipeWeights
from vision3d.pipelines.primedepth import PrimeDepth, PrimeDepthConfig
from vision3d.pipelines.primedepth.checkpoint import checkpoint_shapes
from vision3d.weights.convert import REST, convert

NARROW = PrimeDepthConfig(
    model_channels=32,
    num_head_channels=8,
    context_dim=48,
    channels2predictor=32,
    vae_ch=32,
    label_channels={"depth": 3, "segmentation": 150},
)


def tower(width: int, layers: int, activation: str) -> CLIPTextModel:
    torch.manual_seed(width)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=1,
            hidden_act=activation,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    ).eval()


def ldm_tensors(family: str) -> dict[str, Tensor]:
    """A narrow Stable Diffusion file of either family, with all that published files hold besides."""
    sd2 = family == "sd2"
    with empty_weights():
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64, 64),
            cross_attention_dim=32,
            attention_head_dim=(1, 1, 1, 1) if sd2 else 8,
            use_linear_projection=sd2,
        )
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    shapes = {
        "model.diffusion_model." + keymap.ldm_unet_key(name): tuple(value.shape)
        for name, value in unet.state_dict().items()
    }
    for name, value in vae.state_dict().items():
        shape = tuple(keymap.as_convolution(name, value).shape)
        shapes["first_stage_model." + keymap.ldm_vae_key(name)] = shape
    tensors = dict(RecipeWeights(shapes, 1))
    if sd2:
        tensors |= to_open_clip(tower(32, 3, "gelu"), "cond_stage_model.model.")
        tensors["cond_stage_model.model.text_projection"] = torch.randn(32, 32)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    else:
        prefix = "cond_stage_model.transformer.text_model."
        text = tower(32, 2, "quick_gelu").state_dict()
        tensors |= {prefix + name.removeprefix("text_model."): value for name, value in text.items()}
        tensors[prefix + "embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {"betas": torch.linspace(0, 1, 1000), "model_ema.num_updates": torch.tensor(3)}
    tensors["model.diffusion_model.out.2.bias"] = tensors["model.diffusion_model.out.2.bias"].half()
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tensors(family: str) -> dict[str, Tensor]:
    return ldm_tensors(family)


@pytest.fixture(scope="module")
def folder(family: str, tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp(family)
    file = base / "narrow_768.ckpt"
    torch.save({"state_dict": tensors, "global_step": 7}, file)
    done = convert(file, base / "folder")
    assert done.layout == "stable-diffusion" and set(done.components) == {"unet", "vae", "text_encoder"}
    return base / "folder"


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_stable_diffusion_files_survive_both_ways(family, tensors, folder, tmp_path, suffix) -> None:
    back = tmp_path / f"back{suffix}"
    convert(folder, back)
    assert_same(tensors, open_checkpoint(back))


def test_the_folder_is_what_diffusers_and_our_loader_expect(family, tensors, folder) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert pipeline.scheduler.config.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
    assert pipeline.tokenizer.pad_token_id == (0 if family == "sd2" else 49407)
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    ours = load_stable_diffusion(folder)
    for name, value in ours.unet.state_dict().items():
        assert torch.equal(value.float(), pipeline.unet.state_dict()[name].float())
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.ckpt"))


def test_the_text_of_the_folder_is_the_text_of_the_file(family, tensors, folder) -> None:
    """Folders of Stable Diffusion 2.x end one layer early, and so take the penultimate as their last."""
    given = load_text_tower(tensors)
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    ids, _ = tokenise(["a photo of a cat"], pad=0)
    wanted = encode(given, ids, "penultimate" if family == "sd2" else "last")
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).last_hidden_state, wanted, atol=1e-5, rtol=1e-5)


def test_the_rest_may_be_left_out(tensors, tmp_path) -> None:
    file = tmp_path / "narrow.safetensors"
    save_file(tensors, file)
    done = convert(file, tmp_path / "folder", rest=False, prediction="sample")
    assert done.aside == 0 and not (tmp_path / "folder" / REST).exists()
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "sample"


@pytest.fixture(scope="module")
def primedepth_tensors() -> dict[str, Tensor]:
    tensors = dict(RecipeWeights(checkpoint_shapes(NARROW), 3))
    tensors |= to_open_clip(tower(48, 2, "gelu").half(), "cond_stage_model.model.")
    tensors["betas"] = torch.zeros(1000)
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def test_primedepth_files_survive_both_ways_and_predict_the_same(primedepth_tensors, tmp_path) -> None:
    import numpy as np

    file = tmp_path / "narrow.safetensors"
    save_file(primedepth_tensors, file)
    done = convert(file, tmp_path / "folder", config=NARROW)
    assert done.layout == "primedepth" and done.aside == 1
    convert(tmp_path / "folder", tmp_path / "back.ckpt")
    assert_same(primedepth_tensors, open_checkpoint(tmp_path / "back.ckpt"))
    image = np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)
    depths = [
        PrimeDepth.from_pretrained(source, config=config, device="cpu")(image).depth
        for source, config in ((file, NARROW), (tmp_path / "folder", None))
    ]
    np.testing.assert_allclose(*depths, atol=1e-5)  # mapped at other addresses, summed in another order


def test_a_sensor_stage_survives_both_ways_with_its_side_encoder(tmp_path) -> None:
    """Stable-Sim2Real's published names at narrow width: what the folder has no place for is kept beside it."""
    tensors = ldm_tensors("sd2")
    encoder = ("time_embed.", "input_blocks.", "middle_block.")
    for name, value in list(tensors.items()):
        bare = name.removeprefix("model.diffusion_model.")
        if bare != name and bare.startswith(encoder):
            tensors[f"control_model.{bare}"] = value * 2
    tensors["control_model.input_new_blocks.0.weight"] = torch.randn(4, 8, 3, 3)
    tensors["loss_w"] = torch.ones(1)
    file = tmp_path / "stage1_main.ckpt"
    torch.save({"state_dict": tensors}, file)
    done = convert(file, tmp_path / "folder")
    assert done.aside > 100
    unet = load_stable_diffusion(tmp_path / "folder").unet.state_dict()
    assert torch.equal(unet["conv_in.weight"], tensors["model.diffusion_model.input_blocks.0.0.weight"])
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert_same(tensors, open_checkpoint(tmp_path / "back.safetensors"))


def test_mistakes_are_said(tmp_path) -> None:
    file = tmp_path / "foreign.safetensors"
    save_file({"cls_token": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"foreign\.safetensors: no Stable Diffusion or PrimeDepth file"):
        convert(file, tmp_path / "out")
    with pytest.raises(InputError, match="a file becomes a folder"):
        convert(file, tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="a folder becomes a file"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(WeightsError, match="no folder whose single-file layout is published"):
        convert(tmp_path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out").exists()
