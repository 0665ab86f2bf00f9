"""Chooses the network interface that the processes of a pre-training use.

gloo uses the address that the host's name resolves to. If that is loopback (Debian writes 127.0.1.1 into /etc/hosts), the processes of each
node would connect to that node itself, so GLOO_SOCKET_IFNAME names the interface instead.
"""

import ipaddress
import os
import socket
from typing import Any

import psutil

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def name_is_loopback() -> bool:
    """Whether the host's name resolves to nothing but this machine's loopback, or not at all."""
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return True
    return all(_loopback(str(address)) for address in addresses)


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def interface_of(address: str) -> str:
    """The name of the interface with this address; empty if there is none."""
    return next((name for name, entries in psutil.net_if_addrs().items() if any(entry.address == address for entry in entries)), "")


def outward_address() -> str:
    """This machine's address as others see it; empty without a network. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation (RFC 5737)
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def choose_interface() -> None:
    """In a worker of Ray Train, before gloo starts: choose the interface of the node's own address if the host's name leads elsewhere.

    If Ray listens on loopback alone, workers do so too. A setting of the user's is kept.
    """
    from ray.util import get_node_ip_address

    address = get_node_ip_address()
    name = interface_of(address)
    if name and (_loopback(address) or name_is_loopback()):
        os.environ.setdefault(GLOO, name)


def torch_config() -> Any:
    """Ray Train's `TorchConfig`, whose workers choose their interface first."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(choose_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return Config()
