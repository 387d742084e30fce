"""``vision3d train``: one verb for every trainable method."""

from __future__ import annotations

import importlib
import os
import platform
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vision3d.errors import InputError

if TYPE_CHECKING:
    from vision3d.training.task import Task, TaskOptions
    from vision3d.training.trainer import TrainerSettings, TrainingSummary

TASKS = {
    "prior-vae": "vision3d.training.prior:PriorVaeTask",
    "prior-unet": "vision3d.training.prior:PriorUnetTask",
    "prior-geometry": "vision3d.training.geometry_prior:GeometryPriorTask",
    "prior-decoder": "vision3d.training.geometry_prior:PriorDecoderTask",
    "primedepth": "vision3d.pipelines.primedepth.training:PrimeDepthTask",
    "stablenormal-yoso": "vision3d.pipelines.stablenormal.training:YosoTask",
    "stablenormal-refine": "vision3d.pipelines.stablenormal.training:RefineTask",
    "dmcalib-calibration": "vision3d.pipelines.dmcalib.training:CalibrationTask",
    "dmcalib-depth": "vision3d.pipelines.dmcalib.training:DepthTask",
    "dino": "vision3d.pipelines.sd_dino.training:DinoTask",
}
"""Where each task's class is; loaded when it is trained."""

PIPELINES = {
    "prior-": "primedepth",
    "primedepth": "primedepth",
    "stablenormal-": "stablenormal",
    "dmcalib-": "dmcalib",
    "dino": "sddino",
}
"""Whose embedded weights a task goes on from, by how its name begins."""

TaskName = Literal[
    "prior-vae",
    "prior-unet",
    "prior-geometry",
    "prior-decoder",
    "primedepth",
    "stablenormal-yoso",
    "stablenormal-refine",
    "dmcalib-calibration",
    "dmcalib-depth",
    "dino",
]


