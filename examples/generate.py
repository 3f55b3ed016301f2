import filmlet

clip = filmlet.generate("a blue square growing under the sea", seed=3, size="256x256", seconds=1)
clip.save("square.mp4", force=True)  # or .webm, .gif, .webp; a notebook shows the clip itself
print(clip.frames.shape, clip.effective.seed, clip.effective.changes)
