"""Keys of a server's users: shown once, stored as a hash, each with limits of its own."""

import hashlib
import secrets
from dataclasses import dataclass

from filmlet.core.request import validate_text
from filmlet.errors import InvalidRequest, UnknownKey
from filmlet.jobs.addresses import parse_webhook_url
from filmlet.jobs.database import Database, Row
from filmlet.jobs.rate_limits import Limits
from filmlet.settings import Settings


@dataclass(frozen=True)
class ApiKey:
    """A user's key. id: owner of its jobs. admin: may see all jobs."""

    id: str
    name: str
    admin: bool
    limits: Limits
    webhook: str | None
    created: float


@dataclass(frozen=True)
class CreatedApiKey:
    """A new key with its secrets, which are not stored."""

    key: ApiKey
    secret: str
    webhook_secret: str | None


class ApiKeyStore:
    """Stores the keys of one database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def add(
        self,
        name: str,
        *,
        admin: bool = False,
        limits: Limits | None = None,
        webhook: str | None = None,
    ) -> CreatedApiKey:
        """Create a key; default limits are the settings'. Raises InvalidRequest."""
        validate_text("name", name)
        if not name.strip():
            raise InvalidRequest("A key needs a name.", param="name")
        if webhook is not None:
            _check_webhook(webhook)
        secret = f"sk-{secrets.token_urlsafe(32)}"
        webhook_secret = f"whsec_{secrets.token_hex(24)}" if webhook else None
        key_limits = limits or Limits.from_settings(self.settings)
        key_limits.check()
        with self.database.transaction() as t:
            row = t.row(
                "insert into filmlet_key values (:id, :name, :hash, :admin, :max_active,"
                " :max_per_minute, :seconds_per_day, :webhook, :webhook_secret, {now})"
                " on conflict (name) do nothing returning *",
                id=f"key_{secrets.token_hex(8)}",
                name=name.strip(),
                hash=_hash_secret(secret),
                admin=int(admin),
                max_active=key_limits.max_active,
                max_per_minute=key_limits.max_per_minute,
                seconds_per_day=key_limits.seconds_per_day,
                webhook=webhook,
                webhook_secret=webhook_secret,
            )
        if row is None:
            raise InvalidRequest(f"There is a key named {name!r} already.", param="name")
        return CreatedApiKey(_key_from_row(row), secret, webhook_secret)

    def find_by_secret(self, secret: str) -> ApiKey | None:
        """Return the key of a secret, None if there is none."""
        with self.database.read() as t:
            row = t.row("select * from filmlet_key where hash = :hash", hash=_hash_secret(secret))
        return _key_from_row(row) if row else None

    def list_keys(self) -> list[ApiKey]:
        """Return all keys, oldest first."""
        with self.database.read() as t:
            return [
                _key_from_row(row) for row in t.rows("select * from filmlet_key order by created")
            ]

    def remove(self, name: str) -> None:
        """Remove a key; its jobs stay. Raises UnknownKey."""
        with self.database.transaction() as t:
            gone = t.row("delete from filmlet_key where name = :name returning id", name=name)
        if gone is None:
            raise UnknownKey(f"There is no key named {name!r}.")


def _check_webhook(url: str) -> None:
    try:
        parse_webhook_url(url)
    except ValueError as error:
        raise InvalidRequest(f"webhook: {error}", param="webhook") from error


def _hash_secret(secret: str) -> str:
    """Return the stored hash of a secret; a plain hash is enough for long random ones."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _key_from_row(row: Row) -> ApiKey:
    limits = Limits(row["max_active"], row["max_per_minute"], row["seconds_per_day"])
    admin = bool(row["admin"])
    return ApiKey(row["id"], row["name"], admin, limits, row["webhook"], row["created"])
