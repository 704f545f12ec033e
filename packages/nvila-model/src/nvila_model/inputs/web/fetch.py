"""Media from http(s) addresses, bounded in every way that a stranger could use.

An address comes from a message or a record, so it may point anywhere: at a service inside the network, at a
server that sends for ever or a byte a second, at a chain of redirects. One reader serves all media:

- a name is looked up once, every address it has must be public (unless ``allow_private``), and the
  connection goes to the address that was checked;
- one deadline covers look-up, connection, redirects and body; one limit covers the bytes;
- a redirect is checked like the first address, and its body is never read;
- a body shorter than announced is refused;
- passwords and query strings never stand in a message, nor does anything of what was answered.
"""

import http.client
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import responses
from urllib.parse import urljoin

from nvila_model.inputs.errors import MediaError, reason
from nvila_model.inputs.limits import current_limits
from nvila_model.inputs.web.address import Address, address_name, is_http, split_address
from nvila_model.inputs.web.connect import ask

_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 2**16


def fetch(
    address: str, *, allow_private: bool = False, seconds: float | None = None, limit: int | None = None
) -> bytes:
    """The bytes at an http(s) address.

    Args:
        address: http or https; a user and password in it are sent to its own host only.
        allow_private: also addresses of this machine and of private networks.
        seconds: for everything together; None takes ``Limits.fetch_seconds``.
        limit: most bytes; None takes ``Limits.fetch_bytes``.

    Raises: MediaError.
    """
    limits = current_limits()
    seconds = limits.fetch_seconds if seconds is None else seconds
    limit = limits.fetch_bytes if limit is None else limit
    with open_address(address, allow_private=allow_private, seconds=seconds) as (answer, name):
        too_long = f"{name} is larger than {limit} bytes (Limits.fetch_bytes): download it and pass the file"
        if answer.length is not None and answer.length > limit:
            raise MediaError(too_long)
        pieces: list[bytes] = []
        left = limit + 1
        while left > 0 and (piece := answer.read(min(left, _CHUNK))):
            pieces.append(piece)
            left -= len(piece)
        if left <= 0:
            raise MediaError(too_long)
        if answer.length:
            got = limit + 1 - left
            raise MediaError(f"{name} ended after {got} of {got + answer.length} bytes: try again")
    return b"".join(pieces)


@contextmanager
def open_address(
    address: str, *, allow_private: bool = False, seconds: float
) -> Iterator[tuple[http.client.HTTPResponse, str]]:
    """The answer of an address, redirects followed, to be read within ``seconds``; and its name for messages.

    Raises: MediaError, also for whatever goes wrong while the caller reads.
    """
    name = address_name(address)
    deadline = time.monotonic() + seconds
    try:
        with closing(_follow(split_address(address), deadline, allow_private)) as answer:
            yield answer, name
    except MediaError:
        raise
    except TimeoutError:
        raise MediaError(f"{name} did not answer within {seconds:g} s") from None
    except http.client.IncompleteRead:
        raise MediaError(f"{name} ended before its announced length: try again") from None
    except http.client.HTTPException as error:  # its text would repeat what was answered
        raise MediaError(f"{name} does not answer as HTTP does ({type(error).__name__})") from None
    except Exception as error:
        raise MediaError(f"cannot fetch {name}: {reason(error)}") from None


def _follow(address: Address, deadline: float, allow_private: bool) -> http.client.HTTPResponse:
    first, most = address, current_limits().redirects
    for _ in range(most + 1):
        answer = ask(address, deadline, allow_private)
        if answer.status not in _REDIRECTS:
            if not 200 <= answer.status < 300:
                answer.close()
                raise MediaError(f"{address.name} answered {answer.status} {responses.get(answer.status, '')}".rstrip())
            return answer
        location = answer.getheader("Location") or ""
        answer.close()
        try:
            location = urljoin(f"{address.scheme}://{address.authority}{address.target}", location)
        except ValueError:
            location = ""
        if not is_http(location):
            raise MediaError(f"{address.name} answered {answer.status}, a redirect to no http(s) address")
        address = split_address(location)
    raise MediaError(f"{first.name} redirects more than {most} times (Limits.redirects)")
