"""Answers of the decoder: lines of JSON, some of them with pixels behind them."""

from typing import Any

Message = tuple[dict[str, Any], Any]  # a line, and the pixels behind it


class Unfit(Exception):
    """Why the file is not decoded."""
