"""What is installed is what is in the tree, under the names that the documentation uses."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest

import vision3d

ROOT = Path(__file__).resolve().parent.parent
tomllib = pytest.importorskip("tomllib")


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_in_the_tree_is_in_the_wheel(pyproject):
    listed = set(pyproject["tool"]["setuptools"]["packages"])
    folders = {"vision3d": "vision3d"}
    folders |= {top: f"vision3d.{top}" for top in ("pipelines", "evaluation", "viewer", "weights")}
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / top).parts])
        for top, package in folders.items()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == listed


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("open3d-cpu", "open3d"),
        ("viser", "viser"),
        ("tensorboard", "tensorboard"),
        ("mkdocs", "mkdocs"),
        ("h5py", "h5py"),
        ("OpenEXR", "OpenEXR"),
    ],
)
def test_what_is_installed_can_be_imported(name, module):
    """Tests skip without an optional package, but must not for one that is there and broken."""
    try:
        version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)


def test_every_folder_of_modules_is_a_package():
    for top in ("vision3d", "pipelines", "evaluation", "weights"):
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module


def test_version_is_written_once_in_two_places(pyproject):
    assert vision3d.__version__ == pyproject["project"]["version"] == version("vision3d")


def test_public_names_load_from_where_they_live():
    assert set(vision3d._HOMES) | {"__version__"} == set(vision3d.__all__)
    assert set(vision3d.__all__) <= set(dir(vision3d))
    for name in vision3d.__all__:
        assert getattr(vision3d, name) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        vision3d.Nonsense  # noqa: B018


def test_types_are_announced():
    assert (ROOT / "vision3d" / "py.typed").exists()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): pinned for name, pinned in pairs}


def test_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement

    pinned = pins()
    wanted = [Requirement(text) for text in requires("vision3d") or ()]
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = [{"extra": extra} for extra in ("", "viz", "geometry", "train", "dev")]
        needed = requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in extras)
        if needed and name != "vision3d":
            assert name in pinned, f"constraints.txt does not pin {name}"
            assert requirement.specifier.contains(pinned[name]), f"{name} {pinned[name]} is out of range"


def test_constraints_hold_no_path_and_no_local_build():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"@|file:|/|\+", text.partition("\n")[2])


def test_torch_is_the_tested_release():
    assert pins()["torch"] == version("torch").partition("+")[0]