def load_task(name: str, options: TaskOptions) -> Task:
    """Make a task by name. Raises InputError for an unknown one."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}", f"choose one of {', '.join(TASKS)}")
    module, _, cls = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), cls).from_options(options)


def train(
    task: Annotated[TaskName, tyro.conf.Positional],
    out: Path,
    preset: str = "mini",
    data: Path | None = None,
    init: Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: Literal["adamw", "muon"] | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    threads: int = 0,
    workers: int = 0,
    checkpointing: bool | None = None,
    checkpoint_minutes: float = 5.0,
    evaluate_minutes: float = 10.0,
    log_every: int = 50,
    resume: bool = False,
) -> TrainingSummary:
    """Train a network on the procedural world; stop with Ctrl-C, go on with --resume.

    The output folder gets checkpoints, logs and previews, and in weights/ the exported components with
    training.json, which says how to repeat the run and what was measured.

    Args:
        task: what to train: a part of the Stable Diffusion prior, or a method on top of it.
        out: output folder.
        preset: "mini" for two CPU cores and minutes, "full..." for the published sizes and recipe, where there are
            any; an unknown name lists them.
        data: folder of rendered scenes, or of photographs with depth or normals beside them (see docs/training.md);
            without it scenes are rendered while training.
        init: weights to start from: a folder, e.g. the export of the task before, "mini" (the method's embedded ones),
            or a pulled name.
        steps: optimiser steps of the whole run, counted over resumptions.
        minutes: time budget of the whole run in minutes, counted over resumptions.
        batch_size: images per step, process and micro-batch; the preset's if not given.
        lr: peak learning rate; the preset's if not given.
        optimizer: adamw, or muon (orthogonal steps for matrices); the preset's if not given.
        accumulate: micro-batches per step.
        ema: decay of the averaged weights that are exported; 0 for none.
        seed: of initialisation, data order, augmentation and noise.
        device: where to train: auto, cpu, cuda, cuda:1 or mps.
        precision: of the arithmetic; auto is fp32 on CPU and bf16 or fp16 on GPUs.
        threads: CPU threads of torch; 0 for torch's own choice.
        workers: processes that prepare batches.
        checkpointing: recompute activations to save memory; the preset's choice if not given.
        checkpoint_minutes: minutes between checkpoints.
        evaluate_minutes: minutes between measurements on held-out scenes.
        log_every: steps between log lines.
        resume: go on from the newest checkpoint in the output folder.
    """
    from vision3d.training.task import TaskOptions
    from vision3d.training.trainer import Trainer, TrainerSettings
    from vision3d.weights import resolve

    if init is not None:
        init, _ = resolve(
            next((name for start, name in PIPELINES.items() if task.startswith(start)), task), init
        )
    options = TaskOptions(preset, data, init, batch_size, seed, checkpointing)
    problem = load_task(task, options)
    recipe: dict[str, Any] = dict(problem.recipe())
    given = {"steps": steps, "minutes": minutes, "lr": lr, "optimizer": optimizer, "ema": ema}
    recipe.update({name: value for name, value in given.items() if value is not None})
    if steps is None and minutes is not None:
        recipe["steps"] = None
    settings = TrainerSettings(
        **{
            "accumulate": accumulate,
            **recipe,
            "seed": seed,
            "device": device,
            "precision": precision,
            "threads": threads,
            "workers": workers,
            "checkpoint_minutes": checkpoint_minutes,
            "evaluate_minutes": evaluate_minutes,
            "log_every": log_every,
        }
    )
    trainer = Trainer(problem, settings, out)
    summary = trainer.run(resume=resume)
    if summary.finished:
        summary.weights = out / "weights"
        trainer.export(summary.weights)
        if trainer.accelerator.is_main_process:
            write_record(summary.weights / "training.json", problem, options, settings, summary)
    return summary


def write_record(
    path: Path, task: Task, options: TaskOptions, settings: TrainerSettings, summary: TrainingSummary
) -> None:
    """Write ``training.json``: how the weights beside it came to be, without dates and machine paths."""
    from vision3d.io.files import atomic_write_json

    run = asdict(settings)
    run["steps"] = summary.steps
    atomic_write_json(
        path,
        {
            "task": summary.task,
            "command": reproducing_command(summary.task, options, settings, summary.steps, summary.processes),
            "description": task.describe(),
            "settings": run,
            "parameters": summary.parameters,
            "steps": summary.steps,
            "images": summary.images,
            "minutes": summary.minutes,
            "images_per_second": summary.images_per_second,
            "measured": summary.metrics,
            "machine": {
                "device": summary.device,
                "precision": summary.precision,
                "processes": summary.processes,
                "cpus": os.cpu_count(),
            },
            "versions": software_versions(),
        },
    )


def reproducing_command(
    task: str, options: TaskOptions, settings: TrainerSettings, steps: int, processes: int = 1
) -> str:
    """The command line that repeats the run, with DATA, INIT and OUT for the folders.

    A run by time is repeated by its number of steps: as long, though not equal to the bit, since its learning
    rate followed the clock.
    """
    start = ["vision3d"]
    if processes > 1:
        start = ["torchrun", "--standalone", "--nproc_per_node", str(processes), "-m", "vision3d"]
    words = [*start, "train", task, "--preset", options.preset, "--seed", str(settings.seed)]
    words += ["--steps", str(steps), "--lr", f"{settings.lr:g}", "--ema", f"{settings.ema:g}"]
    if settings.optimizer != "adamw":
        words += ["--optimizer", settings.optimizer]
    if options.batch_size:
        words += ["--batch-size", str(options.batch_size)]
    if settings.precision != "auto":
        words += ["--precision", settings.precision]
    if settings.accumulate != 1:
        words += ["--accumulate", str(settings.accumulate)]
    if options.data is not None:
        words += ["--data", "DATA"]
    if options.init is not None:
        words += ["--init", "INIT"]
    return shlex.join([*words, "--out", "OUT"])


def software_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("vision3d", "torch", "numpy", "diffusers", "transformers", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
