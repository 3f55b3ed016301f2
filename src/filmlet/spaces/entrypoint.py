"""Entry point of a Space's app.py: the page, on own hardware or on a GPU of ZeroGPU."""

import os
from dataclasses import replace
from pathlib import Path

from filmlet import server
from filmlet.api.anonymous_users import Visitors
from filmlet.core import logs
from filmlet.jobs.backup import run_with_backups
from filmlet.settings import Settings, SpaceEnvironment

BUCKET = Path("/data")  # where a Space has its bucket, if one is attached
FRAMED_BY = ("https://huggingface.co", "https://*.hf.space")
MOST_ACTIVE = 4  # unfinished clips of one visitor


def run(model: str = "pocket") -> None:
    """Serve until the platform stops us. model: that the page begins with."""
    hosting = SpaceEnvironment.from_environment()
    settings = space_settings(Settings.from_environment(), model)
    visitors = Visitors(is_persistent=settings.storage_url is not None, frame_ancestors=FRAMED_BY)
    logs.configure_logging("lines")
    with run_with_backups(settings):
        if hosting.is_zerogpu:
            from filmlet.spaces import zerogpu_app  # noqa: PLC0415 - loads the model before the page

            zerogpu_app.serve(settings, hosting, visitors)
            return
        serving = server.ServerConfig(
            host=hosting.host, port=hosting.port, is_open=True, visitors=visitors
        )
        server.serve(settings, serving)


def space_settings(settings: Settings, model: str, bucket: Path = BUCKET) -> Settings:
    """Return the settings of the environment, with a Space's defaults.

    Clips go into the bucket; the queue stays on the Space's own disk, for SQLite must.
    """
    usual = Settings()
    has_bucket = bucket.is_dir() and os.access(bucket, os.W_OK)
    return replace(
        settings,
        model=model if settings.model == usual.model else settings.model,
        storage_url=settings.storage_url or (str(bucket / "filmlet") if has_bucket else None),
        # One name for every container of this Space: the next takes up what the last one left.
        worker="space" if settings.worker == usual.worker else settings.worker,
        max_active=min(settings.max_active, MOST_ACTIVE),
        # Only the platform's proxy reaches a Space, and strangers come through it.
        forwarded_allow_ips="*",
        root_path="/",  # a Space has a name of its own
        metrics="off" if settings.metrics == usual.metrics else settings.metrics,
    )
