"""Who the client is, and what the endpoint is told about it (RFC 7239 and X-Forwarded-*).

What a peer claims is believed only when the peer is in a trusted network; otherwise its claims are overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from unjam.wire.request import RequestHead

_MEMO: Final = 4096

Address = IPv4Address | IPv6Address


def parse_address(text: str) -> Address | None:
    """An address as proxies write it: with port, brackets or zone, IPv4 in IPv6 unwrapped. None when it is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


class TrustedProxies:
    """The networks whose X-Forwarded-* are believed. ValueError for a network that is none."""

    __slots__ = ("_memo", "_networks", "_trusted")

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]
        self._memo: dict[tuple[str, bytes, bytes], bytes] = {}
        self._trusted: dict[str, bool] = {}

    def trusts(self, peer: str) -> bool:
        """Whether `peer` (an address as text; anything else, such as a Unix socket, is not) is a trusted proxy."""
        if not self._networks:
            return False
        known = self._trusted.get(peer)
        if known is None:
            address = parse_address(peer)
            known = address is not None and self._contains(address)
            if len(self._trusted) >= _MEMO:
                self._trusted = {}
            self._trusted[peer] = known
        return known

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self._networks)

    def client(self, peer: str, head: RequestHead) -> str:
        """The client's address: the peer, or behind trusted proxies the last address in X-Forwarded-For that is not
        one of them. Walking from the right and stopping at the first entry that is no address keeps a client from
        choosing its own."""
        if not self._networks or not self.trusts(peer):
            return peer
        claimed = head.known.get(b"x-forwarded-for")
        client = peer
        if claimed is not None:
            for entry in reversed(claimed.decode("latin-1").split(",")):
                address = parse_address(entry)
                if address is None:
                    break
                client = str(address)
                if not self._contains(address):
                    break
        return client

    def scheme(self, peer: str, head: RequestHead, secure: bool) -> str:
        """`https` or `http` as the client saw it."""
        if self._networks and self.trusts(peer):
            claimed = head.known.get(b"x-forwarded-proto", b"").partition(b",")[0].strip().lower()
            if claimed in (b"http", b"https"):
                return claimed.decode("ascii")
        return "https" if secure else "http"

    def lines(self, peer: str, head: RequestHead, secure: bool) -> bytes:
        """X-Forwarded-For, -Proto, -Host and Forwarded for the endpoint, with CRLFs."""
        if self._networks and self.trusts(peer):
            return self._extended(peer, head, secure)
        key = (peer, head.authority, b"https" if secure else b"http")
        lines = self._memo.get(key)
        if lines is None:
            lines = _lines(peer.encode("ascii", "replace"), peer, head.authority, key[2], b"", b"")
            if len(self._memo) >= _MEMO:
                self._memo = {}
            self._memo[key] = lines
        return lines

    def _extended(self, peer: str, head: RequestHead, secure: bool) -> bytes:
        known = head.known
        chain = known.get(b"x-forwarded-for", b"")
        host = known.get(b"x-forwarded-host", b"").partition(b",")[0].strip() or head.authority
        proto = self.scheme(peer, head, secure).encode("ascii")
        forwarded_for = chain + b", " + peer.encode("ascii", "replace") if chain else peer.encode("ascii", "replace")
        return _lines(forwarded_for, peer, host, proto, known.get(b"forwarded", b""), head.authority)


def _lines(chain: bytes, peer: str, host: bytes, proto: bytes, forwarded: bytes, own_host: bytes) -> bytes:
    address = parse_address(peer)
    if address is None:
        node = b"unknown"
        chain = b"unknown" if chain == peer.encode("ascii", "replace") else chain
    elif address.version == 6:
        node = b'"[%b]"' % str(address).encode("ascii")
    else:
        node = str(address).encode("ascii")
    element = b"for=%b;proto=%b" % (node, proto)
    quoted = own_host or host
    if quoted and b'"' not in quoted and b"\\" not in quoted:
        element += b';host="%b"' % quoted
    if forwarded:
        element = forwarded + b", " + element
    lines = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, proto)
    if host:
        lines += b"X-Forwarded-Host: %b\r\n" % host
    return lines + b"Forwarded: %b\r\n" % element
