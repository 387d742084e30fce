"""A download ends with the right file or with none, whatever server, network and clock do."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from vision3d.errors import OutputError, WeightsError
from vision3d.weights import download, registry
from vision3d.weights.download import Policy, fetch

FAULTS = [
    ["drop", "drop", "drop"],
    ["short"],
    ["corrupt"],
    ["drop", "corrupt", "drop"],
    ["429", "wait 429 0", "503", "wait 503 0", "500"],
    ["stall", "drop"],
    ["endless"],
    ["redirect 301 /file.bin", "redirect 302 /file.bin", "redirect 307 /file.bin", "redirect 308 /file.bin"],
    ["drop", "redirect 302 /file.bin", "corrupt", "503", "stall", "short"],
]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("faults", FAULTS, ids=lambda faults: "+".join(f.split()[0] for f in faults))
def test_the_file_is_right_after_every_kind_of_failure(server, fast, blob, tmp_path, faults) -> None:
    served = server.add("/file.bin", blob, *faults)
    target = tmp_path / "out" / "file.bin"
    counted = []
    digest = fetch(
        [f"{server.url}/file.bin"], target, sha256=served.sha256, policy=fast, advance=counted.append
    )
    assert target.read_bytes() == blob and digest == served.sha256
    assert sum(counted) == len(blob)
    assert leftovers(target.parent) == ["file.bin"]


def test_a_broken_download_goes_on_where_it_stopped(server, fast, blob, tmp_path) -> None:
    server.add("/file.bin", blob, "drop", "drop")
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)
    starts = [0 if span is None else int(span[6:-1]) for _, _, span in server.requests]
    assert starts == sorted(starts) and len(set(starts)) == 3
    assert (tmp_path / "file.bin").read_bytes() == blob


def test_a_file_that_changed_on_the_server_is_started_again(server, fast, blob, tmp_path) -> None:
    served = server.add("/file.bin", blob, "drop", *["503"] * 8)
    with pytest.raises(WeightsError, match="503"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)
    assert (tmp_path / "file.bin.part").stat().st_size > 0
    served.content, served.etag = bytes(reversed(blob)), '"v2"'
    served.faults.clear()
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)
    assert (tmp_path / "file.bin").read_bytes() == bytes(reversed(blob))


def test_bytes_of_an_unknown_version_are_not_continued(server, fast, blob, tmp_path) -> None:
    """Without entity tag and checksum nothing would tell that two halves do not belong together."""
    (tmp_path / "file.bin.part").write_bytes(b"another file's beginning")
    server.add("/file.bin", blob, etag="")
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)
    assert (tmp_path / "file.bin").read_bytes() == blob
    assert server.requests[0][2] is None


def test_servers_without_ranges_are_asked_for_all_of_it(server, fast, blob, tmp_path) -> None:
    server.add("/file.bin", blob, "drop", ranges=False)
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)
    assert (tmp_path / "file.bin").read_bytes() == blob


def test_a_complete_part_needs_no_download(server, fast, blob, tmp_path) -> None:
    served = server.add("/file.bin", blob)
    (tmp_path / "file.bin.part").write_bytes(blob)
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", sha256=served.sha256, policy=fast)
    assert (tmp_path / "file.bin").read_bytes() == blob


def test_a_wrong_file_is_never_kept(server, fast, blob, tmp_path) -> None:
    server.add("/file.bin", blob)
    with pytest.raises(WeightsError, match="SHA-256 is"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", sha256="0" * 64, policy=fast)
    with pytest.raises(WeightsError, match=r"1500000 bytes there, not the published 7"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", size=7, policy=fast)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{not json at all", "no safetensors"),
        ("a.zip", b"no archive", "no zip archive"),
        ("a.pth", b"PK\x03\x04" + b"\0" * 100, "damaged archive"),
        ("a.json", b"{", "no JSON"),
        ("a.bin", b"", "empty"),
    ],
)
def test_without_a_checksum_a_file_must_be_sound(server, fast, tmp_path, name, content, reason) -> None:
    server.add(f"/{name}", content)
    with pytest.raises(WeightsError, match=reason):
        fetch([f"{server.url}/{name}"], tmp_path / name, policy=fast)
    assert leftovers(tmp_path) == []


def test_what_a_server_refuses_is_not_asked_again_but_a_mirror_is(server, fast, blob, tmp_path) -> None:
    server.add("/mirror.bin", blob)
    fetch([f"{server.url}/gone.bin", f"{server.url}/mirror.bin"], tmp_path / "file.bin", policy=fast)
    assert [path for _, path, _ in server.requests] == ["/gone.bin", "/mirror.bin"]
    with pytest.raises(WeightsError, match=r"not there \(404\)") as caught:
        fetch([f"{server.url}/gone.bin"], tmp_path / "other.bin", policy=fast)
    assert "\n" not in str(caught.value)


def test_a_login_page_is_not_taken_for_the_file(server, fast, blob, tmp_path) -> None:
    server.add("/file.bin", blob, "html")
    with pytest.raises(WeightsError, match="a web page is there"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)


def test_redirects_to_plain_addresses_and_loops_are_refused(server, fast, blob, tmp_path) -> None:
    server.add("/file.bin", blob, "redirect 302 http://example.com/file.bin")
    with pytest.raises(WeightsError, match="not encrypted"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)
    server.add("/loop.bin", blob, *["redirect 302 /loop.bin"] * 50)
    with pytest.raises(WeightsError, match=r"loop\.bin"):
        fetch([f"{server.url}/loop.bin"], tmp_path / "file.bin", policy=fast)
    with pytest.raises(WeightsError, match="not encrypted"):
        fetch(["http://example.com/file.bin"], tmp_path / "file.bin", policy=fast)


def test_the_wait_that_a_server_asks_for_is_kept(server, fast, blob, tmp_path, monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    date = formatdate(time.time() + 3, usegmt=True)  # whole seconds
    served = server.add("/file.bin", blob, "wait 429 2", f"wait 503 {date}", "503", "503")
    # The server's own threads sleep, too, but only where a rate is set.
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", sha256=served.sha256, policy=fast)
    assert waits[0] == 2 and 0 < waits[1] <= 3
    assert waits[3] > waits[2] * 1.1  # doubled, give or take a quarter
    server.add("/file.bin", blob, "wait 503 3600")
    with pytest.raises(WeightsError, match="come back in 3600 s"):
        fetch([f"{server.url}/file.bin"], tmp_path / "again.bin", policy=fast)


def test_a_stuck_connection_is_given_up_after_a_while(server, blob, tmp_path) -> None:
    server.add("/slow.bin", blob, rate=40_000)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="stuck"):
        fetch(
            [f"{server.url}/slow.bin"],
            tmp_path / "slow.bin",
            policy=Policy(attempts=1, stall=1.0, slowest=1e6, backoff=0.01),
        )
    assert time.monotonic() - start < 6


def test_nobody_listening_is_one_line(fast, tmp_path) -> None:
    with pytest.raises(WeightsError, match="refused") as caught:
        fetch(["http://127.0.0.1:9/file.bin"], tmp_path / "file.bin", policy=fast)
    assert "\n" not in str(caught.value)


def test_a_download_larger_than_the_disk_is_not_begun(server, fast, blob, tmp_path, monkeypatch) -> None:
    server.add("/file.bin", blob)
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"needs 1\.5 MB, and 1\.0 MB are free"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", policy=fast)


def test_a_disk_that_fills_up_is_one_line_and_the_rest_comes_later(
    server, fast, blob, tmp_path, monkeypatch
) -> None:
    served = server.add("/file.bin", blob)
    real = download._write_all

    def full(file, data):
        if file.tell() > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(download, "_write_all", full)
    with pytest.raises(OutputError, match="disk is full"):
        fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", sha256=served.sha256, policy=fast)
    assert not (tmp_path / "file.bin").exists()
    monkeypatch.setattr(download, "_write_all", real)
    fetch([f"{server.url}/file.bin"], tmp_path / "file.bin", sha256=served.sha256, policy=fast)
    assert (tmp_path / "file.bin").read_bytes() == blob
    assert server.requests[-1][2] is not None


# Killed at any moment --------------------------------------------------------------------------------------

CLIENT = textwrap.dedent(
    """
    from vision3d.weights import registry
    from vision3d.weights.download import Policy
    print("ready", flush=True)
    patience = Policy(attempts=8, backoff=0.01, stall=0.6, wrong=4)
    registry.pull("demo", consent=registry.Consent(accept=True), policy=patience)
    """
)
ENTRY = """
[[checkpoint]]
name = "demo"
title = "two files"
tasks = ["testing"]
kind = "url"
licence = "mit"
files = [
  {{ path = "published.bin", sha256 = "{sha256}", url = "{url}/published.bin" }},
  {{ path = "unpublished.bin", url = "{url}/unpublished.bin" }},
]
"""


def kill_at_random_moments(server, policy: Policy, use_manifest, home: Path, blob: bytes, kills: int) -> int:
    """Kills that many clients; returns how many of them were in the middle of a file."""
    rng = random.Random(kills)
    other = bytes(reversed(blob))
    contents = {"published.bin": blob, "unpublished.bin": other}
    use_manifest(ENTRY.format(sha256=server.add("/published.bin", blob).sha256, url=server.url))
    kinds = ["drop", "503", "wait 429 0", "corrupt", "redirect 302 /published.bin"]
    done = midway = 0
    while done < kills:
        for _ in range(min(rng.randint(1, 3), kills - done)):
            faults = [rng.choice(kinds) for _ in range(rng.randint(0, 2))]
            server.add("/published.bin", blob, *faults, rate=3e6)
            server.add("/unpublished.bin", other, *[f for f in faults if f in ("drop", "503")], rate=3e6)
            client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE)
            assert client.stdout is not None and client.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 1.2))
            client.send_signal(signal.SIGKILL)
            client.wait()
            client.stdout.close()
            done += 1
            files = registry.root_of("demo")
            midway += any(files.glob("*.part"))
            for name, content in contents.items():
                if (files / name).exists():
                    assert (files / name).read_bytes() == content
            record = registry.pulled("demo")
            assert record is None or set(record.files) == set(contents)
        server.add("/published.bin", blob, "drop")
        server.add("/unpublished.bin", other, "drop")
        registry.pull("demo", consent=registry.Consent(accept=True), policy=policy)
        assert registry.verify("demo").state == "right"
        for name, content in contents.items():
            assert (registry.root_of("demo") / name).read_bytes() == content
        assert leftovers(registry.root_of("demo")) == sorted(contents)
        registry.remove("demo")
        assert not (home / "weights" / "demo").exists()
    return midway


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_client_leaves_nothing_wrong(server, fast, use_manifest, home, blob) -> None:
    assert kill_at_random_moments(server, fast, use_manifest, home, blob, 6) > 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_fifty_killed_clients_leave_nothing_wrong(server, fast, use_manifest, home, blob) -> None:
    assert kill_at_random_moments(server, fast, use_manifest, home, blob, 50) > 10
