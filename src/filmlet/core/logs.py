"""What a server tells of itself: lines for people, or one JSON object a line for programs."""

import json
import logging
import time

LINES = "%(asctime)s %(message)s"


class JsonLines(logging.Formatter):
    """time (seconds since 1970), level, logger, message, and the job that it is about."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := getattr(record, "job", None):
            told["job"] = job
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def begin(form: str, *, quiet: bool = False) -> None:
    """Log to stderr, as `lines` or as `json`; libraries speak from warnings on."""
    handler = logging.StreamHandler()
    plain = logging.Formatter(LINES)
    plain.converter = time.localtime
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # A connection that was dropped is told once, as DatabaseUnusable; the pool adds its trace.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    logging.getLogger("filmlet").setLevel(logging.WARNING if quiet else logging.INFO)
