"""What pocket is told: scenarios and sentences that describe them, some of them held out."""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from recipe.world import COLOURS, EMOJI, MOTIONS, SCENES, SHAPES, SUBJECTS, Scenario

HELD_OUT = 8  # one combination of subject, motion and scene in this many is never trained on
OFTEN = {"spinning": 3}  # how often a motion is drawn in training, 1 by default: it blurs most

NOUNS: dict[str, Sequence[str]] = {
    "cat": ("cat", "kitten", "kitty"),
    "dog": ("dog", "puppy"),
    "panda": ("panda", "panda bear"),
    "frog": ("frog", "toad"),
    "pig": ("pig", "piglet"),
    "penguin": ("penguin",),
    "octopus": ("octopus", "squid"),
    "butterfly": ("butterfly",),
    "fish": ("fish", "tropical fish"),
    "car": ("car", "automobile"),
    "rocket": ("rocket", "spaceship"),
    "apple": ("apple",),
    "banana": ("banana",),
    "sunflower": ("sunflower", "flower"),
    "tree": ("tree", "pine tree", "fir"),
    "mushroom": ("mushroom", "toadstool"),
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
MOTION_WORDS: dict[str, Sequence[str]] = {
    "left": ("moving left", "gliding to the left", "moving to the left", "going left"),
    "right": ("moving right", "gliding to the right", "moving to the right", "going right"),
    "up": ("rising", "moving up", "going up", "floating upwards"),
    "down": ("falling", "moving down", "going down", "sinking"),
    "still": ("standing still", "resting", "not moving", "staying still"),
    "spinning": ("spinning", "rotating", "turning around"),
    "growing": ("growing", "getting bigger", "getting larger", "expanding"),
    "bouncing": ("bouncing", "jumping", "hopping", "bouncing up and down"),
}
SCENE_WORDS: dict[str, Sequence[str]] = {
    "white": ("on a white background", "on white", "in front of a white wall"),
    "black": ("on a black background", "on black", "in the dark"),
    "sky": ("in the blue sky", "in the sky", "among the clouds"),
    "night": ("in a starry night", "at night", "under the stars"),
    "grass": ("on green grass", "on a meadow", "on a lawn", "in a green field"),
    "sea": ("under the sea", "underwater", "in the ocean"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening"),
}
ARTICLES = ("a", "the", "one")
ORDERS = (
    "{subject} {motion} {scene}",
    "{subject} {motion}, {scene}",
    "{scene}, {subject} {motion}",
    "{subject} {scene}, {motion}",
    "{subject} is {motion} {scene}",
)


@dataclass(frozen=True)
class Example:
    """A scenario and one way to say it."""

    scenario: Scenario
    prompt: str


def is_held_out(scenario: Scenario) -> bool:
    """The same answer on every machine: a checksum of the combination decides."""
    name = f"{scenario.subject}/{scenario.motion}/{scenario.scene}"
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def combinations(held_out: bool) -> list[Scenario]:
    """Every visible combination of one side of the split."""
    everything = (Scenario(*names) for names in product(SUBJECTS, MOTIONS, SCENES))
    return [s for s in everything if s.is_visible and is_held_out(s) == held_out]


def examples(seed: int, held_out: bool = False) -> Iterator[Example]:
    """Endless examples; emoji come as often as shapes, all combinations pass before one repeats."""
    choice = random.Random(f"{seed}/{held_out}")
    pools: list[list[Scenario]] = [[], []]
    while True:
        side = choice.randrange(2)
        if not pools[side]:
            pools[side] = [s for s in combinations(held_out) if (s.subject in EMOJI) == bool(side)]
            choice.shuffle(pools[side])
        yield _with_accidents(pools[side].pop(), choice)


def draw(choice: random.Random) -> Example:
    """One training example; the same state of `choice` gives the same one."""
    pool = _training()[choice.randrange(2)]
    return _with_accidents(choice.choice(pool), choice)


@cache
def _training() -> tuple[list[Scenario], list[Scenario]]:
    """The training combinations: of shapes, of emoji."""
    seen = [s for s in combinations(held_out=False) for _ in range(OFTEN.get(s.motion, 1))]
    return [s for s in seen if s.subject not in EMOJI], [s for s in seen if s.subject in EMOJI]


def _with_accidents(plain: Scenario, choice: random.Random) -> Example:
    shift = (choice.uniform(-8, 8), choice.uniform(-8, 8))
    scenario = replace(plain, shift=shift, scale=choice.uniform(0.9, 1.1))
    return Example(scenario, describe(scenario, choice))


def describe(scenario: Scenario, choice: random.Random) -> str:
    """One of the many ways to say what happens; a still subject may go without a verb."""
    *colour, noun = scenario.subject.split()
    spoken = choice.choice(NOUNS[noun])
    words = [choice.choice(ARTICLES), *colour, spoken]
    if words[0] == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    motion = choice.choice(MOTION_WORDS[scenario.motion])
    order = choice.choice(ORDERS)
    if scenario.motion == "still" and choice.random() < 0.3:
        motion, order = "", "{subject} {scene}"
    return order.format(
        subject=" ".join(words), motion=motion, scene=choice.choice(SCENE_WORDS[scenario.scene])
    )


def vocabulary() -> list[str]:
    """Every word that a description can contain, sorted."""
    texts = [*ARTICLES, "an", "is", *COLOURS, *SHAPES]
    for table in (NOUNS, MOTION_WORDS, SCENE_WORDS):
        for phrases in table.values():
            texts.extend(phrases)
    return sorted({word for text in texts for word in text.split()})
