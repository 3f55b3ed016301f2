"""The same sentence with four seeds, side by side in one animated picture."""

import numpy as np
from PIL import Image

import filmlet

clips = [filmlet.generate("a purple star spinning under the sea", seed=s) for s in range(4)]
frames = np.concatenate([clip.frames for clip in clips], axis=2)
first, *rest = (Image.fromarray(frame) for frame in frames)
first.save("seeds.webp", save_all=True, append_images=rest, duration=42, loop=0)
