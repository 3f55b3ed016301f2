"""Light and two differences of colour, as encoders take them: ITU-R BT.709-6, section 3."""

import numpy as np

LIGHT = 0.2126, 0.7152, 0.0722  # what red, green and blue add to it
BYTE = 255.0
# Y, Cb and Cr in bytes of the range of television, of red, green and blue in bytes.
DARKEST, BRIGHTEST = 16.0, (235.0, 240.0, 240.0)
OFFSETS = DARKEST, 128.0, 128.0


def _mix() -> tuple[tuple[float, ...], ...]:
    light = np.array(LIGHT)
    blue, red = ((np.eye(3)[i] - light) / (1 - light[i]) for i in (2, 0))
    scales = (top - offset for top, offset in zip(BRIGHTEST, OFFSETS, strict=True))
    rows = zip((light, blue, red), scales, strict=True)
    return tuple(tuple(map(float, row * scale / BYTE)) for row, scale in rows)


MIX = _mix()
