"""The process that converts a clip for a server: `python -m filmlet.media.converter ORDER`.

ORDER is JSON: source and target (paths), cpu_s, memory_bytes, file_bytes. What went wrong is
written to stdout as JSON: code and message.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from filmlet.errors import FilmletError, OutOfMemory
from filmlet.media.conversion import convert_clip
from filmlet.media.process_limits import limit_process

NICE = 10  # after everything else of the machine that makes clips or answers


def main() -> int:
    """Convert one clip; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits, and kills this
    order = json.loads(sys.argv[1])
    with suppress(AttributeError, OSError):  # Windows has none
        os.nice(NICE)
    limit_process(CPU=order["cpu_s"], AS=order["memory_bytes"], FSIZE=order["file_bytes"])
    try:
        convert_clip(Path(order["source"]), Path(order["target"]))
    except FilmletError as error:
        sys.stdout.write(json.dumps({"code": error.code, "message": str(error)}))
        return 1
    except MemoryError:
        sys.stdout.write(json.dumps({"code": OutOfMemory.code, "message": ""}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
