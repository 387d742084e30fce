from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from vision3d.errors import InputError, WeightsError
from vision3d.training import checkpoint as ckpt
from vision3d.training.ema import ExponentialMovingAverage
from vision3d.training.muon import MuonAdamW, orthogonalised
from vision3d.training.task import Task, TaskOptions, noise
from vision3d.training.trainer import Trainer, TrainerSettings, lr_factor


class Lines:
    """Batch k: eight points on noisy lines, from k alone."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(index)
        x = torch.randn(8, 3, 4, 4, generator=g)
        return {"x": x, "y": 2 * x.mean((1, 2, 3)) + 0.1 * torch.randn(8, generator=g)}


class RegressionTask(Task):
    """A convolution in channels_last with dropout, noise from every generator, and a frozen part."""

    name: ClassVar[str] = "regression"

    def __init__(self, width: int = 8) -> None:
        self.batch_size = 8
        self.width = width
        self.interrupt_at: int | None = None
        self.spoil_at: int | None = None
        self.seen: list[int] = []

    @classmethod
    def from_options(cls, options: TaskOptions) -> RegressionTask:
        return cls()

    def recipe(self) -> dict[str, Any]:
        return {}

    def build(self) -> nn.Module:
        self.net = nn.Sequential(
            nn.Conv2d(3, self.width, 3, padding=1),
            nn.BatchNorm2d(self.width),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(16 * self.width, 1),
        ).to(memory_format=torch.channels_last)
        self.fixed = nn.Linear(1, 1)
        return nn.ModuleDict({"net": self.net})

    def frozen(self) -> list[nn.Module]:
        return [self.fixed]

    def batches(self) -> Lines:
        return Lines()

    def loss(self, batch, step, generator):
        self.seen.append(step)
        if step == self.interrupt_at:
            self.interrupt_at = None  # the second signal would end at once
            os.kill(os.getpid(), signal.SIGTERM)
        x = batch["x"] + 0.01 * noise(batch["x"].shape, generator, self.device)
        y = self.net(x.contiguous(memory_format=torch.channels_last))[:, 0]
        y = y + 0.01 * (random.random() + np.random.rand())  # noqa: NPY002
        y = y + 0 * self.fixed(y[:, None])[:, 0]
        loss = (y - batch["y"]).square().mean()
        if step == self.spoil_at:
            loss = loss * float("nan")
        return loss, {"mae": (y - batch["y"]).abs().mean().detach()}

    def evaluate(self, step: int) -> dict[str, float]:
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - must not change the run
        return {"bias": float(self.net[-1].bias.sum())}

    def images(self, step: int) -> dict[str, torch.Tensor]:
        return {"noise": torch.rand(3, 3, 8, 8)}

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        ckpt.save_tensors(self.net.state_dict(), folder / "net.safetensors")

    def describe(self) -> dict[str, Any]:
        return {"width": self.width, "pair": (1, 2)}


SETTINGS = TrainerSettings(steps=20, lr=1e-2, warmup=5, ema=0.9, device="cpu", log_every=4, accumulate=2)


def final_state(out: Path) -> dict[str, torch.Tensor]:
    folder = ckpt.latest_checkpoint(out / "checkpoints")
    assert folder is not None
    files = ("model", "ema", "optimizer", "random")
    return {f"{n}/{k}": v for n in files for k, v in ckpt.load_tensors(folder / f"{n}.safetensors").items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ten_steps_resumed_for_ten_are_twenty_to_the_bit(tmp_path, optimizer):
    settings = replace(SETTINGS, optimizer=optimizer)
    Trainer(RegressionTask(), settings, tmp_path / "whole").run()
    halves = tmp_path / "halves"
    # The first process ends by a signal in its tenth step; its schedule is that of the whole run.
    first = RegressionTask()
    first.interrupt_at = 9
    summary = Trainer(first, settings, halves).run()
    assert not summary.finished
    assert summary.steps == 10
    torch.manual_seed(1234)
    random.seed(99)
    second = RegressionTask()
    summary = Trainer(second, settings, halves).run(resume=True)
    assert summary.finished
    assert summary.steps == 20
    assert summary.images == 20 * 2 * 8
    assert second.seen == [step for step in range(10, 20) for _ in range(2)]
    assert_same(final_state(tmp_path / "whole"), final_state(halves))


def test_looking_more_often_changes_nothing(tmp_path):
    Trainer(RegressionTask(), SETTINGS, tmp_path / "a").run()
    often = replace(SETTINGS, log_every=1, evaluate_minutes=1e-6, checkpoint_minutes=1e-6)
    Trainer(RegressionTask(), often, tmp_path / "b").run()
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
    kept = sorted(p.name for p in (tmp_path / "b" / "checkpoints").iterdir())
    assert kept == ["step-00000019", "step-00000020"]


def test_worker_processes_change_nothing(tmp_path):
    Trainer(RegressionTask(), SETTINGS, tmp_path / "a").run()
    Trainer(RegressionTask(), replace(SETTINGS, workers=2), tmp_path / "b").run()
    assert_same(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def test_training_learns_and_logs(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=200, log_every=50), tmp_path).run()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [e["loss"] for e in entries if "loss" in e]
    assert [e["step"] for e in entries if "loss" in e] == [50, 100, 150, 200]
    assert losses[-1] < 0.3 * losses[0]
    assert entries[-1]["evaluation"].keys() == {"bias"}
    assert {"mae", "lr", "grad_norm", "images_per_second", "minutes"} <= entries[0].keys()
    assert (tmp_path / "preview-noise.png").is_file()


def test_a_loss_that_is_there_now_and_then_is_logged_as_the_mean_of_where_it_is(tmp_path):
    class Sometimes(RegressionTask):
        def loss(self, batch, step, generator):
            loss, metrics = super().loss(batch, step, generator)
            return loss, metrics | ({"rare": torch.tensor(6.0 + step)} if step % 3 == 0 else {})

    Trainer(Sometimes(), replace(SETTINGS, steps=8, log_every=4), tmp_path).run()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["rare"] for e in entries if "rare" in e] == [7.5, 12.0]


def test_accumulating_two_halves_is_one_step_on_the_whole(tmp_path):
    class Halves:
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            whole = Lines()[index // 2]
            half = slice(0, 4) if index % 2 == 0 else slice(4, 8)
            return {name: value[half] for name, value in whole.items()}

    class Plain(RegressionTask):
        def build(self):
            self.net = nn.Linear(48, 1)
            return self.net

        def loss(self, batch, step, generator):
            return (self.net(batch["x"].flatten(1))[:, 0] - batch["y"]).square().mean(), {}

        def frozen(self):
            return []

        def evaluate(self, step):
            return {}

    class PlainHalves(Plain):
        def batches(self):
            return Halves()

    Trainer(Plain(), replace(SETTINGS, accumulate=1), tmp_path / "whole").run()
    Trainer(PlainHalves(), replace(SETTINGS, accumulate=2), tmp_path / "halves").run()
    a, b = final_state(tmp_path / "whole"), final_state(tmp_path / "halves")
    torch.testing.assert_close(a["model/weight"], b["model/weight"], rtol=1e-4, atol=1e-6)


def test_export_holds_the_averaged_weights_and_the_model_its_own(tmp_path):
    trainer = Trainer(RegressionTask(), SETTINGS, tmp_path)
    trainer.run()
    own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.export(tmp_path / "weights")
    exported = ckpt.load_tensors(tmp_path / "weights" / "net.safetensors")
    average = trainer.ema.state_dict()
    torch.testing.assert_close(exported["0.weight"], average["net.0.weight"].contiguous(), rtol=0, atol=0)
    assert not torch.equal(exported["0.weight"], own["net.0.weight"])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, own[name])


def test_a_time_budget_ends_the_run_and_counts_over_resumptions(tmp_path):
    budget = replace(SETTINGS, steps=None, minutes=0.01)
    summary = Trainer(RegressionTask(), budget, tmp_path).run()
    assert summary.finished
    assert 0.009 <= summary.minutes < 0.2
    again = Trainer(RegressionTask(), budget, tmp_path).run(resume=True)
    assert again.steps == summary.steps
    longer = Trainer(RegressionTask(), replace(budget, minutes=summary.minutes + 0.01), tmp_path).run(
        resume=True
    )
    assert longer.steps > summary.steps


def test_a_used_folder_is_not_overwritten(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=2), tmp_path).run()
    with pytest.raises(InputError, match="add --resume"):
        Trainer(RegressionTask(), SETTINGS, tmp_path).run()


def test_resuming_another_run_names_the_difference(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=2), tmp_path).run()
    with pytest.raises(InputError, match="width was 8 and is 9"):
        Trainer(RegressionTask(9), SETTINGS, tmp_path).run(resume=True)
    with pytest.raises(InputError, match=r"ema was 0\.9 and is 0\.5"):
        Trainer(RegressionTask(), replace(SETTINGS, ema=0.5), tmp_path).run(resume=True)


def test_a_checkpoint_that_names_no_optimiser_had_adamw(tmp_path):
    first = RegressionTask()
    first.interrupt_at = 9
    Trainer(first, SETTINGS, tmp_path).run()
    (state,) = tmp_path.glob("checkpoints/*/state.json")
    content = json.loads(state.read_text())
    del content["settings"]["optimizer"]
    state.write_text(json.dumps(content))
    with pytest.raises(InputError, match="optimizer was 'adamw' and is 'muon'"):
        Trainer(RegressionTask(), replace(SETTINGS, optimizer="muon"), tmp_path).run(resume=True)
    assert Trainer(RegressionTask(), SETTINGS, tmp_path).run(resume=True).finished


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=2), tmp_path).run()
    folder = ckpt.latest_checkpoint(tmp_path / "checkpoints")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="remove this checkpoint") as caught:
        Trainer(RegressionTask(), SETTINGS, tmp_path).run(resume=True)
    assert "\n" not in str(caught.value)


def test_divergence_stops_and_keeps_the_good_checkpoint(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=4), tmp_path).run()
    task = RegressionTask()
    task.spoil_at = 6
    with pytest.raises(WeightsError, match="not finite at step 8"):
        Trainer(task, SETTINGS, tmp_path).run(resume=True)
    assert ckpt.latest_checkpoint(tmp_path / "checkpoints").name == "step-00000004"
    assert all(bool(torch.isfinite(v.float()).all()) for v in final_state(tmp_path).values())


def test_log_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=8), tmp_path).run()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 1.0}\n{"step": 16, "lo')
    Trainer(RegressionTask(), replace(SETTINGS, steps=12), tmp_path).run(resume=True)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "loss" in e] == [4, 8, 12]


def test_a_checkpoint_holds_no_pickle(tmp_path):
    Trainer(RegressionTask(), replace(SETTINGS, steps=2), tmp_path).run()
    folder = ckpt.latest_checkpoint(tmp_path / "checkpoints")
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert not list(tmp_path.rglob("*partial*"))


def test_neither_steps_nor_minutes_is_an_error():
    with pytest.raises(InputError, match="--steps or --minutes"):
        TrainerSettings()
    with pytest.raises(InputError, match="lr is 0"):
        TrainerSettings(steps=1, lr=0)


def test_lr_rises_linearly_then_falls_as_a_cosine():
    assert lr_factor(0, 10, 0.0, 0.1) == pytest.approx(0.1)
    assert lr_factor(9, 10, 0.0, 0.1) == pytest.approx(1.0)
    assert lr_factor(500, 10, 0.5, 0.1) == pytest.approx(0.55)
    assert lr_factor(999, 10, 1.0, 0.1) == pytest.approx(0.1)


def test_group_rates_scale_the_schedule(tmp_path):
    class Scaled(RegressionTask):
        def parameter_groups(self, model):
            convolution = list(self.net[0].parameters())
            rest = [p for m in self.net[1:] for p in m.parameters()]
            return [{"params": convolution, "lr_scale": 0.0}, {"params": rest}]

    trainer = Trainer(Scaled(), SETTINGS, tmp_path)
    trainer.run()
    torch.manual_seed(SETTINGS.seed)
    fresh = RegressionTask()
    fresh.build()
    assert torch.equal(fresh.net[0].weight, trainer.task.net[0].weight)
    assert not torch.equal(fresh.net[-1].weight, trainer.task.net[-1].weight)


def test_ema_of_constant_steps_has_its_closed_form():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ExponentialMovingAverage(model, 0.5)
    expected = 0.0
    for n in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(float(n))
        ema.update()
        decay = min(0.5, n / (9 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 5.0


def test_muon_steps_along_orthogonal_matrices_and_leaves_the_rest_to_adamw():
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in ((12, 9, 3, 3), (40, 16), (16, 40), (12,), (3, 40))]
    gradients = [1e-3 * torch.randn(v.shape) for v in values]

    def stepped(kind):
        parameters = [torch.nn.Parameter(v.clone()) for v in values]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.0)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        return [(v - p.detach()) / 0.1 for v, p in zip(values, parameters, strict=True)]

    ours, adamw = stepped(MuonAdamW), stepped(torch.optim.AdamW)
    for step, gradient in zip(ours[:3], gradients[:3], strict=True):
        matrix = step.flatten(1)
        singular = torch.linalg.svdvals(matrix) / (0.2 * max(matrix.shape) ** 0.5)
        assert float(singular.min()) > 0.6 and float(singular.max()) < 1.25
        assert float((matrix * gradient.flatten(1)).sum()) > 0
    # a vector, and a matrix of three rows
    assert all(torch.equal(a, b) for a, b in zip(ours[3:], adamw[3:], strict=True))


@pytest.mark.parametrize("shape", [(8, 8), (12, 100), (16, 20)])
def test_muon_iterates_as_published(shape: tuple[int, int]):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    matrices[:, : shape[0] // 2] *= 1e-3
    x = matrices.double() / torch.linalg.matrix_norm(matrices.double())[:, None, None]
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(orthogonalised(matrices).double(), x, atol=1e-5, rtol=1e-4)


def test_muon_decays_weights_as_adamw_does():
    for kind in (MuonAdamW, torch.optim.AdamW):
        parameter = torch.nn.Parameter(torch.ones(8, 8))
        optimizer = kind([parameter], lr=0.1, weight_decay=0.5)
        parameter.grad = torch.zeros(8, 8)
        optimizer.step()
        assert torch.allclose(parameter, torch.full((8, 8), 0.95)), kind


def test_leftovers_of_killed_saves_are_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000005.123-0123abcd.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    Trainer(RegressionTask(), replace(SETTINGS, steps=2), tmp_path).run()
    assert not left.exists()


@pytest.mark.parametrize("name", ["threads", "workers"])
def test_negative_counts_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is -1"):
        replace(SETTINGS, **{name: -1})
