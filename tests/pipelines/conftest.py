"""A small SD+DINO: the embedded prior and an untrained vision transformer, whose features still tell places apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def sd_dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vision3d.backbone.dino import Dino, DinoConfig
    from vision3d.pipelines.sd_dino.options import SDDinoConfig
    from vision3d.pipelines.sd_dino.pipeline import save_dino
    from vision3d.weights import MINI

    folder = tmp_path_factory.mktemp("sd_dino")
    torch.manual_seed(0)
    network = Dino(DinoConfig(48, 2, 3, 8, 12, 96, layer_scale=False, mask_token=False))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.trunc_normal_(parameter, std=0.05)
    save_dino(network, folder / "dino")
    config = SDDinoConfig(
        sd_size=128, tile=None, dino_size=96, dino_layer=1, dims={"s5": 16, "s4": 16, "s3": 16}
    )
    config.save(folder, sd=str(MINI / "primedepth"), dino="dino")
    return folder


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """(72, 96, 3) uint8, smooth, no two places alike."""
    coarse = np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC))
