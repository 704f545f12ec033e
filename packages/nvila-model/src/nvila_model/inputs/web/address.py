"""Addresses as strangers write them: taken apart, checked for form, and named without their secrets."""

import base64
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from nvila_model.inputs.errors import MediaError, shown


@dataclass(frozen=True, kw_only=True)
class Address:
    """An address that is well formed, and its name for messages: no user, password or query."""

    scheme: str
    host: str
    port: int
    target: str
    login: str | None
    name: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port(self.scheme) else f"{host}:{self.port}"


def is_http(source: object) -> bool:
    """Whether a source is an http(s) address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def address_name(address: str) -> str:
    """An address as messages may show it: without user, password and query."""
    try:
        return split_address(address).name
    except MediaError:
        scheme, _, rest = address.partition("://")
        host = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
        return shown(f"{scheme}://{host}/...", 80)


def split_address(address: str) -> Address:
    """The parts of an address. Raises: MediaError if it is none, without repeating what may be a password."""
    if not is_http(address):
        raise MediaError(f"{shown(address.partition('@')[0], 60)} is not an http or https address")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError is one
        raise MediaError("the address is malformed (host, port or brackets): write http://host:port/path") from None
    if not host or port == 0 or any(letter.isspace() or not letter.isprintable() for letter in host):
        raise MediaError("the address is malformed (host or port): write http://host:port/path")
    scheme = parts.scheme.lower()
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    port = port or default_port(scheme)
    bare = Address(scheme=scheme, host=host, port=port, target=target, login=None, name="")
    query = f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
    return Address(
        scheme=scheme,
        host=host,
        port=port,
        target=target + query,
        login=login(parts) if parts.username is not None else None,
        name=shown(f"{scheme}://{bare.authority}{target}{'?...' if query else ''}"),
    )


def login(parts: SplitResult) -> str:
    text = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
