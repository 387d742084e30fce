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
