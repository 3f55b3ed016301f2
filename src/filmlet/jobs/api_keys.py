"""Keys of a server's users: shown once, stored as a hash, each with limits of its own."""

import hashlib
import secrets
from dataclasses import dataclass

from filmlet.core.prompts import check_text
from filmlet.errors import InvalidRequest, UnknownKey
from filmlet.jobs.addresses import parse_webhook_url
from filmlet.jobs.database import Database, Row
from filmlet.jobs.rate_limits import Limits
from filmlet.settings import Settings


@dataclass(frozen=True)
class Key:
    """Who may ask for clips. id: the owner of this key's jobs; admins see everybody's jobs."""

    id: str
    name: str
    admin: bool
    limits: Limits
    webhook: str | None
    created: float


@dataclass(frozen=True)
class Granted:
    """A new key with what is shown only once."""

    key: Key
    secret: str
    webhook_secret: str | None


class Keys:
    """The keys of one database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def add(
        self,
        name: str,
        *,
        admin: bool = False,
        limits: Limits | None = None,
        webhook: str | None = None,
    ) -> Granted:
        """Make a key; what `limits` leaves out is the settings'. Raises InvalidRequest."""
        check_text("name", name)
        if not name.strip():
            raise InvalidRequest("A key needs a name.", param="name")
        if webhook is not None:
            _check_webhook(webhook)
        secret = f"sk-{secrets.token_urlsafe(32)}"
        webhook_secret = f"whsec_{secrets.token_hex(24)}" if webhook else None
        own = limits or Limits.of(self.settings)
        own.check()
        with self.database.transaction() as t:
            row = t.row(
                "insert into filmlet_key values (:id, :name, :hash, :admin, :max_active,"
                " :max_per_minute, :seconds_per_day, :webhook, :webhook_secret, {now})"
                " on conflict (name) do nothing returning *",
                id=f"key_{secrets.token_hex(8)}", name=name.strip(), hash=_hash(secret),
                admin=int(admin), max_active=own.max_active, max_per_minute=own.max_per_minute,
                seconds_per_day=own.seconds_per_day, webhook=webhook,
                webhook_secret=webhook_secret,
            )  # fmt: skip
        if row is None:
            raise InvalidRequest(f"There is a key named {name!r} already.", param="name")
        return Granted(_key(row), secret, webhook_secret)

    def find(self, secret: str) -> Key | None:
        """Whose secret this is."""
        with self.database.reading() as t:
            row = t.row("select * from filmlet_key where hash = :hash", hash=_hash(secret))
        return _key(row) if row else None

    def all(self) -> list[Key]:
        """Every key, the oldest first."""
        with self.database.reading() as t:
            return [_key(row) for row in t.rows("select * from filmlet_key order by created")]

    def remove(self, name: str) -> None:
        """A removed key opens nothing from now on; its jobs stay. Raises UnknownKey."""
        with self.database.transaction() as t:
            gone = t.row("delete from filmlet_key where name = :name returning id", name=name)
        if gone is None:
            raise UnknownKey(f"There is no key named {name!r}; `filmlet keys` lists them.")


def _check_webhook(url: str) -> None:
    try:
        parse_webhook_url(url)
    except ValueError as error:
        raise InvalidRequest(f"webhook: {error}", param="webhook") from error


def _hash(secret: str) -> str:
    """Secrets are long and random: a plain hash cannot be guessed back."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row) -> Key:
    limits = Limits(row["max_active"], row["max_per_minute"], row["seconds_per_day"])
    admin = bool(row["admin"])
    return Key(row["id"], row["name"], admin, limits, row["webhook"], row["created"])
