"""``vision3d weights`` answers people and programs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vision3d import cli


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["weights", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_task_is_answered_with_what_how_large_and_which_licence(capsys) -> None:
    code, out, _ = run(capsys, "list", "--task", "calibrate")
    assert code == 0
    assert out.splitlines()[0].split() == ["NAME", "FOR", "SIZE", "LICENCE", "STATE"]
    advice = out.splitlines()[-1]
    assert "vision3d weights pull dmcalib (with sd21; " in advice
    assert "11.9 GB" in advice and "OpenRAIL-M + CreativeML Open RAIL++-M" in advice
    assert max(map(len, out.splitlines())) < 220


def test_every_task_of_the_design_gets_an_answer(capsys) -> None:
    for task in ("depth", "normals", "calibrate", "match", "swap", "sim2real", "dream"):
        code, out, _ = run(capsys, "list", "--task", task)
        assert code == 0 and f"{task} with" in out
    code, _, err = run(capsys, "list", "--task", "cooking")
    assert code == 2 and "choose one of" in err


def test_programs_get_json(capsys) -> None:
    code, out, _ = run(capsys, "list", "--task", "dream", "--json")
    content = json.loads(out)
    assert code == 0 and content["command"] == "weights"
    by_name = {entry["name"]: entry for entry in content["weights"]}
    assert by_name["deepfloyd-if-i-xl"]["gated"] is True
    assert by_name["direct25-normal"]["licence"]["ask"] is True
    assert by_name["triplaneturbo"]["size"] == 91_200_000


def test_quiet_is_quiet(capsys) -> None:
    assert run(capsys, "list", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["pull", "primdepth"], "did you mean primedepth?"),
        (["pull"], "no names given"),
        (["where", "primedepth"], "vision3d weights pull primedepth"),
        (["verify", "primedepth"], "not here"),
        (["verify", "nothing.ckpt"], "neither weights of the list nor a file"),
        (["remove", "primedepth"], "not here"),
        (["pull", "a", "b", "--from", "c"], "one name"),
    ],
)
def test_mistakes_are_one_line(capsys, words, reason) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and reason in err
    assert len(err.splitlines()) == 1


def test_pull_verify_where_and_remove(capsys, server, use_manifest, blob, tmp_path) -> None:
    served = server.add("/demo.bin", blob)
    use_manifest(f"""
[[checkpoint]]
name = "demo"
title = "one file"
tasks = ["testing"]
kind = "url"
licence = "openrail-m"
needs = ["base"]
files = [{{ path = "demo.bin", sha256 = "{served.sha256}", url = "{server.url}/demo.bin" }}]
[[checkpoint]]
name = "base"
title = "what it stands on"
tasks = ["testing"]
kind = "url"
licence = "mit"
files = [{{ path = "base.bin", url = "{server.url}/base.bin" }}]
""")
    code, out, _ = run(capsys, "pull", "demo", "--accept-license")
    assert code == 2 and "base failed" in out and "--from FILE" in out and "demo pulled, 1.5 MB" in out
    server.add("/base.bin", b"base")
    code, out, _ = run(capsys, "pull", "demo")
    assert code == 0 and "demo there already" in out and "base pulled" in out
    code, out, _ = run(capsys, "verify")
    assert code == 0 and out.count("right") == 2
    code, out, _ = run(capsys, "where", "demo")
    assert code == 0 and out.strip().endswith("demo/files/demo.bin")
    code, out, _ = run(capsys, "list", "--pulled")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["NAME", "demo", "base"]
    code, out, _ = run(capsys, "remove", "demo", "base")
    assert code == 0 and "freed" in out
    given = tmp_path / "demo.bin"
    given.write_bytes(blob)
    code, out, _ = run(capsys, "pull", "demo", "--from", str(given))
    assert code == 0 and "by hand" in out


@pytest.mark.parametrize("words", [["--help"], ["pull", "--help"], ["list"], ["where"]])
def test_nothing_heavy_is_imported(words) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "vision3d", "weights", *words]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert not {"torch", "numpy", "diffusers", "transformers", "huggingface_hub"} & imported
