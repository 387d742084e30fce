"""Both layouts' names against the published tables, and that renaming goes there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vision3d.backbone import keymap


@pytest.mark.parametrize("table", ["keymap_unet_sd15", "keymap_unet_sd21", "keymap_vae"])
def test_names_are_the_published_ones(golden: Path, table: str) -> None:
    names = json.loads((golden / "backbone" / f"{table}.json").read_text())["map"]
    forth, back = (
        (keymap.vae_key, keymap.ldm_vae_key)
        if table == "keymap_vae"
        else (keymap.unet_key, keymap.ldm_unet_key)
    )
    assert {ldm: forth(ldm) for ldm in names} == names
    assert {ours: back(ours) for ours in names.values()} == {ours: ldm for ldm, ours in names.items()}


def test_keys_of_no_network_are_left_out() -> None:
    chosen = keymap.select(
        ["model_ema.decay", "first_stage_model.quant_conv.bias"], "first_stage_model.", keymap.vae_key
    )
    assert chosen == {"quant_conv.bias": "first_stage_model.quant_conv.bias"}
    assert keymap.unet_key("num_updates") is None


@pytest.mark.parametrize(
    "attends", [(False, True, True, True), (False, False, True, True), (True, True, False, False)]
)
def test_an_upsampler_takes_the_place_of_transformers_where_there_are_none(attends):
    for level, there in enumerate(attends[:3]):
        name = keymap.ldm_unet_key(f"up_blocks.{level}.upsamplers.0.conv.weight", 2, attends)
        assert name == f"output_blocks.{3 * level + 2}.{2 if there else 1}.conv.weight"
        assert keymap.unet_key(name) == f"up_blocks.{level}.upsamplers.0.conv.weight"
    blocks = ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in attends]
    assert keymap.attending({"up_block_types": blocks}) == attends
