"""What a clip's file says about itself."""

import json
from dataclasses import asdict

from filmlet.core.effective import EffectiveSettings


def metadata_tags(effective: EffectiveSettings) -> dict[str, str]:
    """Metadata for any container; nothing in it depends on the time or the machine's paths."""
    table = effective.as_json()
    # How the model was held is not of the clip: the same seed gives the same bytes however it was.
    del table["offload"]
    table["changes"] = [asdict(c) for c in effective.changes if c.field != "offload"]
    made_by = f"filmlet with {effective.model} (revision {effective.revision})"
    return {
        "title": effective.prompt,
        "comment": f"AI-generated video, made by {made_by}.",
        "provenance": "AI-generated",
        "prompt": effective.prompt,
        "seed": str(effective.seed),
        "model": effective.model,
        "revision": effective.revision,
        "effective": json.dumps(table, ensure_ascii=False, sort_keys=True),
    }
