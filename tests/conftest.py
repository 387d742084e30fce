"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

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
