"""`python -m conformance http://127.0.0.1:7860/v1 --size 256x256`: a line a promise.

Needs `pip install openai`; the JavaScript client as well with `--javascript` and Node 22 or newer.
"""

import argparse
import sys
import warnings

from conformance.checks import CHECKS, Server
from conformance.javascript import javascript


def main() -> int:
    options = argparse.ArgumentParser(prog="conformance", description=__doc__)
    options.add_argument("url", help="the server's address, with /v1")
    options.add_argument("--key", default="none", help="the key to send")
    options.add_argument("--model", default="pocket")
    options.add_argument("--size", default="64x64", help="a size the model can make")
    options.add_argument("--seconds", default="1", help="a length the model can make")
    options.add_argument("--javascript", action="store_true", help="ask the JavaScript client too")
    chosen = options.parse_args()
    warnings.filterwarnings("ignore", "The Sora API", DeprecationWarning)
    server = Server(chosen.url, chosen.key, chosen.model, chosen.size, chosen.seconds)
    broken = 0
    for check in [*CHECKS, *([javascript] if chosen.javascript else [])]:
        promise = (check.__doc__ or check.__name__).split("\n")[0]
        try:
            check(server)
            print(f"ok      {promise}")
        except Exception as error:  # whatever a server does, the next promise is asked too
            broken += 1
            print(f"BROKEN  {promise}\n        {type(error).__name__}: {error}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
