"""Addresses and identities as the kernel's tables have them. The hooks themselves are tested in tests/bpf."""

from ipaddress import ip_address, ip_network

import pytest

from bpf import abi
from proxy.datapath import HEARTBEAT_LIMIT, _address_key, is_class, mapped, unmapped
from proxy.heartbeat import INTERVAL


@pytest.mark.parametrize("text", ["0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1", "2001:db8::7", "fe80::1"])
def test_an_address_comes_back_as_it_went_in(text: str) -> None:
    address = ip_address(text)
    assert unmapped(mapped(address), address.version == 4) == text
    assert len(mapped(address)) == 16


def test_ipv4_lives_in_the_mapped_part_of_the_address_space() -> None:
    assert mapped(ip_address("192.0.2.1")) == ip_address("::ffff:192.0.2.1").packed


@pytest.mark.parametrize(
    ("network", "bits"),
    [("0.0.0.0/0", 96), ("10.0.0.0/8", 104), ("10.0.0.7/32", 128), ("::/0", 0), ("2001:db8::/32", 32), ("::1/128", 128)],
)
def test_a_prefix_counts_the_generation_and_the_mapped_bits(network: str, bits: int) -> None:
    """A trie compares bytes from the front, so the generation stands before the address and always counts in full."""
    key = abi.AddressKey(*abi.SLUICE_ADDRESS_KEY.unpack(_address_key(7, ip_network(network))))
    assert (key.prefixlen, key.generation) == (32 + bits, 7)
    assert key.addr == mapped(ip_network(network).network_address)


def test_processes_of_a_host_are_no_classes_of_addresses() -> None:
    assert not any(is_class(identity) for identity in (abi.Identity.HOST, 1, 0xFFFE, abi.Identity.UNRESOLVED))
    assert is_class(abi.Identity.FIRST_CLASS)


def test_one_missed_beat_is_not_yet_death() -> None:
    assert INTERVAL * 5 <= HEARTBEAT_LIMIT
