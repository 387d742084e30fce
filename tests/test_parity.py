"""Agreement with the published implementations, on the fixtures that travel along and on all others at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision3d.evaluation.parity.runner import run_parity

SYSTEMS = ("backbone", "dmcalib", "primedepth", "sd_dino", "stablenormal")


@pytest.mark.parametrize("system", SYSTEMS)
def test_fixtures_of_the_repository(golden: Path, system: str) -> None:
    report = run_parity(golden, systems=(system,))
    assert report.exit_code == 0, str(report)


@pytest.mark.parametrize("system", SYSTEMS)
def test_all_other_fixtures(shared: Path, system: str) -> None:
    report = run_parity(shared / "golden", systems=(system,))
    assert report.exit_code == 0, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_fixtures_of_published_width(shared: Path, system: str) -> None:
    report = run_parity(shared / "golden", systems=(system,), slow=True)
    assert report.exit_code == 0, str(report)
