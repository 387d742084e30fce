"""Weights are used only if they are the published ones, whoever brought them."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

import pytest

from vision3d.errors import InputError, WeightsError
from vision3d.weights import MINI, registry, resolve
from vision3d.weights.manifest import MANIFEST, manifest
from vision3d.weights.registry import Consent

YES = Consent(accept=True)
ENTRY = """
[[checkpoint]]
name = "demo"
title = "one file"
tasks = ["testing"]
official = "testing"
kind = "url"
licence = "{licence}"
files = [{{ path = "demo.bin", sha256 = "{sha256}", url = "{url}/demo.bin" }}]
"""


@pytest.fixture
def demo(server, use_manifest, blob):
    """A checkpoint of one file that restricts its use, on the server."""
    served = server.add("/demo.bin", blob)
    use_manifest(ENTRY.format(sha256=served.sha256, url=server.url, licence="openrail-m"))
    return served


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Manifest ---------------------------------------------------------------------------------------------------


def test_every_pipeline_of_the_design_has_official_weights() -> None:
    for pipeline in (
        "primedepth",
        "stablenormal",
        "dmcalib",
        "sddino",
        "sim2real",
        "direct25",
        "triplaneturbo",
    ):
        assert manifest().official(pipeline) is not None
    for task in ("depth", "normals", "calibrate", "match", "swap", "sim2real", "dream"):
        assert task in manifest().tasks


def test_entries_say_where_and_under_which_terms() -> None:
    from vision3d.weights.layouts import LAYOUTS

    for checkpoint in manifest().checkpoints.values():
        assert checkpoint.title and checkpoint.tasks and checkpoint.source
        assert checkpoint.licence.url.startswith("https://") or checkpoint.licence.name == "not stated"
        for file in checkpoint.files:
            layout = checkpoint.file(file.path).layout
            assert not layout or layout in LAYOUTS
        assert not set(checkpoint.withdrawn) & {checkpoint.repo, *checkpoint.mirrors}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('name = "demo"', 'name = "../demo"'), "no name"),
        (('path = "demo.bin"', 'path = "../demo.bin"'), "leads out of the folder"),
        (('path = "demo.bin"', r'path = "C:\\demo.bin"'), "leads out of the folder"),
        (('kind = "url"', 'kind = "ftp"'), "kind 'ftp'"),
        (('url = "https://a.b', 'url = "http://a.b'), "https link"),
        (('licence = "mit"', 'licence = "mine"'), "no licence"),
        (('kind = "url"', 'kind = "url"\nneeds = ["nothing"]'), "needs nothing"),
        (('kind = "url"', 'kind = "url"\ncolour = "red"'), "colour"),
        (("[[checkpoint]]", "[[checkpoint]"), "manifest.toml"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(use_manifest, change, reason) -> None:
    use_manifest(ENTRY.format(sha256="ab" * 32, url="https://a.b", licence="mit").replace(*change))
    with pytest.raises(WeightsError, match=reason) as caught:
        manifest()
    one_line(caught)


def test_the_shipped_manifest_travels_with_the_package() -> None:
    assert MANIFEST.is_file() and len(manifest().checkpoints) > 30


# Pulling ----------------------------------------------------------------------------------------------------


def test_a_pulled_checkpoint_is_found_under_its_name(demo, blob, server) -> None:
    with pytest.raises(WeightsError, match="vision3d weights pull demo"):
        resolve("testing", "demo")
    outcome = registry.pull("demo", consent=YES)
    assert outcome.state == "pulled"
    for source in ("demo", None):
        path, name = resolve("testing", source)
        assert path.read_bytes() == blob and name == f"demo (127.0.0.1:{server.server_port})"
    asked = len(server.requests)
    assert registry.pull("demo", consent=YES).state == "there already"
    assert len(server.requests) == asked


def test_changed_files_are_not_used_and_come_back_right(demo, blob, capsys) -> None:
    registry.pull("demo", consent=YES)
    file = registry.root_of("demo") / "demo.bin"
    file.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(WeightsError, match="its content is not what was pulled") as caught:
        resolve("testing", "demo")
    one_line(caught)
    with pytest.raises(WeightsError, match="no embedded weights"):
        resolve("testing")
    assert "the embedded weights are used instead" in capsys.readouterr().err
    file.write_bytes(blob[:100])
    with pytest.raises(WeightsError, match="100 bytes instead of"):
        registry.verify("demo")
    assert registry.states(["demo"]) == {"demo": "damaged"}
    assert registry.pull("demo", consent=YES).state == "pulled"
    assert resolve("testing", "demo")[0].read_bytes() == blob


def test_a_changed_bit_is_found_even_if_the_time_of_change_is_forged(demo, blob) -> None:
    registry.pull("demo", consent=YES)
    file = registry.root_of("demo") / "demo.bin"
    before = file.stat()
    file.write_bytes(bytes([blob[0] ^ 1]) + blob[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsError, match="content"):
        registry.verify("demo")


def test_a_touched_file_is_hashed_once_and_believed(demo, monkeypatch) -> None:
    registry.pull("demo", consent=YES)
    (registry.root_of("demo") / "demo.bin").touch()
    assert registry.pulled("demo") is not None
    monkeypatch.setattr(registry, "sha256_file", lambda path: pytest.fail("hashed again"))
    assert registry.pulled("demo") is not None


@pytest.mark.parametrize("content", ["", "{}", '{"name": "demo", "files": {}}', "[1]"])
def test_without_a_sound_record_files_are_not_weights(demo, blob, content) -> None:
    root = registry.root_of("demo")
    root.mkdir(parents=True)
    (root / "demo.bin").write_bytes(blob)
    (registry.folder_of("demo") / "record.json").write_text(content)
    assert registry.pulled("demo") is None
    with pytest.raises(WeightsError, match="not here"):
        resolve("testing", "demo")


def test_the_first_checksum_is_kept_where_none_is_published(server, use_manifest, blob) -> None:
    server.add("/demo.bin", blob)
    text = ENTRY.format(sha256="", url=server.url, licence="mit")
    use_manifest(text)
    registry.pull("demo", consent=YES)
    record = json.loads((registry.folder_of("demo") / "record.json").read_text())
    stored = record["files"]["demo.bin"]
    assert stored["published"] is False and len(stored["sha256"]) == 64
    assert "1 of them against the first pull" in registry.verify("demo").message


def test_archives_are_unpacked_and_stay_in_their_folder(server, use_manifest, fast) -> None:
    def archive(*names: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(name, name)
        return buffer.getvalue()

    text = ENTRY.format(sha256="", url=server.url, licence="mit").replace("demo.bin", "net.zip")
    use_manifest(text.replace('path = "net.zip"', 'path = "net.zip", unpack = true'))
    server.add("/net.zip", archive("net/unet/config.json", "net/unet/model.bin", "__MACOSX/net/._x"))
    registry.pull("demo", consent=YES)
    root, record = registry.root_of("demo"), registry.pulled("demo")
    assert record is not None and set(record.files) == {"net/unet/config.json", "net/unet/model.bin"}
    assert (root / "net/unet/model.bin").read_text() == "net/unet/model.bin" and not (
        root / "net.zip"
    ).exists()
    registry.remove("demo")
    server.add("/net.zip", archive("net/a.bin", "../../escaped.bin"), etag='"v2"')
    with pytest.raises(WeightsError, match="leads out of its folder"):
        registry.pull("demo", consent=YES, policy=fast)
    assert registry.pulled("demo") is None and not list(registry.home().rglob("escaped.bin"))


# Licences ---------------------------------------------------------------------------------------------------


def test_a_licence_that_nobody_accepted_stops_the_pull(demo, server) -> None:
    with pytest.raises(WeightsError, match="--accept-license") as caught:
        registry.pull("demo", consent=Consent())
    assert "CreativeML OpenRAIL-M (https://" in one_line(caught)
    questions: list[str] = []

    def no(question: str) -> str:
        questions.append(question)
        return "n\n"

    with pytest.raises(WeightsError, match="not accepted"):
        registry.pull("demo", consent=Consent(ask=no))
    assert "OpenRAIL-M" in questions[0] and server.requests == []
    registry.pull("demo", consent=Consent(ask=lambda question: "Yes\n"))
    # What was accepted is not asked again.
    registry.pull("demo", consent=Consent(), again=True)


def test_permissive_licences_are_shown_not_asked(server, use_manifest, blob, capsys) -> None:
    use_manifest(ENTRY.format(sha256="", url=server.url, licence="mit"))
    server.add("/demo.bin", blob)
    registry.pull("demo", consent=Consent())
    assert "demo: licence MIT" in capsys.readouterr().err


# Offline and by hand ----------------------------------------------------------------------------------------


def test_offline_is_one_line_that_says_what_to_do(demo, server, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set") as caught:
        registry.pull("demo", consent=YES)
    text = one_line(caught)
    assert f"{server.url}/demo.bin" in text and "--from FILE" in text
    assert str(registry.root_of("demo")) in text and server.requests == []


def test_an_unreachable_server_is_one_line_that_says_what_to_do(use_manifest, fast) -> None:
    use_manifest(ENTRY.format(sha256="", url="http://127.0.0.1:9", licence="mit"))
    with pytest.raises(WeightsError, match="by hand") as caught:
        registry.pull("demo", consent=YES, policy=fast)
    assert "--from FILE" in one_line(caught) and "http://127.0.0.1:9/demo.bin" in one_line(caught)


@pytest.mark.parametrize("name", ["demo.bin", "demo (1).bin"])
def test_a_file_from_a_persons_hand_is_taken(demo, blob, tmp_path, name, monkeypatch, server) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / name
    file.write_bytes(blob)
    assert registry.take("demo", [file]).state == "pulled"
    assert resolve("testing", "demo")[0].read_bytes() == blob
    assert file.exists() and server.requests == []
    assert registry.pull("demo", consent=Consent()).state == "there already"


def test_a_wrong_file_from_a_persons_hand_is_refused_by_name(demo, blob, tmp_path) -> None:
    wrong = tmp_path / "demo.bin"
    wrong.write_bytes(blob[:-1] + b"!")
    with pytest.raises(WeightsError, match=r"demo\.bin has the SHA-256 .* not taken for demo") as caught:
        registry.take("demo", [wrong])
    one_line(caught)
    foreign = tmp_path / "holiday.jpg"
    foreign.write_bytes(b"\xff\xd8")
    with pytest.raises(WeightsError, match=r"holiday\.jpg: not one of the files of demo; it needs demo\.bin"):
        registry.take("demo", [foreign])
    with pytest.raises(InputError, match="no such file"):
        registry.take("demo", [tmp_path / "nothing.bin"])
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(InputError, match=r"text_encoder/config\.json or unet/config\.json"):
        registry.take("sd21", [config])
    with pytest.raises(WeightsError, match="none of the files of demo"):
        registry.take("demo", [tmp_path.joinpath("empty").mkdir() or tmp_path / "empty"])
    assert registry.pulled("demo") is None


def test_files_come_one_by_one_and_the_rest_from_the_server(server, use_manifest, blob, tmp_path) -> None:
    text = ENTRY.format(sha256="", url=server.url, licence="mit")
    more = f'{{ path = "demo.bin", url = "{server.url}/demo.bin" }}, {{ path = "b/two.bin", url = "{server.url}/two" }}'
    use_manifest(text[: text.index("files =")] + f"files = [{more}]\n")
    server.add("/two", b"two")
    given = tmp_path / "demo.bin"
    given.write_bytes(blob)
    outcome = registry.take("demo", [given])
    assert outcome.state == "incomplete" and "b/two.bin" in outcome.message
    assert registry.pulled("demo") is None and registry.states(["demo"]) == {"demo": "incomplete"}
    registry.pull("demo", consent=YES)
    assert [path for _, path, _ in server.requests] == ["/two"]
    record = registry.pulled("demo")
    assert record is not None and set(record.files) == {"demo.bin", "b/two.bin"}
    folder = tmp_path / "folder"
    (folder / "deep" / "b").mkdir(parents=True)
    (folder / "deep" / "demo.bin").write_bytes(blob)
    (folder / "deep" / "b" / "two.bin").write_bytes(b"two")
    registry.remove("demo")
    assert registry.take("demo", [folder]).state == "pulled"


def test_a_foreign_network_is_refused_by_name(tmp_path) -> None:
    import torch

    file = tmp_path / "triplane_turbo_sd_v1.pth"
    torch.save({"state_dict": {"cls_token": torch.zeros(1, 1, 384)}}, file)
    with pytest.raises(
        WeightsError, match=r"triplane_turbo_sd_v1\.pth: this is not a TriplaneTurbo"
    ) as caught:
        registry.take("triplaneturbo", [file])
    one_line(caught)
    with pytest.raises(WeightsError, match=r"no direct link.*stage1_main\.ckpt, stage2_main\.ckpt"):
        registry.pull("sim2real", consent=YES)


# The rest ---------------------------------------------------------------------------------------------------


def test_removing_gives_the_space_back(demo, blob) -> None:
    registry.pull("demo", consent=YES)
    assert "1.5 MB freed" in registry.remove("demo").message
    assert not registry.folder_of("demo").exists()
    with pytest.raises(WeightsError, match="not here"):
        registry.remove("demo")


def test_a_folder_without_permission_is_one_line(demo, monkeypatch, complaints_as_nobody) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        home = Path(name) / "home"
        home.mkdir(mode=0o555)
        monkeypatch.setenv("VISION3D_HOME", str(home))
        assert "demo" in manifest().checkpoints  # is read while it may be
        (said,) = complaints_as_nobody([lambda: registry.pull("demo", consent=YES)])
        assert "no permission" in said and str(home) in said and "\n" not in said


def test_the_embedded_weights_and_paths_still_resolve(tmp_path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"x")
    assert resolve("primedepth", file) == (file, "mine.safetensors")
    with pytest.raises(WeightsError, match="no such weights"):
        resolve("primedepth", "nowhere.ckpt")
    assert resolve("primedepth") == resolve("primedepth", "mini")
    assert resolve("primedepth") == (MINI / "primedepth", "vision3d mini (primedepth)")


def test_two_processes_do_not_pull_into_each_other(demo, server, blob) -> None:
    from concurrent.futures import ThreadPoolExecutor

    demo.rate = 3e6
    with ThreadPoolExecutor(4) as pool:
        states = [o.state for o in pool.map(lambda _: registry.pull("demo", consent=YES), range(4))]
    assert sorted(states) == ["pulled", *["there already"] * 3]
    assert len(server.requests) == 1
    assert Path(resolve("testing", "demo")[0]).read_bytes() == blob
