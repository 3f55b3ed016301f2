"""`filmlet enhance`, and `--enhance` of the commands that take a clip."""

import argparse
import sys
from typing import TYPE_CHECKING

from filmlet.cli.options import Commands, add_enhancer_option, add_model_option
from filmlet.cli.process import print_out, to_json

if TYPE_CHECKING:
    from filmlet.core.enhanced_prompt import EnhancedPrompt
    from filmlet.core.request import ClipRequest


def add_commands(commands: Commands) -> None:
    """Add `enhance`."""
    command = commands.add_parser(
        "enhance", help="write a prompt in words that a model understands best; make no clip"
    )
    command.set_defaults(run=enhance)
    command.add_argument("prompt", help="what to show")
    add_model_option(command)
    add_enhancer_option(command)
    command.add_argument("--json", action="store_true", help="print one JSON object")


def enhance(options: argparse.Namespace) -> int:
    """Print the enhanced prompt alone."""
    from filmlet.enhancers import enhance_prompt

    enhanced = enhance_prompt(options.prompt, options.model, enhancer=options.enhancer)
    table = {
        "prompt": enhanced.requested,
        "enhanced_prompt": enhanced.text,
        "source": enhanced.source,
    }
    print(to_json(table) if options.json else enhanced.text)
    return 0


def enhance_clip_request(request: "ClipRequest", options: argparse.Namespace) -> "ClipRequest":
    """Return the request as `--enhance` and `--enhancer` want it; tell on stderr what is used.

    Raises what `enhance_prompt` raises.
    """
    if not options.enhance and not options.enhancer:
        return request
    from filmlet.enhancers import enhance_request, read_settings

    request = enhance_request(request, read_settings(options.enhancer))
    for prompt in () if options.json else request.enhanced_prompts:
        print_out(_describe(prompt), sys.stderr)
    return request


def _describe(prompt: "EnhancedPrompt") -> str:
    asked = f"asked: {prompt.requested}"
    return f"{asked}\nused:  {prompt.text}\n       (enhanced by {prompt.source})"
