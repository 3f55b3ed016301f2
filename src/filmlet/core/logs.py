"""The log of a server: lines for people, or one JSON object a line for programs."""

import json
import logging
import time

TEXT_FORMAT = "%(asctime)s %(message)s"


class JsonFormatter(logging.Formatter):
    """time (seconds since 1970), level, logger, message, and the job that it is about."""

    def format(self, record: logging.LogRecord) -> str:
        record_json: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := getattr(record, "job", None):
            record_json["job"] = job
        if record.exc_info:
            record_json["trace"] = self.formatException(record.exc_info)
        return json.dumps(record_json, ensure_ascii=False)


def configure_logging(form: str, *, quiet: bool = False) -> None:
    """Log to stderr, as `lines` or as `json`; libraries speak from warnings on."""
    handler = logging.StreamHandler()
    plain = logging.Formatter(TEXT_FORMAT)
    plain.converter = time.localtime
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # A connection that was dropped is told once, as DatabaseUnusable; the pool adds its trace.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    logging.getLogger("filmlet").setLevel(logging.WARNING if quiet else logging.INFO)
