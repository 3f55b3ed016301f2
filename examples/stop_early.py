"""Watch the previews and stop when enough has been seen."""

from contextlib import closing

import filmlet

with closing(filmlet.stream("a car moving right at sunset", seed=1)) as events:
    for event in events:
        if isinstance(event, filmlet.Preview):
            print(f"after step {event.step}: mean colour {event.image.mean((0, 1)).round()}")
            if event.step == 4:
                break  # closing the stream stops the work
