"""A datagram is judged as it leaves, whatever connect() or sendto() were told before, and once more where only then it is known
who hears it. The senders are processes without rights in cgroups of their own."""

import contextlib
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from policies.compile import AddressEntry
from tests.bpf.namespace import CLIENT4, HOST4, HOST6, Namespace, ip
from tests.bpf.rig import CLIENT, NATIVE, OTHER, PATIENCE, REFUSE, SERVER, UDP, UNRESOLVED, WORLD, Cgroup, Rig, free, rule
from tests.harness import free_port

DGRAM = socket.SOCK_DGRAM
GROUP4, GROUP6 = "239.255.7.7", "ff02::7:7"
IP_PKTINFO, IP_UNICAST_IF, UDP_SEGMENT = 8, 50, 103
V4, V6, MAPPED = ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")
FORMS = pytest.mark.parametrize(("listen", "dial"), [V4, V6, MAPPED], ids=["v4", "v6", "mapped"])


def family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def silent(server: socket.socket) -> bool:
    """Whether nothing has come. What came over loopback is there when the sender's call has returned."""
    server.setblocking(False)
    try:
        server.recv(1)
    except BlockingIOError:
        return True
    return False


@pytest.fixture
def policed(rig: Rig) -> tuple[Rig, Cgroup, Cgroup]:
    """``web`` may write to everybody but ``dns``."""
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP), free(SERVER))
    return rig, web, dns


Policed = tuple[Rig, Cgroup, Cgroup]


# When it is judged.


@FORMS
def test_a_server_that_comes_up_between_connect_and_send_hears_nothing(policed: Policed, listen: str, dial: str) -> None:
    rig, web, dns = policed
    port = free_port()
    client = rig.client(web, family(dial), DGRAM)
    web.as_nobody(lambda: client.connect((dial, port)))
    server = rig.server(dns, listen, DGRAM, port=port)
    before = rig.event("datagram_refused")
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"x"))
    assert rig.event("datagram_refused") == before + 1
    assert silent(server)


def test_a_socket_that_was_connected_before_the_hooks_is_judged_when_it_sends(rig: Rig) -> None:
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    server = rig.server(dns, kind=DGRAM)
    client = rig.connect(web, *server.getsockname(), DGRAM)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"x"))


def test_a_new_policy_reaches_a_connected_socket(rig: Rig) -> None:
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT))
    server = rig.server(dns, kind=DGRAM)
    client = rig.connect(web, *server.getsockname(), DGRAM)
    client.send(b"1")
    rig.install(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"2"))
    rig.install(free(CLIENT))
    client.send(b"3")
    assert server.recv(10) + server.recv(10) == b"13"


def test_a_new_policy_may_say_anew_whose_a_connected_socket_is(rig: Rig) -> None:
    web, dns = rig.cgroup("web"), rig.cgroup("dns", SERVER)
    rig.attach()
    server = rig.server(dns, kind=DGRAM)
    client = rig.connect(web, *server.getsockname(), DGRAM)
    rig.cgroup("web", CLIENT)
    rig.install(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"x"))


def test_parts_of_a_datagram_are_judged_when_it_is_whole(policed: Policed) -> None:
    """MSG_MORE: the first part says where it goes, the last one sends it."""
    rig, web, dns = policed
    port = free_port()
    client = rig.client(web, socket.AF_INET, DGRAM)
    web.as_nobody(lambda: client.sendto(b"first", socket.MSG_MORE, ("127.0.0.1", port)))
    server = rig.server(dns, kind=DGRAM, port=port)
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.sendto(b"last", ("127.0.0.1", port)))
    assert silent(server)


def test_segments_of_one_send_are_judged_together(policed: Policed) -> None:
    """UDP_SEGMENT: one send() is many datagrams."""
    rig, web, dns = policed
    port = free_port()
    client = rig.client(web, socket.AF_INET, DGRAM)
    client.setsockopt(UDP, UDP_SEGMENT, 4)
    web.as_nobody(lambda: client.connect(("127.0.0.1", port)))
    open_server = rig.server(None, kind=DGRAM, port=port)
    web.as_nobody(lambda: client.send(b"onceonce"))
    assert open_server.recv(10) + open_server.recv(10) == b"onceonce"
    open_server.close()
    server = rig.server(dns, kind=DGRAM, port=port)
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"onceonce"))
    assert silent(server)


