"""One machine's server: the web process, its limits on connections, and a supervised worker."""

from filmlet.server.serving import Serving, serve

__all__ = ["Serving", "serve"]
