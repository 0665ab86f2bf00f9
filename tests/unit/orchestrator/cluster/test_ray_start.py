"""Ray that does not start, and what a run waits for: the parts that need no Ray."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
import ray

from datasets.errors import InputError
from orchestrator.cluster import network, session, start
from orchestrator.cluster.waiting import Wanted, knock
from orchestrator.commands import doctor


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("localhost", "no port"),
        ("10.0.0.1", "no port"),
        (":6379", "no port"),
        ("http://10.0.0.1:8265", "web address"),
        ("https://head:8265/", "web address"),
        ("127.0.0.1:x", "'x' is no port"),
        ("127.0.0.1:0", "is no port"),
        ("127.0.0.1:99999", "is no port"),
        ("127.0.0.1:٣", "is no port"),
        ("127.0.0.1:1", "no Ray answers"),
        ("[::1]:1", "no Ray answers"),
        ("no-such-host.invalid:6379", "no Ray answers"),
        ("a..b:6379", "no Ray answers"),
    ],
)
def test_an_address_where_no_ray_can_be_is_refused_at_once(address, said, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=said) as refusal:
        session.connect(1)
    assert address in str(refusal.value) and "10.0.0.1:6379" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_web_server_is_not_taken_for_ray(monkeypatch):
    with socket.create_server(("", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(InputError, match="not Ray's GCS"):
            start.check_address(f"127.0.0.1:{server.getsockname()[1]}")


RAISED = [Exception("slow"), OSError("full"), ValueError("odd"), RuntimeError(""), ConnectionError("gone"), TimeoutError()]


@pytest.mark.parametrize("error", RAISED)
def test_whatever_ray_raises_is_one_sentence_after_a_second_try(error, monkeypatch, said):
    tried = []

    def init(**options):
        tried.append(options)
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="a local Ray does not start") as refusal:
        session.connect(1)
    assert len(tried) == 2 and "\n" not in str(refusal.value)
    assert said[0] == "starting Ray …" and "trying once more" in said[1]
    assert all(options["_node_ip_address"] == options["dashboard_host"] == "127.0.0.1" for options in tried)


def test_the_folder_is_short_where_tmpdir_is_long(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert start.short_folder() is None
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    folder = start.short_folder()
    assert folder is not None and len(os.fsencode(f"{folder}{start.SESSION}")) <= 107
    found = folder.parent.stat()
    assert stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.getuid()


def test_a_folder_that_others_can_enter_or_swap_is_not_used(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    assert not any(start._own(tmp_path / name) for name in ("open", "link", "file", "none/below"))
    assert start._own(tmp_path / "new")


def test_the_token_is_for_its_user_alone(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o022)
    try:
        start.keep_token()
    finally:
        os.umask(before)
    file = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(file.read_text()) == 64
    token = file.read_text()
    start.keep_token()
    assert file.read_text() == token and [path.name for path in file.parent.iterdir()] == ["auth_token"]
    assert str(file) in doctor._token()
    file.chmod(0o644)
    with pytest.raises(doctor.Doubt, match="chmod 600"):
        doctor._token()


def test_the_last_error_of_rays_log_is_told(tmp_path):
    (tmp_path / "raylet.out").write_text(
        "[2026-11-27 20:46:27,402 I 17109 17109] (raylet) main.cc:5: fine\n"
        "[2026-11-27 20:46:28,402 E 17109 17109] (raylet) store_runner.cc:31: no room for the object store.\n"
        "[2026-11-27 20:46:28,502 I 17109 17109] (raylet) main.cc:9: bye\n"
    )
    assert start.last_error(tmp_path) == f" Ray's log says: no room for the object store ({tmp_path / 'raylet.out'})."
    assert start.last_error(tmp_path / "none") == ""


def test_gloo_has_an_interface(monkeypatch):
    assert network.interface_of("127.0.0.1").startswith("lo") and network.interface_of("203.0.113.9") == ""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such0")
    with pytest.raises(InputError, match="no-such0 is no interface"):
        doctor._network()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", network.interface_of("127.0.0.1"))
    assert "GLOO_SOCKET_IFNAME" in doctor._network()
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "means loopback" in doctor._network() and "NCCL_SOCKET_IFNAME" in doctor._network()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(doctor.Doubt, match="GLOO_SOCKET_IFNAME="):
        doctor._network()


def test_what_is_wanted_fits_or_not():
    nodes = [{"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert Wanted("x", 3, 1.0).fits(nodes) and not Wanted("x", 4, 1.0).fits(nodes)
    assert Wanted("x", 1, 2.0).fits(nodes) and not Wanted("x", 2, 1.5).fits(nodes), "no process is spread over two nodes"
    assert Wanted("x", 2, 1.0, more_cpus=1.0).fits(nodes) and not Wanted("x", 3, 1.0, more_cpus=1.0).fits(nodes)
    assert Wanted("x", 1, 1.0, 1.0).fits(nodes) and not Wanted("x", 1, 2.0, 1.0).fits(nodes)
    assert Wanted("x", 20, 0.1).fits(nodes) and not Wanted("x").fits([])
    assert str(Wanted("pretrain mmcl-0", 2, 4.0, 0.5)) == "pretrain mmcl-0 needs 2 times 4 CPUs and 0.5 GPUs"
    assert str(Wanted("a trial")) == "a trial needs 1 CPU"


def test_knock():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert knock("127.0.0.1", port) == ""
    assert knock("127.0.0.1", port) == "refused"


def test_scratch_of_killed_runs_goes(tmp_path: Path):
    (tmp_path / "ray" / "pretrain-0123-5").mkdir(parents=True)
    (tmp_path / "ray" / "pretrain-4567-5").mkdir()
    name = session.scratch(tmp_path, "pretrain-0123")
    (tmp_path / "ray" / name).mkdir()
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == [name, "pretrain-4567-5"]
    session.shutdown()
    assert [path.name for path in (tmp_path / "ray").iterdir()] == ["pretrain-4567-5"]
