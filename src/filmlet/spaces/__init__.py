"""Deployment to Hugging Face Spaces, and the entry point there."""

__all__ = ["run"]


def __getattr__(name: str) -> object:
    """`run` imports the server when it is asked for: who only writes a Space's files needs none."""
    if name != "run":
        raise AttributeError(f"module 'filmlet.spaces' has no attribute {name!r}")
    from filmlet.spaces.entrypoint import run

    return run
