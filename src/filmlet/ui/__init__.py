"""The web page over the queue, and the API names of the LTX Space."""

from filmlet.ui.mount import launch, mount

__all__ = ["launch", "mount"]
