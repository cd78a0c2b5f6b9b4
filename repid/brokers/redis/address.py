"""Where a server is: what users write in one line."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from ...errors import ConfigurationError
from ...names import brief, check_escaped

_PLAIN = frozenset({"redis", "valkey"})
_SECURE = frozenset({"rediss", "valkeys"})
_FINDERS = frozenset({"sentinel", "cluster"})
_PORT = 6379


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """One server, one database of it, and how to get in. `path`: of a unix socket. `secure`: over TLS.

    `kind`: whether the server must be found first. Then `nodes` are those that are asked: sentinels for the primary
    called `service`, or nodes of a cluster.
    """

    host: str = "localhost"
    port: int = _PORT
    path: str | None = None
    secure: bool = False
    user: str | None = None
    password: str | None = None
    database: int = 0
    kind: Literal["server", "sentinel", "cluster"] = "server"
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_user: str | None = None
    sentinel_password: str | None = None

    def __str__(self) -> str:
        """The address without the passwords."""
        if self.path:
            return f"unix://{self.path}?db={self.database}"
        kind = "" if self.kind == "server" else f"+{self.kind}"
        nodes = ((self.host, self.port),) if self.kind == "server" else self.nodes
        hosts = ",".join(f"{host}:{port}" for host, port in nodes)
        service = f"/{self.service}" if self.kind == "sentinel" else ""
        return f"redis{'s' * self.secure}{kind}://{hosts}{service}/{self.database}"

    @property
    def login(self) -> tuple[str, ...]:
        """User and password for the server; nothing if there is no password."""
        return () if self.password is None else (self.user or "default", self.password)

    @property
    def sentinel_login(self) -> tuple[str, ...]:
        """User and password for the sentinels, which have users of their own."""
        return () if self.sentinel_password is None else (self.sentinel_user or "default", self.sentinel_password)


def parse_address(url: str) -> Address:
    """Read an address. Raises `ConfigurationError` for what is no address, or asks for something that is not
    supported.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"RedisServer needs an address such as redis://localhost:6379/0, but got {brief(url)}")
    scheme, _, finder = url.partition("://")[0].partition("+")
    if scheme != "unix":
        check_escaped("the address of RedisServer", url)
    if finder in _FINDERS and scheme in _PLAIN | _SECURE:
        return _parse_nodes(url, secure=scheme in _SECURE, is_sentinel=finder == "sentinel")
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
        query = parse_qs(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise ConfigurationError(f"the address of RedisServer cannot be read ({error})") from error
    is_socket = parts.scheme == "unix"
    if not is_socket and parts.scheme not in _PLAIN | _SECURE:
        what = f"that begins with {parts.scheme!r}" if "://" in url else "that does not begin with redis:// or its like"
        raise ConfigurationError(
            f"RedisServer cannot connect to an address {what}: use redis://HOST:PORT/DATABASE, "
            "rediss:// for TLS, unix:///PATH?db=DATABASE, redis+sentinel://HOST:PORT,HOST:PORT/NAME/DATABASE or "
            "redis+cluster://HOST:PORT,HOST:PORT"
        )
    _check_query(query, {"db"}, parts.fragment)
    if is_socket and not parts.path.strip("/"):
        raise ConfigurationError(
            "the address unix:// of RedisServer lacks the path of the socket: unix:///run/redis.sock"
        )
    number = query["db"][0] if "db" in query else "0" if is_socket else parts.path.strip("/") or "0"
    return Address(
        host=parts.hostname or "localhost",
        port=port,
        path=unquote(parts.path) if is_socket else None,
        secure=parts.scheme in _SECURE,
        user=None if parts.username is None else unquote(parts.username) or None,
        password=None if parts.password is None else unquote(parts.password),
        database=_to_database(number),
    )


def _parse_nodes(url: str, *, secure: bool, is_sentinel: bool) -> Address:
    """An address with several hosts, which are asked for the server."""
    where, _, rest = url.partition("://")[2].partition("?")
    hosts, *path = where.split("/")
    login, _, hosts = hosts.rpartition("@")
    user, colon, password = login.partition(":")
    query = parse_qs(rest, keep_blank_values=True)
    _check_query(query, {"sentinel_user", "sentinel_password"} if is_sentinel else set(), "")
    shape = (
        "redis+sentinel://HOST:PORT,HOST:PORT/NAME/DATABASE" if is_sentinel else "redis+cluster://HOST:PORT,HOST:PORT"
    )
    if len(path) > 1 + is_sentinel or (is_sentinel and not (path and path[0])):
        raise ConfigurationError(f"the address of RedisServer must be like {shape}")
    service = unquote(path.pop(0)) if is_sentinel else ""
    database = _to_database((path or [""])[0] or "0")
    if database and not is_sentinel:
        raise ConfigurationError(f"a cluster has no database but 0, but the address of RedisServer names {database}")
    return Address(
        secure=secure,
        user=unquote(user) or None,
        password=unquote(password) if colon else None,
        database=database,
        kind="sentinel" if is_sentinel else "cluster",
        nodes=tuple(_to_node(each, 26379 if is_sentinel else _PORT, shape) for each in hosts.split(",")),
        service=service,
        sentinel_user=query.get("sentinel_user", [None])[0],
        sentinel_password=query.get("sentinel_password", [None])[0],
    )


def _to_node(text: str, port: int, shape: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname:
            return parts.hostname, parts.port or port
    except ValueError:
        pass
    raise ConfigurationError(f"{text!r} is no host in the address of RedisServer: it must be like {shape}")


def _to_database(number: str) -> int:
    if not (number.isascii() and number.isdecimal()):
        raise ConfigurationError(f"the database in the address of RedisServer must be a number, but is {number!r}")
    return int(number)


def _check_query(query: Mapping[str, object], known: AbstractSet[str], fragment: str) -> None:
    unknown = query.keys() - known
    if unknown or fragment:
        raise ConfigurationError(
            f"the address of RedisServer has parameters that are not known: {', '.join(sorted(unknown)) or '#'}; the "
            f"only ones are {', '.join(sorted(known)) or 'none'}; other options are arguments of RedisServer"
        )


def context_for(address: Address, given: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """The TLS context: the given one, or one that checks the certificate and the name of the host."""
    if not address.secure:
        if given is not None:
            raise ConfigurationError(f"ssl_context is given, but {address} is not a TLS address: use rediss://")
        return None
    return given or ssl.create_default_context()