def test_a_datagram_in_fragments_is_judged_as_a_whole(policed: Policed, namespace: Namespace) -> None:
    rig, web, dns = policed
    ip("-n", namespace.name, "link", "set", "lo", "mtu", "1500")
    port = free_port()
    client = namespace.run(lambda: rig.client(web, socket.AF_INET, DGRAM))
    web.as_nobody(lambda: client.connect(("127.0.0.1", port)))
    rig.install(free(CLIENT), rule(CLIENT, UNRESOLVED, NATIVE, transport=UDP), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    open_server = namespace.run(lambda: rig.server(None, kind=DGRAM, port=port))
    client.send(b"x" * 20_000)
    assert len(open_server.recv(30_000)) == 20_000
    open_server.close()
    server = namespace.run(lambda: rig.server(dns, kind=DGRAM, port=port))
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"x" * 20_000))
    assert silent(server)


def test_a_datagram_that_asks_to_be_sent_on_is_refused(policed: Policed) -> None:
    """IP_OPTIONS with a loose source route: what is in the header is only its first stop."""
    rig, web, _ = policed
    client = rig.client(web, socket.AF_INET, DGRAM)
    client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x83\x07\x04" + socket.inet_aton("127.0.0.1"))
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.sendto(b"x", ("127.0.0.1", rig.server(kind=DGRAM).getsockname()[1])))


# Who sends.


def test_a_connected_socket_that_is_handed_over_stays_whose_it_was_when_it_connected(rig: Rig) -> None:
    """SCM_RIGHTS: as with TCP, who was allowed to connect has lent its connection."""
    web, other, dns = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), free(OTHER), rule(OTHER, SERVER, REFUSE, transport=UDP))
    server = rig.server(dns, kind=DGRAM)
    allowed = rig.connect(web, *server.getsockname(), DGRAM)
    other.as_nobody(lambda: allowed.send(b"lent"))
    assert server.recv(10) == b"lent"

    port = free_port()
    denied = rig.connect(other, "127.0.0.1", port, DGRAM)
    late = rig.server(dns, kind=DGRAM, port=port)
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: denied.send(b"x"))
    assert silent(late)


def test_of_a_socket_without_a_connection_the_sender_of_each_datagram_is_judged(rig: Rig) -> None:
    web, other, dns = rig.cgroup("web", CLIENT), rig.cgroup("other", OTHER), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), free(OTHER), rule(OTHER, SERVER, REFUSE, transport=UDP))
    server = rig.server(dns, kind=DGRAM)
    shared = rig.client(None, socket.AF_INET, DGRAM)
    for _ in range(2):
        web.as_nobody(lambda: shared.sendto(b"web", server.getsockname()))
        with pytest.raises(PermissionError):
            other.as_nobody(lambda: shared.sendto(b"other", server.getsockname()))
        assert server.recv(10) == b"web"
    assert silent(server)


def test_in_another_namespace_a_datagram_is_judged_as_it_leaves(policed: Policed, namespace: Namespace) -> None:
    rig, web, dns = policed
    port = free_port()
    rig.install(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP), rule(CLIENT, UNRESOLVED, NATIVE, transport=UDP))
    client = namespace.run(lambda: rig.connect(web, CLIENT4, port, DGRAM))
    server = namespace.run(lambda: rig.server(dns, CLIENT4, DGRAM, port=port))
    rig.install(
        free(CLIENT),
        rule(CLIENT, SERVER, REFUSE, transport=UDP),
        addresses=[AddressEntry(ip_network(CLIENT4), UNRESOLVED, True)],
    )
    with pytest.raises(PermissionError):
        web.as_nobody(lambda: client.send(b"x"))
    assert silent(server)


# Whom it is for: the addresses that it really has.


@pytest.fixture
def card(policed: Policed, namespace: Namespace) -> tuple[Rig, Cgroup, Cgroup, str]:
    """The same, and a network card of this host with an address of its own."""
    rig, web, dns = policed
    here = [AddressEntry(ip_network(address), UNRESOLVED, True) for address in (HOST4, HOST6)]
    rig.install(free(CLIENT), rule(CLIENT, SERVER, REFUSE), rule(CLIENT, SERVER, REFUSE, transport=UDP), addresses=here)
    return rig, web, dns, namespace.link


Card = tuple[Rig, Cgroup, Cgroup, str]


def choose_by_unicast_if(client: socket.socket, link: str) -> None:
    client.setsockopt(socket.IPPROTO_IP, IP_UNICAST_IF, struct.pack("!I", socket.if_nametoindex(link)))


def choose_by_binding(client: socket.socket, link: str) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())


CHOOSE = pytest.mark.parametrize("choose", [choose_by_unicast_if, choose_by_binding])
Choose = Callable[[socket.socket, str], None]


