from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vision3d.cli import main
from vision3d.errors import InputError
from vision3d.training import verb
from vision3d.training.task import TaskOptions
from vision3d.weights import MINI

# A task in its own module, found through the registry as the real ones are.
MODULE = """
import torch
from torch import nn
from vision3d.training import checkpoint
from vision3d.training.task import Task

class Points:
    def __getitem__(self, index):
        return {"x": torch.randn(4, 2, generator=torch.Generator().manual_seed(index))}

class TinyTask(Task):
    name = "tiny"
    batch_size = 4
    @classmethod
    def from_options(cls, options):
        task = cls()
        task.options = options
        return task
    def recipe(self):
        return {"lr": 0.1, "warmup": 1, "ema": 0.5, "steps": 7}
    def build(self):
        self.net = nn.Linear(2, 1)
        return self.net
    def batches(self):
        return Points()
    def loss(self, batch, step, generator):
        return self.net(batch["x"]).square().mean(), {}
    def evaluate(self, step):
        return {"weight": float(self.net.weight.norm())}
    def export(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(self.net.state_dict(), folder / "net.safetensors")
    def describe(self):
        return {"preset": self.options.preset, "data": {"seeds": [0, 10]}}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    (tmp_path / "tiny_task_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(verb.TASKS, "tiny", "tiny_task_module:TinyTask")
    return tmp_path / "out"


def test_train_writes_weights_and_a_record_that_says_how_to_repeat_them(tiny):
    assert verb.train("tiny", tiny, seed=5, device="cpu", steps=30, data=tiny.parent).exit_code == 0
    text = (tiny / "weights" / "training.json").read_text()
    record = json.loads(text)
    assert record["command"] == (
        "vision3d train tiny --preset mini --seed 5 --steps 30 --lr 0.1 --ema 0.5 --data DATA --out OUT"
    )
    assert record["steps"] == 30
    assert record["images"] == 120
    assert record["parameters"] == 3
    assert record["description"]["data"] == {"seeds": [0, 10]}
    assert record["measured"]["weight"] < 0.7
    assert record["machine"]["cpus"] >= 1
    assert {"torch", "diffusers", "vision3d", "python"} <= record["versions"].keys()
    assert str(tiny.parent) not in text
    assert (tiny / "weights" / "net.safetensors").is_file()


def test_the_presets_recipe_holds_where_nothing_is_given(tiny):
    verb.train("tiny", tiny, device="cpu")
    record = json.loads((tiny / "weights" / "training.json").read_text())
    assert record["steps"] == 7
    assert record["settings"]["lr"] == 0.1


def test_minutes_replace_the_steps_of_the_recipe(tiny):
    verb.train("tiny", tiny, device="cpu", minutes=0.005)
    assert json.loads((tiny / "weights" / "training.json").read_text())["steps"] != 7


def test_a_finished_run_can_be_exported_again_with_resume(tiny):
    verb.train("tiny", tiny, device="cpu", steps=5)
    first = (tiny / "weights" / "net.safetensors").read_bytes()
    (tiny / "weights" / "net.safetensors").unlink()
    assert verb.train("tiny", tiny, device="cpu", steps=5, resume=True).exit_code == 0
    assert (tiny / "weights" / "net.safetensors").read_bytes() == first


def test_unknown_task_is_named():
    with pytest.raises(InputError, match="choose one of prior-vae"):
        verb.load_task("depth", TaskOptions())


def test_the_command_line_explains_itself(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("prior-vae", "primedepth", "--minutes", "time budget", "--resume", "Ctrl-C"):
        assert word in text


def test_the_command_line_reaches_the_task(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prior").mkdir()

    def load_task(name, options):
        assert name == "prior-unet"
        assert options == TaskOptions("full", Path("cache"), Path("prior"), 3, 4, True)
        raise InputError("reached")

    monkeypatch.setattr(verb, "load_task", load_task)
    given = "prior-unet --out run --preset full --data cache --init prior --batch-size 3 --seed 4 --resume"
    assert main(["train", *given.split(), "--checkpointing", "True", "--minutes", "2.5"]) == 2
    assert capsys.readouterr().err.strip().endswith("reached")


@pytest.mark.parametrize("name", list(verb.TASKS))
def test_every_task_goes_on_from_the_embedded_weights(name, monkeypatch, capsys):
    start = next(start for start in verb.PIPELINES if name.startswith(start))
    problem = verb.load_task(name, TaskOptions(init=MINI / verb.PIPELINES[start]))
    problem.device = torch.device("cpu")
    assert sum(p.numel() for p in problem.build().parameters()) > 10_000

    def load_task(task, options):
        assert options.init == problem.options.init
        raise InputError("reached")

    monkeypatch.setattr(verb, "load_task", load_task)
    assert main(["train", name, "--out", "run", "--init", "mini"]) == 2
    assert capsys.readouterr().err.strip().endswith("reached")
    assert main(["train", name, "--out", "run", "--init", "nowhere"]) == 2
    assert "nowhere: no such weights" in capsys.readouterr().err


def test_sigterm_saves_ends_in_one_line_and_resumes(tiny):
    script = (
        "import sys; from pathlib import Path; from vision3d.training import verb\n"
        "verb.TASKS['tiny'] = 'tiny_task_module:TinyTask'\n"
        f"summary = verb.train('tiny', Path({str(tiny)!r}), device='cpu', steps=10**9, log_every=5)\n"
        "print(summary, file=sys.stderr)\n"
        "sys.exit(summary.exit_code)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tiny.parent,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tiny.parent)},
    )
    deadline = time.monotonic() + 120
    log = tiny / "log.jsonl"
    while time.monotonic() < deadline and not (log.is_file() and log.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].endswith("saved, go on with --resume")
    assert not (tiny / "weights").exists()
    step = int(next((tiny / "checkpoints").iterdir()).name.removeprefix("step-"))
    assert verb.train("tiny", tiny, device="cpu", steps=step + 3, resume=True).exit_code == 0
    assert json.loads((tiny / "weights" / "training.json").read_text())["steps"] == step + 3


def test_two_processes_train_as_one_on_the_joint_batches(tiny, tmp_path):
    """Data parallel: the mean gradient of two processes is that of one that accumulates both batches."""
    script = tmp_path / "two.py"
    script.write_text(
        "from pathlib import Path\n"
        "from vision3d.training.trainer import Trainer, TrainerSettings\n"
        "from vision3d.training.task import TaskOptions\n"
        "from tiny_task_module import TinyTask\n"
        "settings = TrainerSettings(steps=6, lr=0.1, warmup=1, ema=0.5, device='cpu')\n"
        "trainer = Trainer(TinyTask.from_options(TaskOptions()), settings, Path('two'))\n"
        "summary = trainer.run()\n"
        "assert summary.processes == 2 and summary.images == 48, summary\n"
        "trainer.export(Path('two/weights'))\n"
    )
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [sys.executable, *launch, str(script)], cwd=tmp_path, env=environment, check=True, timeout=240
    )
    verb.train("tiny", tiny, device="cpu", steps=6, accumulate=2)
    from vision3d.training.checkpoint import load_tensors

    one = load_tensors(tiny / "weights" / "net.safetensors")
    two = load_tensors(tmp_path / "two" / "weights" / "net.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-7)


def test_the_command_names_processes_and_precision():
    from vision3d.training.task import TaskOptions
    from vision3d.training.trainer import TrainerSettings
    from vision3d.training.verb import reproducing_command

    settings = TrainerSettings(steps=7, precision="bf16")
    words = reproducing_command("dino", TaskOptions("mini"), settings, 7, processes=2)
    assert words.startswith("torchrun --standalone --nproc_per_node 2 -m vision3d train dino --preset mini")
    assert "--precision bf16" in words
    assert reproducing_command("dino", TaskOptions("mini"), settings, 7).startswith("vision3d train dino")


def test_parts_that_are_due_now_and_then_see_every_shape_and_images_are_counted():
    from vision3d.training.dense import DenseTask

    class Shapes(DenseTask):
        def __init__(self, counts):
            self.take_turns(counts)

    Shapes.__abstractmethods__ = frozenset()
    for shapes in (4, 5, 6):
        task = Shapes(range(1, shapes + 1))
        for every in (1, 2, 4, 8, 16):
            due = [step for step in range(shapes * every * 4) if task.due(step, every)]
            assert len(due) == shapes * 4
            assert {step % shapes for step in due} == set(range(shapes))
        assert [task.images_at(i) for i in range(2 * shapes)] == [*range(1, shapes + 1)] * 2
