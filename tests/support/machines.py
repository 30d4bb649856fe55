"""Machines on a network, each a network namespace with a hostname of its own.

They last as long as their threads, processes and connections. The host's network is not touched,
so nothing stays of them, however a test ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_NAMESPACES = 0x40000000 | 0x04000000  # CLONE_NEWNET, CLONE_NEWUTS

_T = TypeVar("_T")


class NotPermittedError(Exception):
    """There can be no such machines here."""


class Machine:
    """A thread in namespaces of its own: what it connects to, and the processes that it starts,
    are on that machine.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1)
        try:
            self.network = self.call(self._enter)
        except BaseException:
            self.close()
            raise

    def _enter(self) -> str:
        libc, name = ctypes.CDLL(None, use_errno=True), self.name.encode()
        if libc.unshare(_NAMESPACES) or libc.sethostname(name, len(name)):
            raise NotPermittedError(f"no namespaces: {os.strerror(ctypes.get_errno())}")
        _ip("link set lo up")
        return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"

    def call(self, function: Callable[[], _T]) -> _T:
        """Have it done on that machine."""
        return self._thread.submit(function).result()

    def ip(self, *commands: str) -> None:
        """Configure its network."""
        for command in commands:
            self._thread.submit(_ip, command).result()

    def close(self) -> None:
        self._thread.shutdown()


class Network:
    """A server's machine with a switch, and others that are plugged into that."""

    def __init__(self) -> None:
        self.address = "10.99.0.1"
        self.server = Machine("server")
        self._machines = [self.server]
        try:
            self.server.ip(
                "link add switch type bridge",
                f"addr add {self.address}/24 dev switch",
                "link set switch up",
            )
        except BaseException:
            self.close()
            raise

    def machine(self) -> Machine:
        """Another machine, plugged in."""
        number = len(self._machines)
        machine = Machine(f"machine-{number}")
        self._machines.append(machine)
        self.server.ip(
            f"link add port{number} type veth peer name eth0 netns {machine.network}",
            f"link set port{number} master switch",
        )
        machine.ip(f"addr add 10.99.0.{number + 1}/24 dev eth0", "link set eth0 up")
        self.plug_in(machine)
        return machine

    def pull_out(self, machine: Machine) -> None:
        """From now on nothing arrives there or from there, not even that a connection ends."""
        self.server.ip(f"link set port{self._machines.index(machine)} down")

    def plug_in(self, machine: Machine) -> None:
        """Have it arrive again."""
        self.server.ip(f"link set port{self._machines.index(machine)} up")

    def close(self) -> None:
        for machine in self._machines:
            machine.close()


def _ip(arguments: str) -> None:
    command = ["ip", *arguments.split()]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotPermittedError("there is no `ip`, of the package iproute2") from error
    except subprocess.CalledProcessError as error:
        raise NotPermittedError(f"ip {arguments}: {error.stderr.strip()}") from error
