"""Two and three hosts, each a network namespace with a node of one Ray cluster; a host is lost, or its link goes down or becomes slow.
Needs root.

The hosts share this machine's disks, processors and clock; only the network between them is real enough to be cut.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.chaos.here import SWEEP
from tests.chaos.kill import DATA, POLL_S, ROOT, Kill
from tests.chaos.tried import Tried, log_uniform
from tests.experiments import furnish

WAYS = (
    "host lost in pre-training", "host lost in the trials", "link down and up in mid-epoch", "head lost in pre-training",
    "head lost in the trials", "link slow for a while", "link slow to the end",
)  # fmt: skip
BRIDGE, NET, PORT = "cschaos", "10.213.77", 6379
SAYS = ("is lost", "does not answer", "needs")
"""Words by which a command says what it waits for."""
SAID_S = 30.0
SLOW = (("netem", "delay", "200ms", "rate", "10mbit"), ("tbf", "rate", "10mbit", "burst", "32kb", "latency", "400ms"))
"""What makes a link slow, for tc: the first that the kernel has."""
SLOW_S = 20.0
"""Seconds for which a link is slow at most, where it becomes fast again."""
UP_S = 120.0
LIFE_S = {"ray::RayTrainWorker": 20.0, "ray::ImplicitFunc": 10.0}


class Hosts:
    name = "hosts"
    about = "a host of a Ray cluster, or its head, lost in pre-training or in the trials, or a link down or slow; needs network namespaces"

    def prepare(self, folder: Path) -> str:
        try:
            sh("ip", "netns", "add", f"{BRIDGE}-probe")
            sh("ip", "netns", "del", f"{BRIDGE}-probe")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            return f"no network namespace can be made here ({said.decode(errors='replace').strip()})"
        self.folder, self.alone = folder, Kill.of(folder)
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        way, count = WAYS[number % len(WAYS)], 2 + number // len(WAYS) % 2
        store = self.folder / f"hosts-{number}"
        store.mkdir()
        furnish(store, self.alone.store, *DATA, *(("poison", "cleanset", "pretrain") if "trials" in way else ()))
        try:
            with cluster(count, self.folder, head_cpus=0 if "trials" in way else 1) as hosts:  # so that a trial is on another
                return self.cut(store, hosts, way, draw)
        finally:
            shutil.rmtree(store, ignore_errors=True)

    def cut(self, store: Path, hosts: list[Host], way: str, draw: np.random.Generator) -> Tried:
        said = self.folder / f"{store.name}.said"
        process = command(hosts[0], store, said)
        what, commands = f"{len(hosts)} hosts: {way}", 1
        wrong: list[str] = []
        host = None
        try:
            host = self.strike(process, hosts, way, draw)
            if host is not None and "head" in way:
                what += f", the others ended {again(hosts):.0f} s later"
            elif host is not None and "slow" in way:
                what += f" ({host.slowed}), " + self.follow(process, store, said, host, way, draw, wrong)
            elif host is not None:
                spoke = heard(process, said)
                what += ", " + (f"said after {spoke:.0f} s" if spoke >= 0 else "it ended before it said anything")
                if spoke > SAID_S:
                    wrong.append(f"for {SAID_S:.0f} s nothing says what is waited for")
                host.up()
            while process.wait(600) and commands < 5:
                if "Traceback (most recent" in said.read_text():
                    wrong.append(f"prints a traceback: {said.read_text()[-1500:]}")
                what += f"; code {process.returncode}: {said.read_text().strip()[-200:]}"
                for one in hosts[1:]:
                    one.up()
                process, commands = command(hosts[0], store, said), commands + 1
        except subprocess.TimeoutExpired:
            wrong.append(f"hangs: {said.read_text()[-500:]}")
        finally:
            process.kill()
        if process.wait():
            wrong.append(f"the same command ends with code {process.returncode}: {said.read_text()[-500:]}")
        return Tried(what, host is not None, wrong or self.alone.compare(store), commands)

    def strike(self, process: subprocess.Popen[bytes], hosts: list[Host], way: str, draw: np.random.Generator) -> Host | None:
        """Wait until one of the hosts works for the command, then for a random time, and lose it or cut its link; None where it came too
        late."""
        victim = "ray::ImplicitFunc" if "trials" in way else "ray::RayTrainWorker"
        while (host := next((one for one in hosts[1:] if one.runs(victim)), None)) is None:
            if process.poll() is not None:
                return None
            time.sleep(POLL_S)
        time.sleep(log_uniform(draw, 0.05, LIFE_S[victim]))
        if not host.runs(victim):
            return None
        if "slow" in way:
            host.slow()
        elif "link" in way:
            host.link("down")
        else:
            host = hosts[0] if "head" in way else host
            host.kill()
        return host

    def follow(
        self, process: subprocess.Popen[bytes], store: Path, said: Path, host: Host, way: str, draw: np.random.Generator, wrong: list[str]
    ) -> str:
        """While the link is slow: for how long at most neither the store nor what is said changes; that may not be long in silence."""
        began = since = time.monotonic()
        until = began + (draw.uniform(2.0, SLOW_S) if "while" in way else float("inf"))
        longest, before = 0.0, None
        while process.poll() is None and time.monotonic() - began < 600:
            now = (said.stat().st_size, sorted((str(path), path.stat().st_mtime_ns) for path in store.glob("*/.work-*/*")))
            if now != before:
                since, before = time.monotonic(), now
            longest = max(longest, time.monotonic() - since)
            if time.monotonic() > until:
                host.fast()
                return f"for {until - began:.0f} s, the longest silence {longest:.0f} s"
            time.sleep(0.2)
        if longest > SAID_S and not any(words in said.read_text(errors="replace") for words in SAYS):
            wrong.append(f"for {longest:.0f} s nothing is made, and nothing says what is waited for")
        return f"for {time.monotonic() - began:.0f} s, the longest silence {longest:.0f} s"


class Host:
    """A namespace with an address of its own and a node of the cluster."""

    def __init__(self, number: int, folder: Path, cpus: int) -> None:
        self.name, self.address, self.folder = f"{BRIDGE}{number}", f"{NET}.{number + 1}", folder
        self.head, self.cpus, self.log = number == 0, cpus, folder / f"{self.name}.log"
        self.node: subprocess.Popen[bytes] | None = None
        self.slowed = ""
        for left in (("netns", "del", self.name), ("link", "del", f"{self.name}v")):  # of a try that was broken off
            subprocess.run(["ip", *left], capture_output=True)
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", f"{self.name}v", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "link", "set", f"{self.name}v", "master", BRIDGE, "up")
        sh("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        self.link("up")
        sh("ip", "-n", self.name, "link", "set", "lo", "up")

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "CLEANSWEEP_LEDGER": "1"}
        return {**clean, **own, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.folder / "t")}

    def link(self, state: str) -> None:
        sh("ip", "-n", self.name, "link", "set", "eth0", state)

    def slow(self) -> None:
        """Make its link slow in both directions."""
        for words in SLOW:
            try:
                for inside, device in ((("-n", self.name), "eth0"), ((), f"{self.name}v")):
                    sh("tc", *inside, "qdisc", "replace", "dev", device, "root", *words)
                self.slowed = " ".join(words)
                return
            except subprocess.CalledProcessError as error:
                missing = error
        raise missing

    def fast(self) -> None:
        for inside, device in ((("-n", self.name), "eth0"), ((), f"{self.name}v")):
            sh("tc", *inside, "qdisc", "del", "dev", device, "root")

    def start(self) -> None:
        """Start the node, which ends with the cluster or when it is cut off for long."""
        ray = str(Path(sys.executable).with_name("ray"))
        role = ["--head", f"--port={PORT}", "--include-dashboard=true"] if self.head else [f"--address={NET}.1:{PORT}"]
        size = [f"--num-cpus={self.cpus}", "--object-store-memory=200000000"]
        words = [ray, "start", *role, f"--node-ip-address={self.address}", *size, "--block"]
        with self.log.open("ab") as log:
            self.node = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words], env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def up(self) -> None:
        """Bring the link up, and start the node where it has ended, as whoever runs the host would."""
        self.link("up")
        if self.node is None or self.node.poll() is not None:
            self.kill()
            self.start()

    def pids(self) -> list[int]:
        return [int(word) for word in sh("ip", "netns", "pids", self.name).split()]

    def runs(self, name: str) -> bool:
        """Whether a process of this name is in the namespace."""
        for pid in self.pids():
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name.encode()):
                    return True
            except OSError:
                continue
        return False

    def kill(self) -> None:
        """End every process of the namespace at once."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.node is not None:
            self.node.wait()


