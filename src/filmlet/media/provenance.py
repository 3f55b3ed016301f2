"""What a clip's file says about itself."""

import json

from filmlet.request import Effective


def tags(effective: Effective) -> dict[str, str]:
    """Metadata for any container; nothing in it depends on the time or the machine's paths."""
    made_by = f"filmlet with {effective.model} (revision {effective.revision})"
    return {
        "title": effective.prompt,
        "comment": f"AI-generated video, made by {made_by}.",
        "provenance": "AI-generated",
        "prompt": effective.prompt,
        "seed": str(effective.seed),
        "model": effective.model,
        "revision": effective.revision,
        "effective": json.dumps(effective.as_json(), ensure_ascii=False, sort_keys=True),
    }
