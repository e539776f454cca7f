"""May a connection to an address of this host end up elsewhere than at the socket that listens there?

Where nothing translates addresses, a local port at which nobody listens is closed, and the connect hook can say so. Doubt
counts as translation. Looked at are NAT and TPROXY of netfilter, IPVS, and the connect hooks of other products; a rule of
nftables that rewrites addresses in another chain by itself (``ip daddr set``) is not noticed.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bpf.loader import CONNECT4, CONNECT6, BpfError, programs_at

_TABLES = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))
_SUSPECT_TABLES = {"nat", "mangle"}  # TPROXY is in mangle
_IPVS = Path("/proc/net/ip_vs")
_IPVS_HEAD = 3  # lines without a service
OUR_PROGRAMS = "sluice_"

# netlink(7), linux/netfilter/nfnetlink.h and nf_tables.h
_NETLINK_NETFILTER = 12
_GET_CHAINS = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_CHAIN_HOOK, _CHAIN_TYPE = 4, 7
_HOOK_NUMBER, _PREROUTING = 1, 0
_HEAD, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_FAMILY_HEAD = 4  # bytes of struct nfgenmsg
_TYPE_MASK = 0x3FFF
_NO_NFTABLES = (errno.EINVAL, errno.EOPNOTSUPP)  # what netfilter says to a question for a part that it does not have
# Replies larger than this do not exist: the kernel dumps in pieces of at most 32 KiB.
_PIECE = 65536
_TIMEOUT = 1.0  # seconds for a reply of the kernel


def translates(mount: Path) -> bool:
    """Whether anything in our network namespace, or on the cgroup tree at ``mount``, may lead a local address elsewhere."""
    try:
        return _tables() or _virtual_servers() or _neighbours(mount) or any(map(_is_suspect, _chains()))
    except (OSError, BpfError, struct.error):
        return True


def _tables() -> bool:
    return any(path.exists() and _SUSPECT_TABLES & set(path.read_text().split()) for path in _TABLES)


def _virtual_servers() -> bool:
    if not _IPVS.exists():
        return False
    with _IPVS.open() as lines:  # there may be thousands
        return len(list(islice(lines, _IPVS_HEAD + 1))) > _IPVS_HEAD


def _neighbours(mount: Path) -> bool:
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return any(not name.startswith(OUR_PROGRAMS) for hook in (CONNECT4, CONNECT6) for name in programs_at(root, hook))
    finally:
        os.close(root)


def _is_suspect(chain: dict[int, bytes]) -> bool:
    """A chain that translates, or one in which TPROXY may stand."""
    hook = dict(_attributes(chain.get(_CHAIN_HOOK, b"")))
    prerouting = _HOOK_NUMBER in hook and struct.unpack("!I", hook[_HOOK_NUMBER])[0] == _PREROUTING
    return prerouting or chain.get(_CHAIN_TYPE, b"").rstrip(b"\0") == b"nat"


def _chains() -> Iterator[dict[int, bytes]]:
    """The chains of nftables, which are also those of iptables-nft; none where the kernel has no nftables."""
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError:
        return  # no netfilter that could be asked, and so none that could be told
    with netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.send(_HEAD.pack(_HEAD.size + _FAMILY_HEAD, _GET_CHAINS, _REQUEST_DUMP, 1, 0) + bytes(_FAMILY_HEAD))
        while True:
            piece = netlink.recv(_PIECE)
            while piece:
                length, kind, *_ = _HEAD.unpack_from(piece)
                body, piece = piece[_HEAD.size : length], piece[_aligned(length) :]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    if -struct.unpack_from("=i", body)[0] in _NO_NFTABLES:
                        return
                    raise OSError("the kernel does not tell its chains")
                yield dict(_attributes(body[_FAMILY_HEAD:]))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[max(_aligned(length), _ATTRIBUTE.size) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
