"""Tags of a clip's file: its request and how it was made."""

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from xml.sax.saxutils import quoteattr

from filmlet.core.effective import EffectiveSettings
from filmlet.core.shape import Change

# A term of IPTC for what a model made that was trained on sampled content.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:dc="http://purl.org/dc/elements/1.1/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " dc:description={description} Iptc4xmpExt:DigitalSourceType={source}/>"
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
TAGS = (  # names of those that a clip can have
    "license", "title", "comment", "provenance", "prompt", "seed", "model", "revision", "effective",
)  # fmt: skip
XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes  # XMP specification, part 3
GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
# Whoever skips blocks by their lengths lands on the end, wherever in the packet he begins.
GIF_XMP_END = b"\x01" + bytes(range(255, -1, -1)) + b"\0\0"


def metadata_tags(effective: EffectiveSettings) -> dict[str, str]:
    """Metadata for any container; nothing in it depends on the time or the machine's paths."""
    table = effective.as_json()
    # How the model was held is not of the clip: the same seed gives the same bytes however it was.
    del table["offload"]
    table["changes"] = [asdict(c) for c in effective.changes if c.field != "offload"]
    made_by = f"filmlet with {effective.model} (revision {effective.revision})"
    terms = {"license": effective.model_terms} if effective.model_terms else {}
    return terms | {
        "title": effective.prompt,
        "comment": f"AI-generated video, made by {made_by}.",
        "provenance": "AI-generated",
        "prompt": effective.prompt,
        "seed": str(effective.seed),
        "model": effective.model,
        "revision": effective.revision,
        "effective": json.dumps(table, ensure_ascii=False, sort_keys=True),
    }


def tags_after_conversion(tags: dict[str, str], changes: Sequence[Change]) -> dict[str, str]:
    """Return the tags of a clip for a file that holds less of it, which its settings say.

    changes: what `format_changes` names.
    """
    with suppress(ValueError):  # settings of another program, or of none
        table = json.loads(tags["effective"])
        if changes and isinstance(table, dict):
            table.pop("audio", None)
            table["changes"] = [*table.get("changes", ()), *map(asdict, changes)]
            text = json.dumps(table, ensure_ascii=False, sort_keys=True)
            return tags | {"effective": text}
    return tags


def xmp_packet(description: str) -> str:
    """XMP that says what the file is, and how it came about (IPTC DigitalSourceType)."""
    return XMP.format(description=quoteattr(description), source=quoteattr(SOURCE_TYPE))


def xmp_mp4_box(packet: str) -> bytes:
    """Return a box for the end of an MP4."""
    body = XMP_BOX + packet.encode()
    return (8 + len(body)).to_bytes(4) + b"uuid" + body


def xmp_gif_block(packet: str) -> bytes:
    """Return an extension for a GIF, in front of its trailer."""
    return GIF_XMP + packet.encode() + GIF_XMP_END
