"""The studio: the web page people meet, a window on the queue's jobs; and the Space's API names."""

from filmlet.studio.mounting import launch, mount

__all__ = ["launch", "mount"]
