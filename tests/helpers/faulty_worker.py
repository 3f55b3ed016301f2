"""A worker with a faulty method: `python -m tests.helpers.faulty_worker CLASS.METHOD FAULT`."""

import sys
import time

from filmlet.cli import main as cli
from filmlet.jobs import worker

FAULTS = {
    "raise": lambda self: self.no_such_attribute,
    "sleep": lambda _: time.sleep(600),
}


def main() -> None:
    method, fault = sys.argv[1:]
    owner_name, _, name = method.partition(".")
    owner = getattr(worker, owner_name)
    assert callable(getattr(owner, name)), method
    setattr(owner, name, FAULTS[fault])
    sys.exit(cli.main(["worker"]))


if __name__ == "__main__":
    main()
