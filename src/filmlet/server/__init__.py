"""One machine's server: the web process, its limits on connections, and a supervised worker."""

from filmlet.server.serving import ServerConfig, serve

__all__ = ["ServerConfig", "serve"]
