"""The loop: schedule, precision, accumulation, averaging, checkpoints and logs around any task.

What it promises: a run that is stopped (Ctrl-C, SIGTERM, power) and resumed ends with the same bits as one
that never stopped, given the same number of steps; whatever lies in the output folder is complete; and no
file of it executes code when loaded.

Layout of the output folder::

    checkpoints/step-00001234/   model, ema, optimizer, random states (safetensors), state.json; the last two
    log.jsonl                    one line per logged step or evaluation
    preview-NAME.png             the task's pictures
    tensorboard/                 the same scalars and pictures, when tensorboard is installed
    weights/                     what the task exports, and training.json (see vision3d.training.verb)
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vision3d.device import resolve_device, resolve_dtype
from vision3d.errors import InputError, WeightsError
from vision3d.io.files import atomic_path, make_folder, output_errors, remove_stagings, staged_folder
from vision3d.progress import say, warn
from vision3d.training import checkpoint as ckpt
from vision3d.training.ema import ExponentialMovingAverage
from vision3d.training.muon import MuonAdamW
from vision3d.training.task import Batch, Batches, Task

Precision = Literal["auto", "fp32", "fp16", "bf16"]
Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; what to train is the task's matter.

    Args:
        steps: optimiser steps of the whole run, counted over all resumptions; None leaves it to ``minutes``.
        minutes: wall-clock budget of the whole run; the cosine follows whichever of the two is further on.
        optimizer: "adamw", or "muon" (see :mod:`vision3d.training.muon`).
        lr: peak learning rate.
        final_lr: share of ``lr`` left at the end.
        warmup: steps of linear warm-up.
        weight_decay: of matrices and kernels (see ``Task.parameter_groups``).
        betas: of AdamW.
        grad_clip: largest gradient norm; 0 does not clip.
        accumulate: micro-batches per optimiser step.
        ema: decay of the averaged parameters; 0 keeps no average.
        seed: of everything random.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32", or autocast to "fp16" or "bf16"; "auto" is fp32 on CPU and MPS, on CUDA bf16 where
            the GPU has it, else fp16.
        threads: of torch on the CPU; 0 leaves torch's choice.
        workers: processes that prepare batches; 0 prepares them in the training process.
        log_every: steps between log lines.
        evaluate_minutes: minutes between evaluations; there is always one at the end.
        checkpoint_minutes: minutes between checkpoints; there is always one at the end or when stopped.
        keep: checkpoints to keep.
    """

    steps: int | None = None
    minutes: float | None = None
    optimizer: Optimizer = "adamw"
    lr: float = 1e-4
    final_lr: float = 0.02
    warmup: int = 100
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.999
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    threads: int = 0
    workers: int = 0
    log_every: int = 50
    evaluate_minutes: float = 10.0
    checkpoint_minutes: float = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise InputError("neither steps nor minutes say how long to train", "give --steps or --minutes")
        for name in ("steps", "minutes", "lr", "accumulate", "log_every", "keep"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}", "give a positive number")
        for name in ("threads", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}", "give 0 or more")
        if not 0.0 <= self.ema < 1.0:
            raise InputError(f"ema is {self.ema}", "give a decay in [0, 1)")

    def identity(self) -> dict[str, Any]:
        """The settings that must stay on resumption; length, rate and logging may be changed on purpose."""
        names = ("optimizer", "weight_decay", "betas", "grad_clip", "accumulate", "ema", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass
class TrainingSummary:
    """What a call of :meth:`Trainer.run` came to; shown at the end of ``vision3d train``.

    Args:
        task: name of the task.
        steps, images, minutes: over all resumptions.
        finished: False when a signal stopped the run.
        metrics: of the last evaluation.
        images_per_second: over the whole run, evaluations and checkpoints included.
        device, precision, processes: where it ran.
        parameters: trained ones.
        weights: folder of the exported components, once they are.
    """

    task: str
    steps: int
    images: int
    minutes: float
    finished: bool
    metrics: dict[str, float] = field(default_factory=dict)
    images_per_second: float = 0.0
    device: str = "cpu"
    precision: str = "fp32"
    parameters: int = 0
    processes: int = 1
    weights: Path | None = None

    @property
    def exit_code(self) -> int:
        """Of the command line: 130 for an interrupted run, as shells have it."""
        return 0 if self.finished else 130

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**asdict(self), "weights": str(self.weights) if self.weights else None}

    def __str__(self) -> str:
        done = f"{self.steps} steps, {self.images} images in {self.minutes:.1f} min"
        if not self.finished:
            return f"{self.task}: stopped after {done}; saved, go on with --resume"
        measured = "".join(f"\n  {name} {value:.4g}" for name, value in self.metrics.items())
        return f"{self.task}: {done}; weights in {self.weights}{measured}"


