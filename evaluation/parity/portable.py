"""Numbers that have to be the same on every processor."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

_EMBEDDINGS = """
import json, sys
import numpy, torch
from diffusers.models.embeddings import get_timestep_embedding

found = [
    get_timestep_embedding(torch.tensor([step]), width, flip_sin_to_cos=True, downscale_freq_shift=0)[0].numpy()
    for step, width in json.loads(sys.argv[1])
]
numpy.savez(sys.stdout.buffer, *found)
"""


def time_embeddings(
    asked: Sequence[tuple[int, int]],  # step, width
) -> list[np.ndarray]:
    """(width,) float32 of each: diffusers' embedding of a diffusion step, by arithmetic that every processor has.

    The math library under torch takes the exponential of the frequencies by other instructions on other processors; a
    last bit of it is 4e-6 of the embedding at step 100. The path that all of them have must be chosen before a process
    computes anything, so this is a process of its own.
    """
    if not asked:
        return []
    done = subprocess.run(
        [sys.executable, "-c", _EMBEDDINGS, json.dumps(asked)],
        env={**os.environ, "MKL_CBWR": "COMPATIBLE"},
        stdout=subprocess.PIPE,
        check=True,
    )
    arrays = np.load(io.BytesIO(done.stdout))
    return [arrays[f"arr_{number}"] for number in range(len(asked))]
