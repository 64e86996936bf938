"""What an address tells: whether only this machine reaches it, and who may be behind it. Imports no torch."""

from __future__ import annotations

import ipaddress

_HOME = 64  # bits of an IPv6 address that a provider gives one customer at least


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def home(address: str) -> str:
    """Whom an address is counted for: itself, or, of IPv6, the network whose addresses one may all have."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4 or parsed.is_loopback:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _HOME), strict=False))
