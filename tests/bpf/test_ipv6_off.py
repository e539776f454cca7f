"""A host whose loopback has no IPv6: nobody is pointed to ``::1`` there, which would send the request out to the network."""

import subprocess
import sys

# A namespace with IPv6 on its one card, and none on loopback.
NETWORK = """
sysctl -qw net.ipv6.conf.lo.disable_ipv6=1
ip link set lo up; ip link add card type dummy; ip link set card up
ip addr add fd00::2/64 dev card nodad; ip -6 route add default via fd00::1 dev card
exec "$@"
"""
CALLER = """
import os, socket
from ipaddress import ip_network
from policies.compile import ANY_PEER, KernelTables, RuleEntry
from policies.decide import Action
from proxy.datapath import Hooks
from proxy.workloads import cgroup2_mount
from tests.bpf.rig import CLIENT, TCP, WORLD, Cgroup, address
hooks = Hooks(4000, None, None)
cgroup = Cgroup(cgroup2_mount() / "sluice" / f"ipv6-{os.getpid()}")
try:
    hooks.set_cgroups({cgroup.id: CLIENT}, [])
    rules = (RuleEntry(CLIENT, ANY_PEER, TCP, 0, 0, Action.REDIRECT, False),)
    hooks.install(KernelTables((address("::/0", WORLD), address("0.0.0.0/0", WORLD)), rules), 1)
    hooks.attach(cgroup.path)
    for family, host in ((socket.AF_INET6, "2001:db8::1"), (socket.AF_INET, "192.0.2.1")):
        with cgroup.inside(), socket.socket(family) as client:
            client.settimeout(1)
            client.connect_ex((host, 80))
    events = hooks.events()
    print(events["no_gateway"], events["redirected"])
finally:
    cgroup.remove()
"""


def test_without_an_ipv6_loopback_ipv6_connections_are_refused_and_ipv4_ones_redirected() -> None:
    command = ["unshare", "--net", "sh", "-c", NETWORK, "sh", sys.executable, "-c", CALLER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stdout == "1 1\n", done.stderr