def lr_factor(step: int, warmup: int, progress: float, final: float) -> float:
    """Share of the peak learning rate: linear warm-up times a cosine from 1 to ``final`` over the run.

    Args:
        step: optimiser steps done.
        warmup: steps of warm-up.
        progress: share of the run that is done, in steps or in time, in [0, 1].
        final: share left at the end.
    """
    cosine = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return cosine * min(1.0, (step + 1) / max(1, warmup))


class _TaskLoss(nn.Module):
    """The task's loss as the ``forward`` of a module, so that DDP and autocast wrap all of it."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task = [task]  # in a list: a task is no sub-module

    def forward(
        self, batch: Batch, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self._task[0].loss(batch, step, generator)


class Trainer:
    """Trains one task into one folder.

    Args:
        task: what to train.
        settings: how.
        out: the output folder.
    """

    def __init__(self, task: Task, settings: TrainerSettings, out: Path) -> None:
        self.task, self.settings, self.out = task, settings, Path(out)
        self.step = 0
        self.images = 0
        self._stop: str | None = None
        self._before = 0.0  # seconds trained before this process
        self._start = 0.0

    def run(self, resume: bool = False) -> TrainingSummary:
        """Train until the steps or minutes are used up or a signal arrives, then save.

        Args:
            resume: continue from the newest checkpoint of the folder, or start when there is none.

        Returns:
            The summary; ``finished`` is False after a signal.

        Raises:
            InputError: the folder holds a run and ``resume`` is False, or the checkpoint is of another run.
            OutputError: the folder cannot be written.
            WeightsError: a checkpoint is damaged, or the loss is no longer finite.
        """
        settings = self.settings
        make_folder(self.out)
        remove_stagings(self.out / "checkpoints")
        newest = ckpt.latest_checkpoint(self.out / "checkpoints")
        if newest is not None and not resume:
            raise InputError(f"{self.out} holds a run up to {newest.name}", "add --resume or use a new --out")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._prepare()
        if newest is not None:
            self._load(newest)
            self._say(f"{self.task.name}: resumed at step {self.step}")
        self._open_logs()
        self._start = time.monotonic()
        with self._signals():
            metrics = self._train()
        summary = TrainingSummary(
            task=self.task.name,
            steps=self.step,
            images=self.images,
            minutes=round(self._elapsed() / 60, 2),
            finished=self._stop is None,
            metrics=metrics,
            images_per_second=round(self.images / max(self._elapsed(), 1e-9), 2),
            device=str(self.accelerator.device),
            precision=self.precision,
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            processes=self.accelerator.num_processes,
        )
        if self._board is not None:
            self._board.close()
        return summary

    def export(self, folder: Path) -> None:
        """Write the task's components with the averaged weights; only the main process writes."""
        if self.accelerator.is_main_process:
            with torch.no_grad(), ckpt.kept_random_states(), self._averaged():
                self.task.export(folder)
        self.accelerator.wait_for_everyone()

    # Set-up ---------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        settings = self.settings
        device = resolve_device(settings.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # Accelerate takes the current one
        dtype = resolve_dtype(settings.precision, device)
        self.precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
        if device.type != "cuda" and self.precision == "fp16":
            raise InputError("fp16 training needs a CUDA device", "use --precision fp32")
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            gradient_accumulation_steps=settings.accumulate,
            # a task may leave parts out of some steps
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        _seed_everything(settings.seed)
        self.task.device = self.accelerator.device
        self.model = self.task.build()
        self.model.train()
        for module in self.task.frozen():
            module.to(self.accelerator.device).eval().requires_grad_(False)
        self.model.to(self.accelerator.device)
        groups = self.task.parameter_groups(self.model)
        self._lr_scales = [float(group.pop("lr_scale", 1.0)) for group in groups]
        for group in groups:
            group.setdefault("weight_decay", settings.weight_decay)
        kind = MuonAdamW if settings.optimizer == "muon" else torch.optim.AdamW
        optimizer = kind(groups, lr=settings.lr, betas=settings.betas)
        self.loss_module, self.optimizer = self.accelerator.prepare(
            _TaskLoss(self.task, self.model), optimizer
        )
        self.ema = ExponentialMovingAverage(self.model, settings.ema) if settings.ema else None

    def _open_logs(self) -> None:
        self._board: Any = None
        if not self.accelerator.is_main_process:
            return
        log = self.out / "log.jsonl"
        kept = ""
        if self.step and log.is_file():
            # Lines after the checkpoint belong to steps that will be done again.
            lines = [line for line in log.read_text().splitlines() if _log_step(line) <= self.step]
            kept = "".join(line + "\n" for line in lines)
        with atomic_path(log) as temporary:
            temporary.write_text(kept)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._say("tensorboard is not installed: scalars go to log.jsonl only")
            return
        purge = self.step + 1 if self.step else None
        self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=purge)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a stop after the current step; the second ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _frame: object) -> None:
            if self._stop is not None:
                raise KeyboardInterrupt
            self._stop = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # The loop -------------------------------------------------------------------------------------------

    def _train(self) -> dict[str, float]:
        settings = self.settings
        batches = iter(self._micro_batches(self.task.batches()))
        told: dict[str, list[Tensor]] = {}
        logged_step, logged_time = self.step, time.monotonic()
        saved_time = evaluated_time = time.monotonic()
        logged_images = self.images
        while True:
            progress, save, evaluate = self._agreed(saved_time, evaluated_time)
            if save:
                self._save()
                saved_time = time.monotonic()
            if evaluate:
                self._evaluate()
                evaluated_time = logged_time = time.monotonic()
                logged_images = self.images
            if self._stop is not None or progress >= 1.0:
                break
            factor = lr_factor(self.step, settings.warmup, progress, settings.final_lr)
            for group, scale in zip(self.optimizer.param_groups, self._lr_scales, strict=True):
                group["lr"] = settings.lr * scale * factor
            for metrics in self._optimiser_step(batches):
                for name, value in metrics.items():
                    told.setdefault(name, []).append(value)
            self.step += 1
            self.images += self._images_of_step(self.step - 1)
            if self.ema is not None:
                self.ema.update()
            if self.step - logged_step >= settings.log_every:
                # some losses are there on some steps only
                means = {name: float(torch.stack(values).float().mean()) for name, values in told.items()}
                self._check_finite(means)
                rate = (self.images - logged_images) / max(time.monotonic() - logged_time, 1e-9)
                self._log_step(means, settings.lr * factor, rate)
                told.clear()
                logged_step, logged_time, logged_images = self.step, time.monotonic(), self.images
        del batches  # ends the worker processes before the save, which may take a while
        self._save()
        return self._evaluate() if self._stop is None else {}

    def _images_of_step(self, step: int) -> int:
        """Images that all processes saw in one optimiser step."""
        count = self.settings.accumulate * self.accelerator.num_processes
        return sum(self.task.images_at(step * count + i) for i in range(count))

    def _optimiser_step(self, batches: Iterator[tuple[int, Batch]]) -> Iterator[dict[str, Tensor]]:
        """One optimiser step over ``accumulate`` micro-batches; yields the metrics of each."""
        collected = []
        for _ in range(self.settings.accumulate):
            index, batch = next(batches)
            with self.accelerator.accumulate(self.loss_module):
                generator = torch.Generator().manual_seed(_derived_seed(self.settings.seed, index))
                loss, metrics = self.loss_module(batch, self.step, generator)
                self.accelerator.backward(loss)
                collected.append({"loss": loss.detach(), **metrics})
                if self.accelerator.sync_gradients and self.settings.grad_clip:
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
                    # Once per step among `accumulate` micro-batches, whose metrics are averaged together.
                    collected[-1]["grad_norm"] = norm.detach() * self.settings.accumulate
                self.optimizer.step()
                self.optimizer.zero_grad()
        yield from collected

    def _micro_batches(self, batches: Batches) -> Iterator[tuple[int, Batch]]:
        """Micro-batches of this process from the current step on, on the device, with their global index."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        start = self.step * self.settings.accumulate

        def indices() -> Iterator[int]:
            position = start
            while True:
                yield position * world + rank
                position += 1

        if self.settings.workers:
            from torch.utils.data import DataLoader

            loader: DataLoader[Batch] = DataLoader(
                _Indexed(batches),  # type: ignore[arg-type]
                batch_size=None,
                sampler=_Endless(start, world, rank),  # type: ignore[arg-type]
                num_workers=self.settings.workers,
                generator=torch.Generator(),  # its own: the loader must not draw from the run's
                pin_memory=self.accelerator.device.type == "cuda",
                persistent_workers=False,
                worker_init_fn=_quiet_worker,
            )
            # Zipped with the indices: the loader returns the batches in the order of its sampler.
            stream: Iterator[tuple[int, Batch]] = zip(indices(), loader, strict=False)
        else:
            stream = ((index, batches[index]) for index in indices())
        for index, batch in stream:
            yield index, _to_device(batch, self.accelerator.device)

    def _agreed(self, saved: float, evaluated: float) -> tuple[float, bool, bool]:
        """Share of the run done, and whether to save and to evaluate now; the main process's clock decides for all.

        Processes that each asked their own clock would now and then save at different steps and wait for each other
        forever. Also spreads a stop signal.

        Args:
            saved, evaluated: when this process last did, by its monotonic clock.
        """
        settings, now = self.settings, time.monotonic()
        save = now - saved > 60 * settings.checkpoint_minutes
        evaluate = now - evaluated > 60 * settings.evaluate_minutes
        progress = self._progress()
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast, reduce

            device = self.accelerator.device
            own = torch.tensor([progress, float(save), float(evaluate)], dtype=torch.float64, device=device)
            agreed = broadcast(own).tolist()
            progress, save, evaluate = agreed[0], bool(agreed[1]), bool(agreed[2])
            stopped = reduce(torch.tensor([float(self._stop is not None)], device=device), "sum")
            if float(stopped[0]) and self._stop is None:
                self._stop = "a signal to another process"
        return progress, save, evaluate

    def _progress(self) -> float:
        """Share of the run done by this process's clock, in steps or minutes, whichever is further on."""
        settings = self.settings
        by_steps = self.step / settings.steps if settings.steps else 0.0
        by_time = self._elapsed() / (60 * settings.minutes) if settings.minutes else 0.0
        return max(by_steps, by_time)

    def _elapsed(self) -> float:
        """Seconds trained, over all resumptions."""
        return self._before + time.monotonic() - self._start

    # Looking at the run ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The container in ``eval`` mode with the averaged weights."""
        self.model.eval()
        try:
            with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
                yield
        finally:
            self.model.train()

    def _evaluate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            with torch.no_grad(), ckpt.kept_random_states(), self._averaged(), self.accelerator.autocast():
                metrics = {name: float(value) for name, value in self.task.evaluate(self.step).items()}
                pictures = self.task.images(self.step)
            for name, batch in pictures.items():
                grid = _grid(batch)
                with atomic_path(self.out / f"preview-{name}.png") as temporary:
                    from PIL import Image

                    Image.fromarray(grid).save(temporary)
                if self._board is not None:
                    self._board.add_image(name, grid, self.step, dataformats="HWC")
            if metrics:
                self._write_log({"step": self.step, "evaluation": metrics})
                for name, value in metrics.items():
                    if self._board is not None:
                        self._board.add_scalar(f"evaluation/{name}", value, self.step)
                shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                self._say(f"{self.task.name} step {self.step} held out: {shown}")
        self.accelerator.wait_for_everyone()
        return metrics

    def _log_step(self, means: dict[str, float], lr: float, rate: float) -> None:
        if not self.accelerator.is_main_process:
            return
        progress = min(self._progress(), 1.0)
        remaining = self._elapsed() * (1 - progress) / max(progress, 1e-9)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self._say(
            f"{self.task.name} step {self.step} ({100 * progress:.0f} %)  {shown}  lr {lr:.2g}  "
            f"{rate:.1f} images/s  {remaining / 60:.1f} min left"
        )
        entry = {"step": self.step, "images": self.images, "minutes": round(self._elapsed() / 60, 3)}
        self._write_log({**entry, "lr": lr, "images_per_second": round(rate, 2), **means})
        if self._board is not None:
            for name, value in {**means, "lr": lr, "images_per_second": rate}.items():
                self._board.add_scalar(f"train/{name}", value, self.step)

    def _write_log(self, entry: dict[str, Any]) -> None:
        path = self.out / "log.jsonl"
        with output_errors(path), path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            say(text)

    def _check_finite(self, means: dict[str, float]) -> None:
        # fp16 skips steps whose scaled gradients overflow, so there the norm alone may be infinite.
        bad = [
            n
            for n, v in means.items()
            if not math.isfinite(v) and (n != "grad_norm" or self.precision != "fp16")
        ]
        if bad:
            raise WeightsError(
                f"{bad[0]} of {self.task.name} is not finite at step {self.step}",
                "resume from the last checkpoint with a smaller --lr in a copy of the folder",
            )

    # Checkpoints ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Write ``checkpoints/step-N``, complete or not at all, and remove older ones."""
        folder = self.out / "checkpoints" / f"{ckpt.STEP_PREFIX}{self.step:08d}"
        random_values, random_tensors = self._gathered_random_states(*ckpt.random_states())
        if self.accelerator.is_main_process and not (folder / "state.json").is_file():
            if any(not bool(torch.isfinite(p).all()) for p in self.model.parameters()):
                raise WeightsError(
                    f"a parameter of {self.task.name} is not finite at step {self.step}",
                    "resume from the last checkpoint with a smaller --lr in a copy of the folder",
                )
            tensors, groups = ckpt.split_optimizer_state(self.optimizer.state_dict())
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "images": self.images,
                "seconds": self._elapsed(),
                "task": self.task.describe(),
                "settings": self.settings.identity(),
                "run": asdict(self.settings),
                "ema_updates": self.ema.updates if self.ema is not None else None,
                "optimizer_groups": groups,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "random": random_values,
            }
            with staged_folder(folder, last="state.json") as staging:
                ckpt.save_tensors(self.model.state_dict(), staging / "model.safetensors")
                ckpt.save_tensors(tensors, staging / "optimizer.safetensors")
                ckpt.save_tensors(random_tensors, staging / "random.safetensors")
                if self.ema is not None:
                    ckpt.save_tensors(self.ema.state_dict(), staging / "ema.safetensors")
                (staging / "state.json").write_text(json.dumps(state) + "\n")
            ckpt.prune_checkpoints(folder.parent, self.settings.keep)
        self.accelerator.wait_for_everyone()

    def _gathered_random_states(
        self, values: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """The states of all processes: a list, and tensors whose names begin with the process's number."""
        if self.accelerator.num_processes == 1:
            return [values], {f"0.{name}": tensor for name, tensor in tensors.items()}
        from accelerate.utils import gather_object

        everyone = gather_object([(values, tensors)])
        named = {f"{rank}.{name}": t for rank, (_, own) in enumerate(everyone) for name, t in own.items()}
        return [own for own, _ in everyone], named

    def _load(self, folder: Path) -> None:
        """Continue from a checkpoint, bit by bit. Raises InputError or WeightsError when it does not fit."""
        try:
            state = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"cannot read {folder / 'state.json'}: {error}", "remove this checkpoint"
            ) from error
        ckpt.require_same_task(
            # checkpoints that name no optimiser had AdamW
            {"task": self.task.name, "optimizer": "adamw", **state["task"], **state["settings"]},
            {"task": self.task.name, **self.task.describe(), **self.settings.identity()},
        )
        try:
            self.model.load_state_dict(ckpt.load_tensors(folder / "model.safetensors"))
            if self.ema is not None:
                self.ema.load_state_dict(ckpt.load_tensors(folder / "ema.safetensors"), state["ema_updates"])
        except (RuntimeError, KeyError) as error:
            raise WeightsError(f"{folder} does not fit this model: {error}", "use a new --out") from error
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        tensors = ckpt.load_tensors(folder / "optimizer.safetensors")
        ckpt.load_optimizer_state(optimizer, tensors, state["optimizer_groups"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.images, self._before = state["step"], state["images"], state["seconds"]
        rank = self.accelerator.process_index
        if len(state["random"]) != self.accelerator.num_processes:
            self._say(
                f"the run had {len(state['random'])} processes and goes on with {self.accelerator.num_processes}: "
                "some batches come twice or not at all"
            )
        if rank >= len(state["random"]):
            warn("more processes than the run began with: their random states start anew")
            return
        tensors = ckpt.load_tensors(folder / "random.safetensors")
        own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{rank}.")}
        ckpt.set_random_states(state["random"][rank], own)


class _Indexed:
    """Batches behind the interface of a torch map-style dataset."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]

    def __len__(self) -> int:
        return 2**62


class _Endless:
    """Sampler of this process's batch indices from a position on, without end."""

    def __init__(self, start: int, world: int, rank: int) -> None:
        self.start, self.world, self.rank = start, world, rank

    def __iter__(self) -> Iterator[int]:
        position = self.start
        while True:
            yield position * self.world + self.rank
            position += 1


def _quiet_worker(_index: int) -> None:
    """One thread per worker, and signals left to the training process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from it
    torch.manual_seed(seed)


def _derived_seed(seed: int, index: int) -> int:
    """A seed for one batch; neighbouring batches and seeds share nothing."""
    return int(np.random.SeedSequence((seed, 3, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _log_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62  # half a line, from a crash


def _grid(batch: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [0, 1] → one uint8 picture of rows of eight."""
    pictures = (batch.detach().float().clamp(0, 1).cpu() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    columns = min(8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures.shape[1:3]
    grid = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, columns)
        grid[y * height : (y + 1) * height, x * width : (x + 1) * width] = picture
    return grid
