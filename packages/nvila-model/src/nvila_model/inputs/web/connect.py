"""Connections to places that were checked, every operation of which ends by one deadline.

A name is looked up once, all its addresses are checked, and the connection goes to one of those: a second
look-up could answer otherwise. Behind the environment's proxy the proxy looks names up, so only numbers and
``localhost`` are refused there.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
from typing import Any
from urllib.parse import SplitResult, urlsplit

from nvila_model.inputs.errors import MediaError, shown
from nvila_model.inputs.web.address import Address, login

_CHUNK = 2**16


def ask(address: Address, deadline: float, allow_private: bool) -> http.client.HTTPResponse:
    """Send a GET and read the head of its answer. Raises: MediaError, OSError, HTTPException."""
    proxy = _proxy(address)
    connection = http.client.HTTPConnection(address.host, address.port)
    if proxy is None:
        raw = _connect(_checked(address, deadline, allow_private), deadline)
    else:
        raw = _connect_by_proxy(address, proxy, deadline, allow_private)
    try:
        if address.scheme == "https":
            raw.settimeout(_left(deadline))
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=address.host)
        # http.client takes anything with a socket's few methods.
        connection.sock = _TimedSocket(raw, deadline)  # pyright: ignore[reportAttributeAccessIssue]
        whole = proxy is not None and address.scheme == "http"
        target = f"http://{address.authority}{address.target}" if whole else address.target
        connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", address.authority)
        connection.putheader("User-Agent", "nvila-model")
        connection.putheader("Accept-Encoding", "identity")
        connection.putheader("Connection", "close")
        if address.login is not None:
            connection.putheader("Authorization", f"Basic {address.login}")
        if whole and proxy is not None and proxy.username:
            connection.putheader("Proxy-Authorization", f"Basic {login(proxy)}")
        connection.endheaders()
        return connection.getresponse()
    except BaseException:
        raw.close()
        raise


class _TimedSocket:
    """A socket whose every operation must end by one deadline."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw, self._deadline = raw, deadline

    def sendall(self, data: Any) -> None:
        self._raw.settimeout(_left(self._deadline))
        self._raw.sendall(data)

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._raw, self._deadline), _CHUNK)

    def close(self) -> None:
        """Nothing: the reader closes the socket, as http.client lets go of it before the body is read."""


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, deadline: float) -> None:
        super().__init__()
        self._raw, self._deadline = raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(_left(self._deadline))
        return self._raw.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _checked(address: Address, deadline: float, allow_private: bool) -> list[tuple[int, Any]]:
    """The places of a host, all of them public unless others are allowed."""
    found = _look_up(address.host, address.port, deadline)
    if not allow_private:
        _refuse_private(address, [str(place[0]) for _, place in found])
    return found


def _connect(places: list[tuple[int, Any]], deadline: float) -> socket.socket:
    failure: OSError = OSError("the name has no address")
    for family, place in places:
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            raw.settimeout(_left(deadline))
            raw.connect(place)
            return raw
        except OSError as error:
            raw.close()
            failure = error
    raise failure


def _look_up(host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
    """Addresses of a host; the resolver knows no time limit, so it is waited for only until the deadline."""
    found: list[Any] = []

    def resolve() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], UnicodeError):
        raise MediaError(f"{shown(host, 60)} is not the name of a host")
    if isinstance(found[0], Exception):
        raise found[0]
    return [(family, place) for family, _, _, _, place in found[0]]


def _refuse_private(address: Address, numbers: list[str]) -> None:
    if not all(is_public(number) for number in numbers):
        raise MediaError(
            f"{address.name} is on this machine or in a private network: "
            "allow_private=True (--allow-private) reads from there"
        )


def is_public(number: str) -> bool:
    """Whether an IP address is anybody's: not of this machine, a private network, a group, or inside another.

    IPv6 addresses that carry an IPv4 address (mapped, 6to4, NAT64, Teredo) are judged by that one too.
    """
    try:
        place = ipaddress.ip_address(number.partition("%")[0])
    except ValueError:
        return False
    if isinstance(place, ipaddress.IPv6Address):
        nat64 = place in ipaddress.ip_network("64:ff9b::/96")
        inner = place.ipv4_mapped or place.sixtofour or (place.teredo or (None, None))[1]
        if inner is None and (nat64 or int(place) >> 32 == 0):
            inner = ipaddress.IPv4Address(int(place) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return place.is_global and not place.is_multicast


def _proxy(address: Address) -> SplitResult | None:
    """The proxy that the environment names for an address."""
    if urllib.request.proxy_bypass(address.host):
        return None
    found = urllib.request.getproxies().get(address.scheme)
    return urlsplit(found if "://" in found else f"http://{found}") if found else None


def _connect_by_proxy(address: Address, proxy: SplitResult, deadline: float, allow_private: bool) -> socket.socket:
    """A connection to the proxy, and for https through it to the address."""
    if not allow_private and (address.host.rstrip(".") == "localhost" or _is_number(address.host)):
        _refuse_private(address, ["127.0.0.1" if address.host.rstrip(".") == "localhost" else address.host])
    raw = _connect(_look_up(proxy.hostname or "", proxy.port or 8080, deadline), deadline)
    if address.scheme == "http":
        return raw
    try:
        _pass_through(raw, address, proxy, deadline)
    except BaseException:
        raw.close()
        raise
    return raw


def _pass_through(raw: socket.socket, address: Address, proxy: SplitResult, deadline: float) -> None:
    host = f"[{address.host}]" if ":" in address.host else address.host
    request = f"CONNECT {host}:{address.port} HTTP/1.1\r\nHost: {host}:{address.port}\r\n"
    if proxy.username:
        request += f"Proxy-Authorization: Basic {login(proxy)}\r\n"
    raw.sendall(f"{request}\r\n".encode("ascii"))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        raw.settimeout(_left(deadline))
        piece = raw.recv(1)
        if not piece or len(answer) > _CHUNK:
            raise OSError("the proxy ended the connection")
        answer += piece
    if answer.split(b" ", 2)[1:2] != [b"200"]:
        raise OSError("the proxy refused the connection")


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
