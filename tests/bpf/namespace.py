"""A network namespace of its own for clients and servers, as containers have it."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
HOST4, CLIENT4, HOST6, CLIENT6 = "10.231.7.1", "10.231.7.2", "fd00:231:7::1", "fd00:231:7::2"

T = TypeVar("T")


class Namespace:
    """A network namespace with one link to ours."""

    def __init__(self) -> None:
        self.name, self.link = f"rig{os.getpid()}", f"rig{os.getpid() % 100000}"

    def open(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        for inside, device, *addresses in ((False, self.link, HOST4, HOST6), (True, "eth0", CLIENT4, CLIENT6)):
            where = ["-n", self.name] if inside else []
            ip(*where, "addr", "add", f"{addresses[0]}/30", "dev", device)
            ip(*where, "addr", "add", f"{addresses[1]}/64", "dev", device, "nodad")
            ip(*where, "link", "set", device, "up")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "route", "add", "default", "via", HOST4)
        ip("-n", self.name, "-6", "route", "add", "default", "via", HOST6)

    def close(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False)
        subprocess.run(["ip", "link", "del", self.link], check=False, stderr=subprocess.DEVNULL)

    def run(self, work: Callable[[], T]) -> T:
        """``work`` in a thread that is in the namespace; its sockets stay there."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with open(Path("/run/netns", self.name)) as namespace:
                    assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
