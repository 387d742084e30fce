"""Hub repositories, served by a stand-in on loopback, through the command line in processes of their own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

COMMIT = "1234567890abcdef1234567890abcdef12345678"
ENTRY = """
[[checkpoint]]
name = "demo"
title = "a repository"
tasks = ["testing"]
kind = "hf"
repo = "someone/demo"
revision = "main"
patterns = ["*.safetensors", "config.json"]
mirrors = ["else/demo"]
licence = "openrail-m"
"""
TENSORS = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = len(TENSORS).to_bytes(8, "little") + TENSORS + b"\0" * 8
LARGE = random.Random(3).randbytes(400_000)


@pytest.fixture
def hub(server) -> Callable[..., None]:
    """Puts a repository on the server, as the hub would list it."""

    def publish(repo: str = "someone/demo", weights: bytes = WEIGHTS, listed: bytes = WEIGHTS) -> None:
        digest = hashlib.sha256(listed).hexdigest()
        files = {"config.json": b"{}", "net.safetensors": weights, "README.md": b"no weights"}
        siblings = []
        for name, content in files.items():
            large = name.endswith(".safetensors")
            entry = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            if large:
                entry["lfs"] = {"sha256": digest, "size": len(listed), "pointerSize": 130}
            siblings.append(entry)
            etag = f'"{digest}"' if large else f'"{entry["blobId"]}"'
            headers = {"X-Repo-Commit": COMMIT}
            for revision in (COMMIT, "main"):
                server.add(f"/{repo}/resolve/{revision}/{name}", content, etag=etag, headers=headers)
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}
        server.documents[f"/api/models/{repo}/revision/main"] = {**info, "private": False}

    return publish


@pytest.fixture
def environment(server, use_manifest) -> dict[str, str]:
    use_manifest(ENTRY)
    return {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def test_files_come_through_the_hub_cache_and_are_linked(vision3d, server, hub, environment, home) -> None:
    hub()
    done = vision3d("weights", "pull", "demo", "--accept-license", "--json", **environment)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)["weights"][0]
    root = home / "weights" / "demo" / "files"
    assert outcome["state"] == "pulled" and Path(outcome["path"]) == root
    assert (root / "net.safetensors").read_bytes() == WEIGHTS and (root / "config.json").is_file()
    assert not (root / "README.md").exists()
    hf = Path(os.environ["HF_HOME"])
    assert (root / "net.safetensors").resolve().is_relative_to(hf.resolve())
    assert (hf / "hub" / "models--someone--demo" / "refs" / "main").read_text() == COMMIT
    record = json.loads((home / "weights" / "demo" / "record.json").read_text())
    assert record["revision"] == COMMIT and record["source"] == "someone/demo"
    assert record["files"]["net.safetensors"]["published"] is True
    # Later, nothing is asked of the hub; and a removed record comes back offline from the cache.
    asked = len(server.requests)
    again = vision3d("weights", "pull", "demo", **environment)
    assert again.returncode == 0 and "there already" in again.stdout and len(server.requests) == asked
    (home / "weights" / "demo" / "record.json").unlink()
    cached = vision3d("weights", "pull", "demo", "--accept-license", **environment, HF_HUB_OFFLINE="1")
    assert cached.returncode == 0, cached.stderr
    assert len(server.requests) == asked
    removed = vision3d("weights", "remove", "demo", **environment)
    assert removed.returncode == 0 and not list(hf.rglob("net.safetensors"))


@pytest.mark.parametrize(
    "faults", [["drop"], ["503", "drop"], ["corrupt"], ["short"], ["stall", "drop"]], ids="-".join
)
def test_a_failing_hub_gives_the_right_files_in_the_end(
    vision3d, server, hub, environment, home, faults
) -> None:
    hub(weights=LARGE, listed=LARGE)
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "1"  # a connection that stands still is left after a second
    for path, served in server.files.items():
        if path.endswith(".safetensors"):
            served.faults.extend(faults)
    for _ in range(3):  # huggingface_hub gives some failures up at once; the next pull goes on from there
        done = vision3d("weights", "pull", "demo", "--accept-license", **environment)
        file = home / "weights" / "demo" / "files" / "net.safetensors"
        assert not file.exists() or file.read_bytes() == LARGE
        assert "Traceback" not in done.stderr
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == LARGE


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_pulls_from_the_hub_leave_nothing_wrong(vision3d, server, hub, environment, home) -> None:
    rng = random.Random(5)
    hub(weights=LARGE, listed=LARGE)
    for served in server.files.values():
        served.rate = 4e5
    command = [sys.executable, "-m", "vision3d", "weights", "pull", "demo", "--accept-license"]
    file = home / "weights" / "demo" / "files" / "net.safetensors"
    for _ in range(4):
        client = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.6))
        client.kill()
        client.wait()
        assert not file.exists() or file.read_bytes() == LARGE
    done = vision3d("weights", "pull", "demo", "--accept-license", **environment)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == LARGE
    assert vision3d("weights", "where", "demo", **environment).stdout.strip().endswith("files")


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("", 2), ("y", 0)])
def test_the_licence_is_asked_for_on_a_terminal(hub, environment, home, answer, code) -> None:
    import pty

    hub()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vision3d", "weights", "pull", "demo"]
    client = subprocess.Popen(
        command,
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment, "TERM": "dumb"},
    )
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 1000)
    os.write(ours, f"{answer}\n".encode())
    with suppress(OSError):
        while chunk := os.read(ours, 1000):
            shown += chunk
    assert client.wait(timeout=60) == code
    os.close(ours)
    text = shown.decode()
    assert "CreativeML OpenRAIL-M (https://" in text
    assert ("the licence was not accepted" in text) == (code == 2)
    assert (home / "weights" / "demo" / "record.json").exists() == (code == 0)


def test_a_copy_that_is_not_what_the_hub_lists_is_not_used(vision3d, hub, environment, home) -> None:
    hub(weights=WEIGHTS[:-1] + b"!")
    done = vision3d("weights", "pull", "demo", "--accept-license", **environment)
    assert done.returncode == 2 and "has the SHA-256" in done.stderr
    assert not (home / "weights" / "demo" / "record.json").exists()


def test_a_withdrawn_repository_is_looked_for_at_its_mirror(vision3d, hub, environment, home) -> None:
    hub("else/demo")
    done = vision3d("weights", "pull", "demo", "--accept-license", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((home / "weights" / "demo" / "record.json").read_text())["source"] == "else/demo"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub does not answer"),
        ({}, "withdrawn"),
    ],
    ids=["offline", "nobody-there", "no-such-repository"],
)
def test_out_of_reach_is_one_line_that_says_what_to_do(vision3d, environment, home, changes, reason) -> None:
    done = vision3d("weights", "pull", "demo", "--accept-license", **{**environment, **changes})
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("vision3d:")]
    assert len(lines) == 1 and reason in lines[0]
    assert "https://huggingface.co/someone/demo" in lines[0] and "--from" in lines[0]
    assert str(home / "weights" / "demo" / "files") in lines[0]
    assert "Traceback" not in done.stderr