@CHOOSE
@pytest.mark.parametrize("connected", [True, False])
def test_the_address_zero_is_loopback_whatever_network_card_is_chosen(card: Card, choose: Choose, connected: bool) -> None:
    """The kernel would read it as the card's own address."""
    rig, web, dns, link = card
    server = rig.server(dns, HOST4, DGRAM)
    client = rig.client(web, socket.AF_INET, DGRAM)
    web.as_nobody(lambda: choose(client, link))

    def send() -> None:
        if connected:
            client.connect(("0.0.0.0", server.getsockname()[1]))
            client.send(b"x")
        else:
            client.sendto(b"x", ("0.0.0.0", server.getsockname()[1]))

    with contextlib.suppress(OSError):
        web.as_nobody(send)
    assert silent(server)


def test_a_card_that_is_chosen_for_one_datagram_leads_to_no_other_address(card: Card) -> None:
    """IP_PKTINFO with a card and without an address."""
    rig, web, dns, link = card
    server = rig.server(dns, HOST4, DGRAM)
    client = rig.client(web, socket.AF_INET, DGRAM)
    info = struct.pack("I8x", socket.if_nametoindex(link))
    there = ("0.0.0.0", server.getsockname()[1])
    with contextlib.suppress(OSError):
        web.as_nobody(lambda: client.sendmsg([b"x"], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, there))
    assert silent(server)


@CHOOSE
def test_a_connection_to_the_address_zero_is_loopback_whatever_network_card_is_chosen(card: Card, choose: Choose) -> None:
    rig, web, dns, link = card
    server = rig.server(dns, HOST4)
    server.settimeout(0)
    client = rig.client(web, socket.AF_INET)
    web.as_nobody(lambda: choose(client, link))
    client.settimeout(0.2)
    with contextlib.suppress(OSError):
        web.as_nobody(lambda: client.connect(("0.0.0.0", server.getsockname()[1])))
    with pytest.raises(BlockingIOError):
        server.accept()


@pytest.mark.parametrize("dial", [HOST4, HOST6])
def test_a_server_that_is_bound_to_a_network_card_is_its_workload(card: Card, dial: str) -> None:
    """It cannot be looked up as the datagram leaves, so it is judged when it would hear."""
    rig, web, dns, link = card
    with dns.inside():
        server = rig.client(dns, family(dial), DGRAM)
    choose_by_binding(server, link)
    server.bind((dial, 0))
    client = rig.client(web, family(dial), DGRAM)
    web.as_nobody(lambda: choose_by_binding(client, link))
    with contextlib.suppress(PermissionError):
        web.as_nobody(lambda: client.sendto(b"x", server.getsockname()[:2]))
    assert silent(server)


def test_a_server_that_is_bound_to_a_network_card_hears_whom_it_may(card: Card) -> None:
    rig, _, dns, link = card
    server = rig.client(dns, socket.AF_INET6, DGRAM)
    choose_by_binding(server, link)
    server.bind((HOST6, 0))
    rig.client(None, socket.AF_INET6, DGRAM).sendto(b"x", server.getsockname()[:2])
    assert server.recv(10) == b"x"


# Who hears it.


def sharing(
    rig: Rig, owner: Cgroup | None, address: tuple[str, int], option: int, group: str = "", card: str = "lo"
) -> socket.socket:
    """A socket at an address that others may have too."""
    made = rig.client(owner, family(group or address[0]), DGRAM)
    made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.bind(address)
    index = socket.if_nametoindex(card)
    if ":" in group:
        joined = socket.inet_pton(socket.AF_INET6, group) + struct.pack("i", index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
    elif group:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4xi", socket.inet_aton(group), index))
    return made


def test_a_port_that_is_shared_with_others_is_nobodys(policed: Policed) -> None:
    """SO_REUSEPORT: which socket of the group hears a datagram may be chosen by a program of one of them."""
    rig, web, dns = policed
    port = free_port()
    members = [sharing(rig, owner, ("127.0.0.1", port), socket.SO_REUSEPORT) for owner in (dns, web, web, web)]
    rig.install(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP), rule(CLIENT, UNRESOLVED, REFUSE, transport=UDP))
    for _ in range(20):
        with pytest.raises(PermissionError):
            web.as_nobody(lambda: rig.client(web, socket.AF_INET, DGRAM).sendto(b"x", ("127.0.0.1", port)))
    assert all(silent(member) for member in members)


def send_to_group(client: socket.socket, group: str, port: int, card: str = "lo") -> None:
    if ":" in group:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(card))
    else:
        index = struct.pack("4x4xi", socket.if_nametoindex(card))
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, index)
    client.sendto(b"x", (group, port))


