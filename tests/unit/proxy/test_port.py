"""The agent's port: held by sockets that never listen, shared among our own."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from proxy import port as module
from proxy.port import Port, PortError


@pytest.fixture
def port() -> Iterator[Port]:
    with contextlib.closing(Port()) as port:
        yield port


def connect(host: str, number: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        return client.connect_ex((host, number))


def test_every_group_listens_on_every_address_and_a_port_that_is_only_held_refuses(port: Port) -> None:
    assert [host for host, _ in port.addresses] == ["127.0.0.1", "::1"]
    groups = port.listen(2)
    assert [[listener.getsockname()[:2] for listener in listeners] for listeners in groups] == [port.addresses] * 2
    assert connect("127.0.0.1", port.number) == 0
    for listener in (listener for listeners in groups for listener in listeners):
        listener.close()
    assert connect("127.0.0.1", port.number) == errno.ECONNREFUSED


def test_a_port_is_never_one_that_somebody_shares_already() -> None:
    """A socket of our own user with SO_REUSEPORT would get a share of the connections."""
    with socket.socket(socket.AF_INET6) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(("::1", 0))
        number = shared.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            module._bound("::1", number, joins=False)
        module._bound("::1", number, joins=True).close()


def test_the_port_of_another_is_kept_until_the_end(port: Port) -> None:
    other = Port()
    port.also_hold([*other.addresses, ("192.0.2.77", other.number)])  # an address that is gone is no obstacle
    other.close()
    with socket.socket() as stranger:
        assert _bind(stranger, other.number) == errno.EADDRINUSE
        port.close()
        assert _bind(stranger, other.number) == 0


def _bind(sock: socket.socket, number: int) -> int:
    try:
        sock.bind(("127.0.0.1", number))
    except OSError as error:
        return error.errno or -1
    return 0


def test_an_address_that_is_not_ours_is_an_error_that_names_it() -> None:
    with pytest.raises(PortError, match=r"cannot listen on 192\.0\.2\.77: Cannot assign"):
        Port([ip_address("192.0.2.77")])
