"""``cocu doctor``: what it says of machines and configurations."""

from __future__ import annotations

import re

import pytest
import yaml

from cocu.__main__ import main
from curation.base import memory
from curation.base.downloads import missing_weights, require_weights, unreachable
from curation.base.errors import CocuError
from curation.config import load
from pipelines.doctor import needs
from pipelines.doctor.finding import GIB, NOTE, OK, WRONG
from pipelines.doctor.machine import Machine
from pipelines.doctor.needs import need_findings, parameters


def states(config, machine, output) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.state, finding.text) for finding in need_findings(config, machine, str(output))}


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/job", {"/sys/fs/cgroup/job/memory.max": "1000\n"}, 1000),
        ("0::/job", {"/sys/fs/cgroup/job/memory.max": "max\n", "/sys/fs/cgroup/memory.max": "2000"}, 2000),
        ("5:memory:/a/b\n0::/", {"/sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000"}, 3000),
        ("0::/", {"/sys/fs/cgroup/memory.max": str(1 << 50)}, 1 << 40),
        ("", {}, 1 << 40),
    ],
)
def test_memory_is_the_least_limit_of_the_control_groups(membership, files, limit):
    assert memory.limited(1 << 40, membership, files.get) == limit


def test_a_machine_gets_its_lines_and_missing_extras_their_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for what in ("cores", "memory", "GPU", "disk", "TMPDIR", "versions"):
        assert re.search(rf"^  (ok|note) +{what} ", out, re.MULTILINE), out
    for line in out.splitlines():
        if "extra " in line and line.strip().startswith("note"):
            assert re.search(r"pip install 'cocu\[\w+\]'$", line)


def test_a_configuration_that_works_is_ok(world, tmp_path, capsys):
    assert main(["doctor", str(world), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "3 shards, about 75 samples" in out and "wrong" not in out  # 72, and three that are unusable
    assert "Flat for 75 embeddings of 32 dimensions" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "what", "message"),
    [
        ({"shards": "nowhere/*.tar"}, "data", "matches no file"),
        ({"vocabulary": {"source": "nowhere.txt"}}, "settings", "nowhere.txt"),
        ({"encoder": {"model": "local-dir:/nowhere"}}, "settings", "/nowhere is not a folder"),
        ({"retrieval": {"memory": "1"}}, "index", "retrieval.memory: 75 vectors of 32 dimensions need"),
    ],
)
def test_what_is_wrong_is_said_with_code_1(changes, what, message, world, tmp_path, capsys):
    values = yaml.safe_load(world.read_text())
    values["shards"] = str(world.parent / values["shards"])
    values["vocabulary"]["source"] = str(world.parent / "concepts.txt")
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    assert main(["doctor", str(path), "-o", str(tmp_path / "out")]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("wrong")]
    assert line.split()[1] == what and message in line


def test_machines_that_are_too_small_are_told_so(world, tmp_path, monkeypatch):
    config = load(str(world))
    monkeypatch.setattr(needs, "estimated_rows", lambda paths: 150_000)
    found = states(config, Machine(8, 64 * GIB, ()), tmp_path / "out")
    assert found["index"] == (
        OK,
        "Flat for 150,000 embeddings of 32 dimensions: 55 MiB",
    )  # 4 x 150,000 x 32, three times
    assert found["memory"][0] == OK
    assert states(config, Machine(8, 4 * GIB, ()), tmp_path / "out")["memory"][0] == NOTE
    assert "--workers 5" in states(config, Machine(8, 4 * GIB, ()), tmp_path / "out")["memory"][1]
    assert states(config, Machine(8, GIB // 2, ()), tmp_path / "out")["memory"][0] == WRONG
    assert states(config, Machine(8, 30 << 20, ()), tmp_path / "out")["index"][0] == WRONG
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100 << 20}))
    assert states(config, Machine(8, 64 * GIB, ()), tmp_path / "out")["disk"][0] == WRONG


def test_weights_of_a_model_are_counted_by_its_layers():
    import open_clip

    real = sum(value.numel() for value in open_clip.create_model("ViT-B-32").parameters())
    assert parameters(open_clip.get_model_config("ViT-B-32")) == pytest.approx(real, rel=0.1)
    assert parameters(open_clip.get_model_config("ViT-L-14")) > 2 * parameters(open_clip.get_model_config("ViT-B-16"))


# --- weights that have to be downloaded ---------------------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A hub without a cache, whose server refuses connections."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def test_weights_that_are_not_here_and_cannot_be_had_are_one_whole_line(no_cache, monkeypatch):
    address = missing_weights("ViT-B-16", "openai")
    assert address is not None and address.startswith("https://huggingface.co/timm/vit_base_patch16_clip_224.openai/")
    monkeypatch.setattr("curation.base.downloads.missing_weights", lambda *names: "http://127.0.0.1:9/x/open_clip.bin")
    with pytest.raises(CocuError) as raised:
        require_weights("encoder", "ViT-B-16", "openai", "name a file that is here")
    message = str(raised.value)
    assert message.startswith("encoder: the weights of ViT-B-16/openai are not here, and 127.0.0.1:9 cannot be reached")
    assert message.endswith("or name a file that is here")


def test_a_server_that_answers_in_any_way_is_reachable(no_cache):
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 for everything
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert unreachable(f"http://127.0.0.1:{server.server_port}/x") is None
    finally:
        server.shutdown()


def test_offline_is_known_without_asking_anybody(no_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert unreachable("https://huggingface.co/x") == "HF_HUB_OFFLINE is set"


def test_what_is_here_is_not_downloaded(no_cache, tiny_clip, tmp_path):
    assert missing_weights(f"local-dir:{tiny_clip}", None) is None
    (tmp_path / "weights.pt").touch()
    assert missing_weights("ViT-B-16", str(tmp_path / "weights.pt")) is None
    assert (
        missing_weights("hf-hub:org/name", None)
        == "https://huggingface.co/org/name/resolve/main/open_clip_model.safetensors"
    )
