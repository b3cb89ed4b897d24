"""Which addresses a sink may call, and that a name is judged by what it resolves to."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from wsync_sdk import AddressPolicy, ConfigError, RetryableError, SocketAddress

PUBLIC = ["8.8.8.8", "193.0.6.139", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
NOT_PUBLIC = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "233.252.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2001:0:53aa:64c::1",
    "2001:db8::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "5f00::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_called(address: str) -> None:
    assert AddressPolicy().permits(ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_other_address_may_not(address: str) -> None:
    assert not AddressPolicy().permits(ip_address(address))


def test_an_allowed_network_may_be_called_in_each_of_its_forms() -> None:
    policy = AddressPolicy(allowed=(IPv4Network("10.1.0.0/16"), IPv6Network("fd00::/8")))

    permitted = [
        address for address in ("10.1.2.3", "::ffff:10.1.2.3", "10.2.0.1", "fd00::1", "fc00::1") if policy.permits(ip_address(address))
    ]

    assert permitted == ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "017700000001", "::1", "::ffff:7f00:1", "0"]
)
def test_however_loopback_is_written_it_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="not a public address"):
        AddressPolicy().resolve(host, 80)


def test_what_is_resolved_is_what_may_be_connected_to() -> None:
    found = AddressPolicy(allowed=(IPv4Network("127.0.0.0/8"),)).resolve("127.1", 8080)

    assert found == (SocketAddress(family=socket.AF_INET, sockaddr=("127.0.0.1", 8080)),)


def test_a_name_with_public_and_private_addresses_is_given_with_the_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("10.0.0.1", "8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)

    assert [one.sockaddr[0] for one in AddressPolicy().resolve("both.example", 443)] == ["8.8.8.8"]


def test_a_name_that_does_not_resolve_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fails)

    with pytest.raises(RetryableError, match="does not resolve"):
        AddressPolicy().resolve("gone.example", 443)


def test_a_resolver_that_hangs_costs_no_more_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: is_over.wait(30))
    started_s = time.monotonic()

    with pytest.raises(RetryableError, match="in time"):
        AddressPolicy().resolve("slow.example", 443, timeout_s=0.05)

    assert time.monotonic() - started_s < 3
    is_over.set()


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example"])
def test_what_can_be_no_host_is_a_config_error(host: str) -> None:
    with pytest.raises(ConfigError, match="can't be the name"):
        AddressPolicy().resolve(host, 443)


def test_a_policy_reaches_another_process_whole() -> None:
    policy = AddressPolicy(allowed=(IPv4Network("10.0.0.0/8"),))

    assert pickle.loads(pickle.dumps(policy)) == policy