def command(host: Host, store: Path, said: Path) -> subprocess.Popen[bytes]:
    """Give the command on the host, for two workers that need a host each."""
    words = [sys.executable, "-m", "orchestrator", "run", SWEEP, "--store", str(store), "--workers", "2", "--cpus-per-worker", "0.75"]
    environment = {**host.environment(), "RAY_ADDRESS": f"{NET}.1:{PORT}"}
    with said.open("wb") as out:
        return subprocess.Popen(
            ["ip", "netns", "exec", host.name, *words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


def heard(process: subprocess.Popen[bytes], said: Path) -> float:
    """Seconds until the command says what it waits for; -1 where it ends without."""
    began = time.monotonic()
    while time.monotonic() - began < 2 * SAID_S:
        if any(words in said.read_text(errors="replace") for words in SAYS):
            return time.monotonic() - began
        if process.poll() is not None:
            return -1.0
        time.sleep(0.2)
    return time.monotonic() - began


@contextmanager
def cluster(count: int, folder: Path, head_cpus: int) -> Iterator[list[Host]]:
    """Hosts on one bridge with a Ray cluster, the head on the first."""
    hosts: list[Host] = []
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    try:
        sh("ip", "link", "set", BRIDGE, "up")
        for number in range(count):
            hosts.append(Host(number, folder, 1 if number else head_cpus))
        begin(hosts)
        yield hosts
    finally:
        for host in reversed(hosts):
            host.kill()
            sh("ip", "netns", "del", host.name)
        sh("ip", "link", "del", BRIDGE)


def begin(hosts: list[Host]) -> None:
    """Start the nodes, the head's first, and wait until all run."""
    for host in hosts:
        host.log.unlink(missing_ok=True)
    hosts[0].start()
    began = time.monotonic()
    for host in hosts[1:]:
        while not _listens(hosts[0]) and time.monotonic() - began < UP_S:
            time.sleep(0.5)
        host.start()
    while not all("Ray runtime started" in host.log.read_text(errors="replace") for host in hosts):
        assert time.monotonic() - began < UP_S, "the cluster does not start"
        time.sleep(0.5)


def again(hosts: list[Host]) -> float:
    """After the head was lost: wait until the nodes of the others have ended by themselves, and start all; returns after how long the last
    had."""
    began = time.monotonic()
    while any(host.node is not None and host.node.poll() is None for host in hosts[1:]) and time.monotonic() - began < UP_S:
        time.sleep(0.5)
    took = time.monotonic() - began
    for host in hosts:
        host.kill()
    begin(hosts)
    return took


def _listens(host: Host) -> bool:
    return f":{PORT} " in sh("ip", "netns", "exec", host.name, "ss", "-ltn")


def sh(*words: str) -> str:
    """What a command prints; CalledProcessError where it fails."""
    return subprocess.run(words, check=True, capture_output=True).stdout.decode()
