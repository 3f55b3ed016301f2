"""The studio: the web page people meet, a window on the queue's jobs; and the Space's API names."""

from filmlet.ui.mount import launch, mount

__all__ = ["launch", "mount"]
