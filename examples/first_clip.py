"""One clip, saved, with what was really done."""

import filmlet

clip = filmlet.generate("a butterfly rising on green grass", seed=4)
path = clip.save("butterfly.mp4", force=True)
print(path, clip.effective.shape, clip.timings)