@pytest.mark.parametrize(("group", "over"), [(GROUP4, "loopback"), (GROUP4, "a card"), (GROUP6, "a card")])
def test_of_a_group_hears_who_may_be_written_to(card: Card, group: str, over: str) -> None:
    """A look-up finds one hearer, here the sender's own: all others are judged as well."""
    rig, web, dns, link = card
    port, anywhere, link = free_port(), "::" if ":" in group else "0.0.0.0", link if over == "a card" else "lo"
    strict = sharing(rig, dns, (anywhere, port), socket.SO_REUSEADDR, group, link)
    own = sharing(rig, web, (anywhere, port), socket.SO_REUSEADDR, group, link)
    client = rig.client(web, family(group), DGRAM)
    web.as_nobody(lambda: send_to_group(client, group, port, link))
    assert own.recv(10) == b"x"
    assert silent(strict)
    strict.settimeout(PATIENCE)
    other = rig.client(None, family(group), DGRAM)
    send_to_group(other, group, port, link)
    assert strict.recv(10) == own.recv(10) == b"x"


def test_a_broadcast_is_heard_by_who_may_be_written_to(policed: Policed) -> None:
    rig, web, dns = policed
    port = free_port()
    strict = sharing(rig, dns, ("0.0.0.0", port), socket.SO_REUSEADDR)
    own = sharing(rig, web, ("0.0.0.0", port), socket.SO_REUSEADDR)
    client = rig.client(web, socket.AF_INET, DGRAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    web.as_nobody(lambda: client.sendto(b"x", ("127.255.255.255", port)))
    assert own.recv(10) == b"x"
    assert silent(strict)


def test_sharing_a_port_with_another_is_not_to_speak_in_its_name(rig: Rig) -> None:
    web, dns = rig.cgroup("web", CLIENT), rig.cgroup("dns", SERVER)
    rig.attach(free(CLIENT), rule(CLIENT, SERVER, REFUSE, transport=UDP))
    port, source = free_port(), free_port()
    strict = sharing(rig, dns, ("0.0.0.0", port), socket.SO_REUSEADDR, GROUP4)
    sharing(rig, web, ("0.0.0.0", port), socket.SO_REUSEADDR, GROUP4)
    attacker = sharing(rig, web, ("127.0.0.1", source), socket.SO_REUSEADDR)
    sharing(rig, None, ("127.0.0.1", source), socket.SO_REUSEADDR)  # it is this one that a look-up finds
    web.as_nobody(lambda: send_to_group(attacker, GROUP4, port))
    assert silent(strict)


# Answers.


@pytest.fixture
def quiet(rig: Rig) -> tuple[Rig, Cgroup, Cgroup]:
    """``mute`` may write to nobody, but may answer. ``web`` is free."""
    mute, web = rig.cgroup("mute", SERVER), rig.cgroup("web", CLIENT)
    rig.attach(free(CLIENT), rule(SERVER, WORLD, REFUSE))
    return rig, mute, web


@FORMS
@pytest.mark.parametrize("connected", [True, False])
def test_whoever_wrote_may_be_answered(quiet: Policed, listen: str, dial: str, connected: bool) -> None:
    rig, mute, web = quiet
    server = rig.server(mute, "::" if dial != listen else listen, DGRAM)
    there = (dial, server.getsockname()[1])
    client = rig.client(web, family(dial), DGRAM)
    if connected:
        client.connect(there)
    client.send(b"question") if connected else client.sendto(b"question", there)
    _, source = server.recvfrom(10)
    mute.as_nobody(lambda: server.sendto(b"answer", source))
    assert client.recv(10) == b"answer"


def test_an_answer_may_come_from_another_socket_of_the_same_port(quiet: Policed) -> None:
    """As servers of QUIC do: one socket that listens, and one that is connected for each client."""
    rig, mute, web = quiet
    server = sharing(rig, mute, ("127.0.0.1", 0), socket.SO_REUSEPORT)
    client = rig.client(web, socket.AF_INET, DGRAM)
    client.sendto(b"question", server.getsockname())
    _, source = server.recvfrom(10)
    answering = sharing(rig, mute, server.getsockname(), socket.SO_REUSEPORT)

    def answer() -> None:
        answering.connect(source)
        answering.send(b"answer")

    mute.as_nobody(answer)
    assert client.recv(10) == b"answer"


def test_an_answer_is_for_the_socket_that_asked_and_not_for_who_has_its_port_next(quiet: Policed) -> None:
    """An accomplice writes from a port that a policed server takes over later."""
    rig, mute, web = quiet
    attacker = rig.server(mute, kind=DGRAM)
    accomplice = rig.client(web, socket.AF_INET, DGRAM)
    accomplice.sendto(b"x", attacker.getsockname())
    there = accomplice.getsockname()
    attacker.recv(10)
    mute.as_nobody(lambda: attacker.sendto(b"an answer", there))
    accomplice.close()
    server = rig.server(web, "127.0.0.1", DGRAM, port=there[1])
    with pytest.raises(PermissionError):
        mute.as_nobody(lambda: attacker.sendto(b"none", there))
    with pytest.raises(PermissionError):
        mute.as_nobody(lambda: attacker.connect(there))
    assert silent(server)


def test_reading_late_makes_nobody_a_writer(quiet: Policed) -> None:
    """What waits in the queue was written by who had the port then."""
    rig, mute, web = quiet
    attacker = rig.server(mute, kind=DGRAM)
    accomplice = rig.client(web, socket.AF_INET, DGRAM)
    accomplice.sendto(b"x", attacker.getsockname())
    there = accomplice.getsockname()
    accomplice.close()
    server = rig.server(web, "127.0.0.1", DGRAM, port=there[1])
    attacker.recvfrom(10)
    with pytest.raises(PermissionError):
        mute.as_nobody(lambda: attacker.sendto(b"none", there))
    assert silent(server)


def test_other_ports_of_who_was_asked_are_no_answers(quiet: Policed) -> None:
    rig, mute, web = quiet
    asked, other = rig.server(mute, kind=DGRAM), rig.server(mute, kind=DGRAM)
    client = rig.client(web, socket.AF_INET, DGRAM)
    client.sendto(b"question", asked.getsockname())
    with pytest.raises(PermissionError):
        mute.as_nobody(lambda: other.sendto(b"x", client.getsockname()))


def test_one_who_writes_from_many_sockets_takes_no_answer_from_others(quiet: Policed) -> None:
    """What a socket asks is kept with it, so there is nothing that could be filled."""
    rig, mute, web = quiet
    server, flooded = rig.server(mute, kind=DGRAM), rig.server(mute, kind=DGRAM)
    client = rig.client(web, socket.AF_INET, DGRAM)
    client.sendto(b"question", server.getsockname())
    _, source = server.recvfrom(10)
    before = rig.written()

    def flood() -> None:
        for _ in range(2000):
            with socket.socket(socket.AF_INET, DGRAM) as writer:
                writer.sendto(b"x", flooded.getsockname())
                flooded.recvfrom(10)

    web.as_nobody(flood)
    assert rig.written() == before
    mute.as_nobody(lambda: server.sendto(b"answer", source))
    assert client.recv(10) == b"answer"


def test_who_wrote_from_elsewhere_may_be_answered(quiet: Policed, namespace: Namespace) -> None:
    rig, mute, _ = quiet
    here = [AddressEntry(ip_network(HOST4), UNRESOLVED, True)]
    rig.install(free(CLIENT), rule(SERVER, WORLD, REFUSE), addresses=here)
    server = rig.server(mute, HOST4, DGRAM)
    client = namespace.run(lambda: rig.client(None, socket.AF_INET, DGRAM))
    client.sendto(b"question", server.getsockname())
    _, source = server.recvfrom(10)
    mute.as_nobody(lambda: server.sendto(b"answer", source))
    assert client.recv(10) == b"answer"
    with pytest.raises(PermissionError):
        mute.as_nobody(lambda: server.sendto(b"x", (CLIENT4, 9)))


def test_an_address_elsewhere_that_has_become_another_workloads_is_not_answered(quiet: Policed, namespace: Namespace) -> None:
    rig, mute, _ = quiet
    here, there = AddressEntry(ip_network(HOST4), UNRESOLVED, True), ip_network(CLIENT4)
    rig.install(rule(SERVER, WORLD, REFUSE), addresses=[here, AddressEntry(there, CLIENT, False)])
    server = rig.server(mute, HOST4, DGRAM)
    client = namespace.run(lambda: rig.client(None, socket.AF_INET, DGRAM))
    client.sendto(b"question", server.getsockname())
    _, source = server.recvfrom(10)
    mute.as_nobody(lambda: server.sendto(b"answer", source))
    rig.install(rule(SERVER, WORLD, REFUSE), addresses=[here, AddressEntry(there, OTHER, False)])
    with pytest.raises(PermissionError):
        mute.as_nobody(lambda: server.sendto(b"answer", source))
