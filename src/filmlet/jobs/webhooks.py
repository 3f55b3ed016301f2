"""Webhooks: a signed request when a job has ended, retried with growing delays.

Signed as https://www.standardwebhooks.com says; the body is OpenAI's event. A delivery is a
workflow of its own, put into its queue by the statement that ends the job.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from dataclasses import dataclass

import httpx2

from filmlet.jobs.addresses import parse_webhook_url, resolve_public_address
from filmlet.jobs.database import Database, Reader, Transaction
from filmlet.jobs.job import Status
from filmlet.settings import Settings

log = logging.getLogger("filmlet.webhooks")

QUEUE, WORKFLOW = "filmlet_webhooks", "filmlet_webhook"
APPLICATION_VERSION = "1"
RETRY_DELAYS_S = (5.0, 30.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)  # before each further attempt
TIMEOUT_S = 10.0  # from the look-up of the name to the status of the answer


@dataclass(frozen=True)
class WebhookTarget:
    """URL and signing secret of an owner."""

    url: str
    secret: str


def enqueue_webhook(t: Transaction, database: Database, settings: Settings, job: str) -> None:
    """Enqueue the delivery for an ended job if its owner has a webhook."""
    if _find_webhook_target(t, settings, job):
        _enqueue(t, database, job, 0)


def deliver(database: Database, settings: Settings, job: str, attempt: int) -> bool:
    """Try to deliver once, and enqueue the next attempt on failure; return whether it worked."""
    with database.read() as t:
        row = t.row("select id, run, status, finished from filmlet_job where id = :id", id=job)
        hook = _find_webhook_target(t, settings, job)
    if row is None or hook is None or not Status(row["status"]).is_final:
        return False
    about = {"job": job}
    kind = "completed" if row["status"] == Status.COMPLETED else "failed"
    event = f"evt_{job}_{row['run']}"
    payload = {
        "id": event,
        "object": "event",
        "type": f"video.{kind}",
        "created_at": int(row["finished"]),
        "data": {"id": job},
    }
    body = json.dumps(payload, separators=(",", ":")).encode()
    try:
        post(hook, event, body, allow_private=bool(settings.webhook_private))
    except (httpx2.HTTPError, OSError, ValueError) as error:
        if attempt < len(RETRY_DELAYS_S):
            log.warning("%s: webhook, attempt %d: %s", job, attempt + 1, error, extra=about)
            with database.transaction() as t:
                _enqueue(t, database, job, attempt + 1)
        else:
            log.error("%s: webhook given up: %s", job, error, extra=about)
        return False
    log.info("%s: webhook told %s", job, payload["type"], extra=about)
    return True


def post(hook: WebhookTarget, event: str, body: bytes, *, allow_private: bool) -> None:
    """Send one signed event. Raises HTTPError, OSError, ValueError."""
    try:
        asyncio.run(_post(hook, event, body, allow_private))
    except TimeoutError as error:
        raise ValueError(f"no answer within {TIMEOUT_S:g} s") from error


async def _post(hook: WebhookTarget, event: str, body: bytes, allow_private: bool) -> None:
    """Post within TIMEOUT_S in all: a receiver that answers byte by byte blocks nothing."""
    url = parse_webhook_url(hook.url)
    now = str(int(time.time()))
    headers = {
        "host": url.netloc.decode(),
        "content-type": "application/json",
        "user-agent": "filmlet",
        "webhook-id": event,
        "webhook-timestamp": now,
        "webhook-signature": sign(hook.secret, event, now, body),
    }
    async with asyncio.timeout(TIMEOUT_S):
        # To the very address that was checked: a name may lead elsewhere when it is asked again.
        address = await resolve_public_address(url, allow_private=allow_private)
        target = url.copy_with(host=address)
        names = {"sni_hostname": url.raw_host.decode()}  # the name that the certificate must have
        async with (
            httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream(
                "POST", target, content=body, headers=headers, follow_redirects=False,
                extensions=names,
            ) as answer,
        ):  # fmt: skip
            if not answer.is_success:  # its body is never read
                raise ValueError(f"answered {answer.status_code}")


def sign(secret: str, event: str, timestamp: str, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over id, timestamp and body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{event}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def _find_webhook_target(t: Reader, settings: Settings, job: str) -> WebhookTarget | None:
    """Return the webhook of the owner's key, else the server's."""
    row = t.row(
        "select k.webhook, k.webhook_secret from filmlet_job j"
        " join filmlet_key k on k.id = j.owner where j.id = :id",
        id=job,
    )
    if row and row["webhook"]:
        return WebhookTarget(row["webhook"], row["webhook_secret"])
    if settings.webhook_url and settings.webhook_secret:
        return WebhookTarget(settings.webhook_url, settings.webhook_secret)
    return None


def _enqueue(t: Transaction, database: Database, job: str, attempt: int) -> None:
    from dbos import WorkflowSerializationFormat

    pause = {"delay_seconds": RETRY_DELAYS_S[attempt - 1]} if attempt else {}
    database.client.enqueue_in_transaction(
        t.connection,
        {
            "queue_name": QUEUE,
            "workflow_name": WORKFLOW,
            "app_version": APPLICATION_VERSION,
            "serialization_type": WorkflowSerializationFormat.PORTABLE,
            **pause,  # type: ignore[typeddict-item]
        },
        job,
        attempt,
    )
