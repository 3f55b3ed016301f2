import filmlet

for event in filmlet.stream("a fish moving right under the sea", steps=4):
    match event:
        case filmlet.Progress(stage, done, total):
            print(stage, done, "of", total)
        case filmlet.Preview(step, image):
            print("preview after step", step, image.shape)
        case filmlet.Frames(pixels):
            print(len(pixels), "finished frames")
