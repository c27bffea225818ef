"""The client for web addresses: credentials go to trusted hosts only, and strangers have public addresses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.request import getproxies

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

# What aiohttp takes for one request.
REQUEST_OPTIONS = (
    *("params", "cookies", "headers", "skip_auto_headers", "auth", "allow_redirects", "max_redirects", "proxy"),
    *("proxy_auth", "timeout", "ssl", "server_hostname", "proxy_headers", "read_bufsize", "max_line_size"),
)
# What a stranger gets of the user's options: nothing that could be a secret, but what is needed to reach it.
_FOR_STRANGERS = frozenset({"timeout", "proxy", "proxy_auth", "trust_env", "read_bufsize", "max_line_size"})
_HEADERS_FOR_STRANGERS = frozenset({"accept", "accept-encoding", "accept-language", "range", "user-agent"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
# A server may be slow, but not silent; aiohttp's own limit is five minutes for a whole video.
TIMEOUT = aiohttp.ClientTimeout(total=3600, sock_connect=30, sock_read=60)
_NAT64 = ip_network("64:ff9b::/96")


class HostRefused(ValueError):
    """An address that was not asked, since nobody who may say so trusts its host."""


@dataclass(frozen=True, slots=True)
class WebClient:
    """What fsspec's file system for web addresses takes as `get_client`.

    A host that is not trusted gets no headers, cookies or other credentials of the storage options, and has to have a
    public network address. Neither does any host that a redirect leads to, unless it leads back to its own.

    Attributes:
        trusted: hosts as `host`, `host:port` or `https://host:port`; none of them covers more than it says.
    """

    trusted: tuple[str, ...]

    async def __call__(self, **options: Any) -> GuardedSession:  # Any: what aiohttp takes
        """Returns a session with these options of aiohttp's."""
        options.pop("loop", None)  # the one that runs
        return GuardedSession(frozenset(self.trusted), options)


def web_origin(uri: str) -> str | None:
    """Returns protocol, host and port of a web address as its client understands it; None where they make no sense."""
    try:
        return _origin(URL(uri))
    except ValueError:
        return None


class GuardedSession:
    """The part of an aiohttp session that fsspec uses, following redirects one by one."""

    def __init__(self, trusted: frozenset[str], options: Mapping[str, Any]) -> None:
        self._trusted = trusted
        self._options = _with_timeout({"timeout": TIMEOUT, **options})
        self._own = aiohttp.ClientSession(**self._options)
        self._proxies = _proxies_of(options)
        self._strangers: aiohttp.ClientSession | None = None

    def get(self, url: URL, **options: Any) -> _Request:
        """Asks for a file."""
        return _Request(self._follow("GET", url, options))

    def head(self, url: URL, **options: Any) -> _Request:
        """Asks for the headers of a file."""
        return _Request(self._follow("HEAD", url, options))

    def post(self, url: URL, **options: Any) -> _Request:
        """Sends a file; its body cannot be sent twice, so no redirect is followed."""
        return _Request(self._ask("POST", url, {"allow_redirects": False, **options}, self._is_trusted(url)))

    def put(self, url: URL, **options: Any) -> _Request:
        """Sends a file, as `post`."""
        return _Request(self._ask("PUT", url, {"allow_redirects": False, **options}, self._is_trusted(url)))

    async def close(self) -> None:
        """Closes all connections."""
        await self._own.close()
        if self._strangers is not None:
            await self._strangers.close()

    async def _follow(self, method: str, url: URL, options: dict[str, Any]) -> aiohttp.ClientResponse:
        options = _with_timeout(options)
        follows = options.pop("allow_redirects", True)
        origin, trusted = _origin(url), self._is_trusted(url)
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._ask(method, url, {**options, "allow_redirects": False}, trusted)
            target = response.headers.get("Location") or response.headers.get("URI")
            if not follows or response.status not in _REDIRECTS or target is None:
                return response
            response.release()
            url = _join(url, target)
            trusted = trusted and _origin(url) == origin
        raise HostRefused(f"{url.host} redirects again and again, more than {_MAX_REDIRECTS} times")

    async def _ask(self, method: str, url: URL, options: dict[str, Any], trusted: bool) -> aiohttp.ClientResponse:
        if trusted:
            return await self._own.request(method, url, **(_without_login(options) if url.user else options))
        address = _literal_address(url.raw_host or "")  # of which no resolver is asked
        if address is not None and not is_public(address) and not self._is_trusted(url):
            raise _private(url.raw_host or "")
        self._proxies |= _proxies_of(options)
        return await self._session_for_strangers().request(method, url, **_for_strangers(options))

    def _session_for_strangers(self) -> aiohttp.ClientSession:
        if self._strangers is None:
            connector = aiohttp.TCPConnector(resolver=_PublicResolver(self._is_listed))
            self._strangers = aiohttp.ClientSession(connector=connector, **_for_strangers(self._options))
        return self._strangers

    def _is_trusted(self, url: URL) -> bool:
        host = url.raw_host or ""
        return not self._trusted.isdisjoint({_origin(url), host, f"{host}:{url.port}"})

    def _is_listed(self, host: str, port: int | None) -> bool:
        names = {host, f"{host}:{port}", f"http://{host}:{port}", f"https://{host}:{port}"}
        return not names.isdisjoint(self._trusted | self._proxies)


