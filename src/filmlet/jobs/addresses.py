"""Check of webhook addresses: http URLs in plain form, of public hosts."""

import asyncio
import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx2

MAX_URL_LENGTH = 2048
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{LABEL}\.)*(?!0x|\d+\Z){LABEL}", re.ASCII)
PORTS = {"http": 80, "https": 443}
GLOBAL_UNICAST = ip_network("2000::/3")  # NAT64, IPv4-mapped, site-local, multicast lie outside
NEVER = tuple(
    map(
        ip_network,
        (
            "168.63.129.16/32",  # Azure's own services, among them metadata
            "192.0.0.0/24",  # protocols, Oracle's metadata
            "192.88.99.0/24",  # relays of 6to4
            "2001::/23",  # Teredo, ORCHID and other protocols
            "2001:db8::/32",
            "2002::/16",  # 6to4, which holds an IPv4 address
            "3fff::/20",
        ),
    )
)
ISATAP = (0x00005EFE, 0x02005EFE)  # before an IPv4 address in the lower half


def parse_webhook_url(text: str) -> httpx2.URL:
    """Return a URL that a webhook can be sent to. Raises ValueError with a sentence."""
    if len(text) > MAX_URL_LENGTH:
        raise ValueError(f"a webhook has at most {MAX_URL_LENGTH} characters, not {len(text)}.")
    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("a webhook's URL has no spaces, backslashes or control characters.")
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ValueError(f"a webhook is an http URL: {error}.") from error
    if url.scheme not in PORTS:
        raise ValueError("a webhook's URL begins with https:// or http://.")
    if url.userinfo:
        raise ValueError("a webhook's URL holds no user name or password.")
    host = url.raw_host.decode("ascii")
    if not _is_address(host) and not HOST.fullmatch(host):
        raise ValueError(f"{host[:80]!r} is not a host's name or address in its usual form.")
    if url.port is not None and not 0 < url.port < 2**16:
        raise ValueError(f"there is no port {url.port}.")
    return url


async def resolve_public_address(url: httpx2.URL, *, allow_private: bool) -> str:
    """Return an address of the URL's host, none of whose addresses may be private unless allowed.

    Raises OSError where the name has none, ValueError.
    """
    host, port = url.raw_host.decode("ascii"), url.port or PORTS[url.scheme]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(info[4][0]) for info in found]
    for address in addresses:
        if "%" in address or not (allow_private or is_public(ip_address(address))):
            raise ValueError(f"{host} is in a private network; FILMLET_WEBHOOK_PRIVATE=1 allows it")
    return addresses[0]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is global unicast, and holds no other address that could be a private one."""
    if any(address.version == network.version and address in network for network in NEVER):
        return False
    if address.version == 6 and (
        address not in GLOBAL_UNICAST or int(address) >> 32 & 0xFFFFFFFF in ISATAP
    ):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return "%" not in host
