"""What tasks share that learn a map of a photograph through a Stable Diffusion prior.

Crops of several shapes take turns, latents are posterior means, captions mostly empty; held-out crops are rendered
once. A method adds its networks and its losses.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from vision3d.backbone.vae import encode_moments
from vision3d.errors import InputError
from vision3d.training.data import (
    HELD_OUT_SEED,
    RenderedWorld,
    SampleSource,
    WorldBatches,
    augmented_crop,
    describe_run,
    open_source,
)
from vision3d.training.prior import (
    Tokenised,
    TurnTaking,
    checksums,
    clip_tokenizer,
    component_folder,
    load_module,
    prediction_type_of,
    preset,
    read_vocabulary,
)
from vision3d.training.task import Batches, Task, TaskOptions

CELL = 4
"""Pixels of a read-out for each latent along either axis."""
PITCH = 8 // CELL
"""Image pixels from one pixel of a read-out to the next."""


class DenseTask(Task):
    """A task over crops (height, width, images) that its recipe lists.

    A recipe has ``crops``, ``scale``, ``photometric``, ``world``, ``lr``, ``warmup``, ``ema``, and maybe ``turn``.

    Args:
        recipe: sizes and training.
        source: the samples.
        options: what the person set; ``init`` is the folder to start from.

    Raises:
        InputError: no ``init``.
    """

    presets: ClassVar[Mapping[str, Any]]
    fields: tuple[str, ...]
    """What batches hold, see :class:`WorldBatches`."""
    held_out_fields: ClassVar[tuple[str, ...]]
    held_out_count: ClassVar[int] = 96
    init_hint: ClassVar[str]
    starts_from: ClassVar[tuple[str, ...]]
    """Folders of ``init`` whose weights decide the outcome."""

    vae: Any

    def __init__(self, recipe: Any, source: SampleSource, options: TaskOptions) -> None:
        if options.init is None:
            raise InputError(f"{self.name} needs weights to start from", self.init_hint)
        if options.batch_size:
            recipe = replace(recipe, crops=tuple((h, w, options.batch_size) for h, w, _ in recipe.crops))
        self._recipe, self.source, self.options, self.init = recipe, source, options, options.init
        self.take_turns(count for _, _, count in recipe.crops)
        self._held: dict[str, Tensor] | None = None

    @classmethod
    @override
    def from_options(cls, options: TaskOptions) -> Self:
        recipe = preset(cls.presets, options.preset, cls.name)
        labels = None if "K" in cls.fields else cls.fields  # photographs have no known lens
        return cls(recipe, open_source(options.data, recipe.world, pictures=labels), options)

    @override
    def recipe(self) -> dict[str, Any]:
        return recipe_settings(self._recipe)

    @override
    def batches(self) -> Batches:
        return TurnTaking([self.member(i, batches) for i, batches in enumerate(self._members())])

    def _members(self) -> list[WorldBatches]:
        return [
            WorldBatches(
                self.source,
                count,
                (height, width),
                seed=self.options.seed + 7919 * i,
                fields=self.fields,
                scale=self._recipe.scale,
                photometric=self._recipe.photometric,
                turn=getattr(self._recipe, "turn", 0.0),
            )
            for i, (height, width, count) in enumerate(self._recipe.crops)
        ]

    def due(self, step: int, every: int) -> bool:
        """Whether a part of the loss that is computed on one of ``every`` steps is due.

        Counted so that batches of all shapes come to it, whatever both numbers have in common.
        """
        turn, shape = divmod(step, len(self.turns))
        return (turn + shape) % every == 0

    def member(self, index: int, batches: WorldBatches) -> Batches:
        """What is made of the batches of one shape before they take turns."""
        return batches

    def decisive(self) -> tuple[str, ...]:
        """Folders of ``init`` whose weights decide the outcome of this recipe."""
        return self.starts_from

    @override
    def describe(self) -> dict[str, Any]:
        init = checksums(self.init, self.decisive())
        return describe_run(self.options.preset, self._recipe, self.source, init)

    def hand_on(self, folder: Path, *names: str) -> None:
        """Copy parts of ``init`` that are there and were not trained into an export."""
        for name in names:
            if (self.init / name).is_dir():
                shutil.copytree(self.init / name, folder / name, dirs_exist_ok=True)

    def encoded(self, images: Tensor) -> Tensor:
        """Scaled posterior means of images in [0, 1], without gradient."""
        with torch.no_grad():
            return encode_moments(self.vae, images)[0] * self.vae.config.scaling_factor

    def held_out(self) -> dict[str, Tensor]:
        """Central, unaugmented crops of scenes that training never sees, stacked, on the CPU."""
        if self._held is None:
            size = self._recipe.crops[0][:2]
            world = RenderedWorld(HELD_OUT_SEED, self.held_out_count, size)
            fields = self.held_out_fields
            crops = [
                augmented_crop(world[i], size, np.random.default_rng(i), fields)
                for i in range(self.held_out_count)
            ]
            self._held = {name: torch.stack([c[name] for c in crops]) for name in fields}
        return self._held


class CaptionedTask(DenseTask):
    """A dense task whose networks see captions, of which its recipe drops the share ``caption_dropout``."""

    def __init__(self, recipe: Any, source: SampleSource, options: TaskOptions) -> None:
        super().__init__(recipe, source, options)
        vocabulary = read_vocabulary(component_folder(self.init, "tokenizer", "vocab.json"))
        self.tokenizer = clip_tokenizer(*vocabulary)
        from transformers import CLIPTextModel

        self.text_encoder: Any = load_module(CLIPTextModel, component_folder(self.init, "text_encoder"))
        self.prediction_type = prediction_type_of(self.init)

    @override
    def member(self, index: int, batches: WorldBatches) -> Batches:
        dropout = self._recipe.caption_dropout
        return Tokenised(batches, self.tokenizer, dropout, self.options.seed + index)

    def context(self, tokens: Tensor) -> Tensor:
        """Text states (B, 77, width), without gradient."""
        with torch.no_grad():
            return self.text_encoder(tokens).last_hidden_state


def recipe_settings(recipe: Any) -> dict[str, Any]:
    """The trainer's settings of a recipe that names ``lr``, ``warmup`` and ``ema``, and maybe ``train_steps``."""
    settings = {"lr": recipe.lr, "warmup": recipe.warmup, "ema": recipe.ema, "weight_decay": 1e-2}
    steps = getattr(recipe, "train_steps", None)
    return settings if steps is None else {**settings, "steps": steps}


def depth_picture(
    depth: Tensor,  # (B, H, W), any space
) -> Tensor:  # (B, 3, H, W) in [0, 1]
    """Maps as grey pictures, each spread between its 2nd and 98th percentile."""
    low, high = depth.flatten(1).quantile(0.02, 1), depth.flatten(1).quantile(0.98, 1)
    spread = (depth - low[:, None, None]) / (high - low).clamp_min(1e-6)[:, None, None]
    return spread.clamp(0, 1)[:, None].expand(-1, 3, -1, -1)


def read_out(width: int, channels: int) -> nn.Sequential:
    """Convolutions that tell maps of features (B, width, h, w) as (B, channels, 4h, 4w), a hundred times as fast as a
    decoder.
    """
    return nn.Sequential(
        nn.Conv2d(width, 96, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(96, channels * CELL**2, 3, padding=1),
        nn.PixelShuffle(CELL),
    )


def at_cells(values: Tensor, prediction: Tensor) -> Tensor:
    """The pixels (..., H, W) of a target that lie under the pixels (..., 4h, 4w) of a read-out."""
    height, width = prediction.shape[-2:]
    return values[..., PITCH // 2 :: PITCH, PITCH // 2 :: PITCH][..., :height, :width]