class _Request:
    """A request that is awaited or entered, as aiohttp's own."""

    def __init__(self, answer: Coroutine[Any, Any, aiohttp.ClientResponse]) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, Any, aiohttp.ClientResponse]:
        return self._answer.__await__()

    async def __aenter__(self) -> aiohttp.ClientResponse:
        self._response = await self._answer
        return await self._response.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._response.__aexit__(*error)


class _PublicResolver(AbstractResolver):
    """Finds the network addresses of names; private ones only for hosts that are listed."""

    def __init__(self, is_listed: Callable[[str, int | None], bool]) -> None:
        self._is_listed = is_listed
        self._resolver = aiohttp.DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if self._is_listed(host, port):
            return found
        public = [one for one in found if is_public(ip_address(one["host"].partition("%")[0]))]
        if found and not public:
            raise _private(host)
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _private(host: str) -> HostRefused:
    host = f"[{host}]" if ":" in host else host
    return HostRefused(
        f"{host} is an address of a private network; if it is meant, name it with --trusted-hosts {host}"
    )


def _origin(url: URL) -> str:
    return f"{url.scheme}://{url.raw_host}:{url.port}"


def _join(url: URL, target: str) -> URL:
    joined = url.join(URL(target))
    if joined.scheme not in ("http", "https"):
        raise HostRefused(
            f"{url.host} redirects to an address of {joined.scheme or 'no'} protocol, wanted http or https"
        )
    return joined


def _with_timeout(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options in which a timeout in seconds, as JSON can hold it, is what aiohttp takes."""
    seconds = options.get("timeout")
    return (
        {**options, "timeout": aiohttp.ClientTimeout(total=seconds)}
        if isinstance(seconds, (int, float))
        else {**options}
    )


def _for_strangers(options: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name in _FOR_STRANGERS | {"allow_redirects"}}
    headers = dict(options.get("headers") or {})
    return {**kept, "headers": {name: headers[name] for name in headers if name.lower() in _HEADERS_FOR_STRANGERS}}


def _without_login(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what an address replaces that holds user and password itself."""
    headers = dict(options.get("headers") or {})
    kept = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return {**options, "headers": kept, "auth": None}


def _literal_address(host: str) -> IPv4Address | IPv6Address | None:
    """Returns the address that a host is written as, in any way that systems understand (127.1, 2130706433)."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ip_address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Returns whether anybody may be asked at a network address: neither private, nor local, nor for many."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _proxies_of(options: Mapping[str, Any]) -> frozenset[str]:
    proxies = [str(options["proxy"])] if options.get("proxy") else []
    proxies += getproxies().values() if options.get("trust_env") else []
    return frozenset(filter(None, map(web_origin, proxies)))
