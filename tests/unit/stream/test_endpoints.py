"""What a webhook's URL may name: nothing that only this platform can reach, in no spelling."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InvalidArgument
from services.stream.endpoints import Receiver, is_public, parse_endpoint, parse_receivers

INNER_V4 = [
    "0.0.0.0",  # noqa: S104
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]
PUBLIC_V4 = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "193.99.144.80"]
INNER_V6 = [
    "::",
    "::1",
    "::7f00:1",
    "::ffff:8.8.8.8",
    "::ffff:0:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC_V6 = ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:800::200e"]

any_v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
any_v6 = st.integers(0, 2**128 - 1).map(IPv6Address)


@pytest.mark.parametrize("address", INNER_V4 + INNER_V6)
def test_an_address_that_is_not_of_the_public_internet_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC_V4 + PUBLIC_V6)
def test_an_address_of_the_public_internet_is_allowed(address: str) -> None:
    assert is_public(ip_address(address))


@given(st.one_of(any_v4, any_v6))
def test_what_is_allowed_is_global_in_the_registries_too(address: IPv4Address | IPv6Address) -> None:
    assert not is_public(address) or (address.is_global and not address.is_multicast and not address.is_reserved)


@given(any_v4)
def test_no_ipv6_form_that_wraps_an_ipv4_address_is_allowed(address: IPv4Address) -> None:
    number = int(address)
    for wrapped in (
        number,  # compatible
        0xFFFF << 32 | number,  # mapped
        0xFFFF << 48 | number,  # translated
        0x64FF9B << 96 | number,  # NAT64
        0x64FF9B0001 << 80 | number,  # local NAT64
        0x2002 << 112 | number << 80 | 1,  # 6to4
        0x20010000 << 96 | number << 64 | number ^ 0xFFFFFFFF,  # Teredo
    ):
        assert not is_public(IPv6Address(wrapped))


@given(any_v6, st.text(st.characters(categories=["Ll", "Nd"], max_codepoint=127), min_size=1, max_size=8))
def test_an_address_with_a_zone_is_never_allowed(address: IPv6Address, zone: str) -> None:
    assert not is_public(IPv6Address(f"{address}%{zone}"))


def spellings(number: int) -> list[str]:
    """What parsers of addresses take for the IPv4 address *number*."""
    a, b, c, d = number.to_bytes(4, "big")
    dotted = f"{a}.{b}.{c}.{d}"
    return [
        dotted,
        f"{dotted}.",
        str(number),
        f"{number}.",
        hex(number),
        hex(number).upper(),
        oct(number).replace("0o", "0"),
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"{a:#x}.{b}.{c}.{d}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:03}.{b:03}.{c:03}.{d:03}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"{a}.{b}.{c}.{d:#x}",
        f"[::ffff:{dotted}]",
        f"[::ffff:{a << 8 | b:x}:{c << 8 | d:x}]",
        f"[::{dotted}]",
        f"[64:ff9b::{dotted}]",
        f"[2002:{a << 8 | b:x}:{c << 8 | d:x}::1]",
        f"[fe80::{a:x}%25eth0]",
        f"[fe80::{a:x}%eth0]",
        dotted.replace(".", "。"),
        "".join(chr(0xFF10 + int(digit)) if digit.isdigit() else digit for digit in dotted),
        "".join(chr(0x2460 + int(digit) - 1) if digit in "123456789" else digit for digit in dotted),
        dotted.replace(".", "%2e"),
        f"{a}.{b}.{c}.{d}%00.example.com",
    ]


@pytest.mark.parametrize("host", ["ex\u212aample.com", "example.\u212aom", "e\u017fample.com", "bücher.example.com"])
def test_a_name_has_one_spelling(host: str) -> None:
    # The first is in lower case what looks like it: it would be checked as one name, and used as another.
    with pytest.raises(InvalidArgument, match="ASCII"):
        parse_endpoint(f"https://{host}/")


@given(st.integers(0, 2**32 - 1), st.sampled_from(["", ":443", ":8443"]), st.sampled_from(["", "/", "/hook?x=1"]))
def test_an_address_is_no_name_in_any_spelling(number: int, port: str, path: str) -> None:
    for host in spellings(number):
        with pytest.raises(InvalidArgument):
            parse_endpoint(f"https://{host}{port}{path}")


@given(st.from_regex(r"[0-9a-zA-ZxX.]{1,40}", fullmatch=True))
def test_no_name_is_taken_that_the_system_would_read_as_an_address(host: str) -> None:
    try:
        parse_endpoint(f"https://{host}/")
    except InvalidArgument:
        return
    with pytest.raises(OSError, match="illegal"):
        socket.inet_aton(host)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "//hooks.example.com/",
        "http://hooks.example.com/",
        "HTTPS://hooks.example.com/",
        "ftp://hooks.example.com/",
        "https:///path",
        "https:hooks.example.com",
        "https://user@hooks.example.com/",
        "https://user:password@hooks.example.com/",
        "https://hooks.example.com@127.0.0.1/",
        "https://127.0.0.1#@hooks.example.com/",
        "https://127.0.0.1\\@hooks.example.com/",
        "https://hooks.example.com/#fragment",
        "https://hooks.example.com:22/",
        "https://hooks.example.com:80/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:65536/",
        "https://hooks.example.com:0443x/",
        "https://hooks.example.com:0443/",
        "https://hooks.example.com:00443/",
        "https://hooks.example.com:08443/",
        "https://hooks.example.com:/",
        "https://hooks.example.com./",
        "https://.hooks.example.com/",
        "https://hooks..example.com/",
        "https://-hooks.example.com/",
        "https://ho_oks.example.com/",
        "https://localhost/",
        "https://LOCALHOST/",
        "https://x.localhost/",
        "https://metadata.google.internal/",
        "https://printer.local/",
        "https://1.0.0.127.in-addr.arpa/",
        "https://intranet/",
        "https://bücher.example/",
        "https://hooks.example.com/ä",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/a\nhost: x",
        "https://hooks.example.com/%0",
        "https://hooks.example.com/\r\n",
        " https://hooks.example.com/",
        "https://hooks.example.com/ ",
        "https://hooks.example.com\t/",
        "https://" + "a" * 64 + ".example.com/",
        "https://" + "a." * 130 + "com/",
        "https://hooks.example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_may_not_be_asked_is_an_invalid_field(url: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_endpoint(url, field="push.endpoint")
    assert raised.value.reason == "INVALID_FIELD"
    assert raised.value.violations[0].field == "push.endpoint"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://hooks.example.com", "hooks.example.com", 443),
        ("https://Hooks.Example.com/Path/%20x?q=a%2Fb&c", "hooks.example.com", 443),
        ("https://hooks.example.com:8443/hook", "hooks.example.com", 8443),
        ("https://xn--bcher-kva.example.com/", "xn--bcher-kva.example.com", 443),
        ("https://a.xn--p1ai/", "a.xn--p1ai", 443),
    ],
)
def test_a_name_of_the_public_internet_may_be_asked(url: str, host: str, port: int) -> None:
    endpoint = parse_endpoint(url)
    assert (endpoint.url, endpoint.host, endpoint.port) == (url, host, port)


def test_a_receiver_of_the_topology_is_open_at_its_port_only(authority: Path) -> None:
    receivers = parse_receivers(f" 127.0.0.1:9443={authority}, localhost:9444={authority},")
    assert receivers == (Receiver("127.0.0.1", 9443, authority), Receiver("localhost", 9444, authority))
    assert parse_endpoint("https://127.0.0.1:9443/hook", receivers).port == 9443
    assert parse_endpoint("https://LOCALHOST:9444/hook", receivers).host == "localhost"
    for closed in (
        "https://127.0.0.1:9444/",
        "https://127.0.0.2:9443/",
        "https://localhost:9443/",
        "https://127.1:9443/",
        "https://127.0.0.1:09443/",
    ):
        with pytest.raises(InvalidArgument):
            parse_endpoint(closed, receivers)


def test_without_an_entry_in_the_topology_no_receiver_is_open() -> None:
    assert parse_receivers("") == ()


@pytest.mark.parametrize("text", ["127.0.0.1:9443", "127.0.0.1={ca}", ":9443={ca}", "10.0.0.1:9443={ca}", "nonsense"])
def test_a_malformed_or_distant_receiver_is_refused_at_start(text: str, authority: Path) -> None:
    with pytest.raises(RuntimeError, match="webhook receiver"):
        parse_receivers(text.format(ca=authority))


@pytest.mark.parametrize("port", ["0", "99999", "https", "-1", "", "9" * 5000])
def test_a_receiver_with_a_port_that_there_is_not_is_told_that_it_is_the_port(port: str, authority: Path) -> None:
    with pytest.raises(RuntimeError, match=f"the port of a webhook receiver is 1 to 65535, not '{port}'"):
        parse_receivers(f"127.0.0.1:{port}={authority}")


def test_a_receiver_whose_authority_is_missing_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="missing"):
        parse_receivers(f"127.0.0.1:9443={tmp_path / 'ca.pem'}")


@pytest.mark.parametrize("content", ["nothing", "text", "bytes", "only a key", "a certificate cut short"])
def test_a_receiver_whose_authority_is_no_certificate_is_refused_at_start(content: str, authority: Path) -> None:
    contents = {
        "nothing": b"",
        "text": b"to be filled in\n",
        "bytes": b"\0\xff" * 100,
        "only a key": authority.with_name("key.pem").read_bytes(),
        "a certificate cut short": authority.read_bytes()[:200],
    }
    authority.write_bytes(contents[content])
    with pytest.raises(RuntimeError, match=f"127.0.0.1:9443 is no certificate in PEM: {authority}"):
        parse_receivers(f"127.0.0.1:9443={authority}")
