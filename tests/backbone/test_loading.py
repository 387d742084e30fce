"""Checkpoints of every layout, and how wrong ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from vision3d.backbone import keymap, loading
from vision3d.backbone.stable_diffusion import LDM_UNET, LDM_VAE, load_stable_diffusion
from vision3d.errors import WeightsError
from vision3d.training.prior import load_module


@pytest.fixture(scope="module")
def networks() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(64, 64, 128, 128),
        attention_head_dim=(1, 1, 2, 2),
        cross_attention_dim=48,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    return unet, vae


@pytest.fixture(scope="module")
def ldm(networks: tuple[UNet2DConditionModel, AutoencoderKL]) -> dict[str, torch.Tensor]:
    unet, vae = networks
    tensors = {LDM_UNET + keymap.ldm_unet_key(name): value for name, value in unet.state_dict().items()}
    for name, value in vae.state_dict().items():
        tensors[LDM_VAE + keymap.ldm_vae_key(name)] = keymap.as_convolution(name, value)
    tensors["model_ema.decay"] = torch.tensor(0.9)
    return {name: value.contiguous() for name, value in tensors.items()}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("layout", ["safetensors", "ckpt", "bare.pt"])
def test_ldm_single_files_load(networks, ldm, layout: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{layout}"
    if layout == "safetensors":
        save_file(ldm, path)
    else:
        torch.save({"state_dict": ldm, "global_step": 3} if layout == "ckpt" else ldm, path)
    found = load_stable_diffusion(path)
    assert found.unet is not None and found.vae is not None
    assert same(networks[0], found.unet) and same(networks[1], found.vae)


def test_diffusers_folders_and_component_files_load(networks, tmp_path: Path) -> None:
    unet, vae = networks
    unet.save_pretrained(tmp_path / "unet")
    vae.save_pretrained(tmp_path / "vae")
    whole = load_stable_diffusion(tmp_path)
    assert same(unet, whole.unet) and same(vae, whole.vae)
    assert same(vae, load_stable_diffusion(tmp_path / "vae").vae)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert same(unet, load_stable_diffusion(file).unet)


def test_the_other_family_is_refused_by_name(networks, tmp_path: Path) -> None:
    networks[0].save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match=r"task needs SD 1\.x"):
        load_stable_diffusion(tmp_path, family="sd1")


def test_wrong_files_are_refused_in_one_line(tmp_path: Path, ldm) -> None:
    class Code:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "executed"),)

    empty, cut, foreign, code = (
        tmp_path / n for n in ("e.safetensors", "c.safetensors", "f.safetensors", "x.ckpt")
    )
    empty.touch()
    save_file(ldm, cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    save_file({"layers.0.weight": torch.ones(2, 2)}, foreign)
    torch.save({"state_dict": Code()}, code)
    half = tmp_path / "half.ckpt"
    torch.save({"state_dict": ldm}, half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    page, picture = tmp_path / "page.ckpt", tmp_path / "picture.pt"
    page.write_text("<!DOCTYPE html><html>404 not found</html>")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    for path, words in (
        (page, "no weight file, but a web page"),
        (picture, "no weight file"),
        (tmp_path / "none.ckpt", "no such"),
        (empty, "empty"),
        (cut, "damaged"),
        (half, "damaged"),
        (foreign, "layers.0.weight"),
        (code, "pickled code"),
    ):
        with pytest.raises(WeightsError, match=words) as caught:
            load_stable_diffusion(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_missing_unexpected_misshapen_and_nan_tensors_are_named(networks, tmp_path: Path) -> None:
    unet = networks[0]
    unet.save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = dict(unet.state_dict())

    def expect(words: str, **changes: torch.Tensor | None) -> None:
        changed = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
        save_file({n: v.contiguous() for n, v in changed.items() if v is not None}, file)
        with pytest.raises(WeightsError, match=words):
            loading.load_component(UNet2DConditionModel, tmp_path / "unet")

    expect(r"missing conv_in\.weight", conv_in__weight=None)
    expect(r"unexpected stray\.weight", stray__weight=torch.ones(1))
    expect(r"conv_out\.bias is \(5,\)", conv_out__bias=torch.ones(5))
    expect(r"conv_out\.bias holds NaN", conv_out__bias=torch.full((4,), torch.nan))


def test_weights_can_be_let_go_and_fetched_again(networks, tmp_path: Path) -> None:
    unet = networks[0]
    unet.save_pretrained(tmp_path / "unet")
    again = loading.load_component(UNet2DConditionModel, tmp_path / "unet")
    assert loading.release_weights(again)
    assert all(p.is_meta for p in again.parameters())
    loading.load_weights(again)
    assert same(unet, again)
    assert not loading.release_weights(unet)


def test_equal_tensors_have_equal_checksums_in_any_layout(networks, ldm, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    networks[1].save_pretrained(tmp_path / "vae")
    save_file(ldm, tmp_path / "sd.safetensors")
    folder = load_stable_diffusion(tmp_path / "vae").vae._weight_source.checksum()
    file = load_stable_diffusion(tmp_path / "sd.safetensors").vae._weight_source.checksum()
    assert folder == file


def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    size = 300 * 2**20
    save_file(
        {"encoder.conv_in.weight": torch.zeros(1), "big": torch.ones(size // 4)}, tmp_path / "big.safetensors"
    )
    code = (
        "import torch, resource\n"
        "from vision3d.backbone.loading import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"t = open_checkpoint({str(tmp_path / 'big.safetensors')!r})['big']\n"
        "assert float(t.sum()) > 0\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) <= 1.15 * size


def test_weights_in_several_files_load_by_their_index(networks, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    vae = networks[1]
    vae.save_pretrained(tmp_path / "whole" / "vae")
    whole = tmp_path / "whole" / "vae" / "diffusion_pytorch_model.safetensors"
    folder = tmp_path / "parts" / "vae"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((whole.parent / "config.json").read_bytes())
    tensors = {name: value.contiguous() for name, value in vae.state_dict().items()}
    decoder = {name: value + 1 for name, value in tensors.items() if name.startswith(("decoder", "post"))}
    save_file(decoder, folder / "decoder.safetensors")
    files = {n: "decoder.safetensors" if n in decoder else f"../../whole/vae/{whole.name}" for n in tensors}
    index = folder / f"{whole.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    loaded = loading.load_component(AutoencoderKL, folder)
    assert loaded.state_dict().keys() == tensors.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, decoder.get(name, tensors[name]))
    trained = load_module(AutoencoderKL, folder)
    assert same(loaded, trained) and all(p.requires_grad for p in trained.parameters())
    # checksums follow each of the files
    before = loading.fingerprint(tmp_path / "parts"), loaded._weight_source.checksum()
    changed = {**tensors, "encoder.conv_in.bias": tensors["encoder.conv_in.bias"] + 1}
    save_file(changed, whole)
    os.utime(whole, ns=(1, 1))
    again = loading.load_component(AutoencoderKL, folder)
    assert loading.fingerprint(tmp_path / "parts") != before[0]
    assert again._weight_source.checksum() != before[1]

    def expect(words: str, content: object) -> None:
        index.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(WeightsError, match=words):
            loading.load_component(AutoencoderKL, folder)

    expect("damaged index", "{")
    expect("damaged index", {"metadata": {}})
    expect("no safetensors file", {"weight_map": {**files, "encoder.conv_in.bias": "code.bin"}})
    expect("no such weight file", {"weight_map": {**files, "encoder.conv_in.bias": "lost.safetensors"}})
    expect("damaged safetensors", {"weight_map": {**files, "encoder.conv_in.bias": "decoder.safetensors"}})
