"""The HTTP API: OpenAI's Videos, events, health and metrics. The web process imports no torch."""

from filmlet.api.app import create_app

__all__ = ["create_app"]
