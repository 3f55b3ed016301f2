"""What a process of ours may take at most, kept by the kernel where it knows such limits."""

from contextlib import suppress


def limit_process(**limits: int) -> None:
    """Limit this process from now on, and what it starts; it leaves no dump of its memory.

    limits: by their names in `resource`, without RLIMIT_: CPU in seconds, AS and FSIZE in bytes,
    NOFILE in files. On Windows there are none: time is limited by the process that waits.
    """
    try:
        import resource
    except ImportError:
        return
    for name, most in (limits | {"CORE": 0}).items():
        with suppress(ValueError, OSError):  # a system that does not know or keep one
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
