"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from vision3d.errors import OutputError

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("EGL_PLATFORM", "surfaceless")

# A busy machine takes its time: that is no failure of what is tested.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger fixtures and real data beside the checkout; tests that need it skip without."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the larger fixtures beside the checkout")
    return folder


@pytest.fixture(scope="session")
def complaints_as_nobody() -> Callable[[list[Callable[[], None]]], list[str]]:
    """What each of some attempts says to a user who owns nothing; in a forked process, where root can become one."""

    def complain(attempts: list[Callable[[], None]]) -> list[str]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            said = []
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                for attempt in attempts:
                    try:
                        attempt()
                        said.append("written")
                    except OutputError as error:
                        said.append(str(error))
            finally:
                os.write(writer, json.dumps(said).encode())
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        return json.loads(answer)

    return complain


@pytest.fixture(scope="session")
def golden() -> Path:
    """The fixtures that travel with the repository."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def example_photo() -> Path:
    """The real photograph that `make demo` uses."""
    return ROOT / "examples" / "desk.png"


@pytest.fixture(autouse=True)
def as_a_new_process_would_speak() -> None:
    """A command line that a test ran with --quiet or --debug decides nothing for the tests after it."""
    from vision3d.progress import set_debug, set_quiet

    set_quiet(False)
    set_debug(False)


@pytest.fixture(scope="session")
def sd_dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SD+DINO: the embedded prior and an untrained transformer, whose features still tell places apart."""
    import torch

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
