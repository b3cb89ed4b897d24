"""Which network addresses a sink may call: public ones, and the private networks that an installation allows.

A tenant writes a host's name and the tenant's own DNS says what it means, so a name proves nothing: the address is checked after resolution, at every
new connection, and the connection is made to exactly the address that was checked. TLS still verifies the name.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from wsync_sdk.errors import ConfigError, RetryableError

__all__ = ["AddressPolicy", "SocketAddress"]

Address = IPv4Address | IPv6Address

_PUBLIC_6 = IPv6Network("2000::/3")
"""All that IANA has given out for global unicast; the rest is special (iana.org/assignments/ipv6-address-space, read 2026-11-20)."""
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_REFUSED = (
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments; a cloud's metadata is among them, and older Pythons call most of it global
    IPv4Network("168.63.129.16/32"),  # Azure's virtual public address of its host: metadata, though globally routable by the registry
    IPv4Network("192.88.99.0/24"),  # 6to4 relays: leads to who knows where
    IPv6Network("2001::/23"),  # IETF protocol assignments, with Teredo, which carries two IPv4 addresses
    IPv6Network("2001:db8::/32"),
    IPv6Network("3fff::/20"),  # documentation
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketAddress:
    """An address that may be connected to: what `socket.socket(family)` and `connect(sockaddr)` take."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Public addresses, and those in `allowed`.

    Not public: loopback, private, link-local (where clouds keep metadata), shared (CGNAT), unique local, multicast, reserved and unspecified addresses, and
    IPv6 forms that carry such an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo).

    :param allowed: networks that the installation lets its sinks call, `WSYNC_ALLOW_PRIVATE_ADDRESSES`.
    """

    allowed: tuple[IPv4Network | IPv6Network, ...] = ()

    def permits(self, address: Address) -> bool:
        """May a sink connect to it?"""
        inner = _embedded(address)
        if any(one.version == network.version and one in network for one in {address, inner} for network in self.allowed):
            return True
        return _is_public(inner) and (inner == address or _carries(address))

    def resolve(self, host: str, port: int, *, timeout_s: float = 10.0) -> tuple[SocketAddress, ...]:
        """The permitted addresses of a host, in the resolver's order; connect to these and to nothing else. From any thread.

        A name that has permitted addresses and others is given with the permitted ones only.

        :param host: a name or an address, without brackets. :param timeout_s: the lookup's; it is left alone after it.
        :raises ConfigError: the host has no permitted address, or can't be a host.
        :raises RetryableError: the name does not resolve, or not in time.
        """
        found = _looked_up(host, port, timeout_s)
        permitted = tuple(one for one in found if self.permits(ip_address(str(one.sockaddr[0]).partition("%")[0])))
        if not permitted:
            raise ConfigError(
                f"`{host}` is not a public address, and this installation does not allow its network",
                next_step="use a public host, or let the operator add the network to WSYNC_ALLOW_PRIVATE_ADDRESSES",
            )
        return permitted


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _carries(address: Address) -> bool:
    """True for forms that lead to the IPv4 address inside; compatible ones are no longer routed anywhere."""
    return isinstance(address, IPv6Address) and address not in _COMPATIBLE


def _is_public(address: Address) -> bool:
    if any(address.version == network.version and address in network for network in _REFUSED):
        return False
    if isinstance(address, IPv6Address):
        return address in _PUBLIC_6
    return address.is_global and not address.is_multicast and not address.is_reserved


def _looked_up(host: str, port: int, timeout_s: float) -> list[SocketAddress]:
    """`getaddrinfo` in a thread of its own: it takes no timeout, and a call has one."""
    answer: list[list[SocketAddress] | Exception] = []

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.append([SocketAddress(family=family, sockaddr=address) for family, _, _, _, address in found])  # type: ignore[arg-type]
        except Exception as exc:
            answer.append(exc)

    thread = threading.Thread(target=look_up, name="resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_s))
    if not answer:
        raise RetryableError(f"`{host}` was not resolved in time", next_step="check the worker's DNS; it is tried again by itself")
    if isinstance(answer[0], UnicodeError | ValueError | OverflowError):
        raise ConfigError(f"`{host}` can't be the name of a host", next_step="correct the host") from answer[0]
    if isinstance(answer[0], Exception):
        raise RetryableError(
            f"`{host}` does not resolve", next_step="correct the host, or check the worker's DNS; it is tried again by itself"
        ) from answer[0]
    return answer[0]
