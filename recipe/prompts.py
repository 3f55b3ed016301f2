"""What pocket is told: scenarios and sentences that describe them, some of them held out."""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

from recipe.renderer import (
    COLOURED,
    COLOURS,
    EMOJI,
    MOTIONS,
    MOTIONS_WITH_SIZE,
    MOTIONS_WITH_SPEED,
    SIZES,
    SPEEDS,
    SUBJECTS,
    Actor,
    Scenario,
)
from recipe.scenery import SCENES

HELD_OUT = 8  # one combination of subject, motion and scene in this many is never trained on
MOTION_WEIGHTS = {
    "spinning": 2
}  # how often a motion is drawn in training, 1 by default: it blurs most
EMOJI_SHARE = 0.6  # of single subjects; the others are shapes and silhouettes in a colour
PAIRS = 0.0  # share of clips with two subjects: with 0.2 none learned which does what
SIZED_SHARE, PACED_SHARE = 0.25, 0.3  # of single subjects, where their motion allows it
NO_SCENE_SHARE = 0.08  # share of sentences that leave the scene open

# A subject is also called these; its own name comes first.
SYNONYMS: dict[str, Sequence[str]] = {
    "cat": ("kitten", "kitty"),
    "dog": ("puppy",),
    "panda": ("panda bear",),
    "frog": ("toad",),
    "pig": ("piglet",),
    "fish": ("tropical fish",),
    "rabbit": ("bunny",),
    "cow": ("cattle",),
    "monkey": ("ape",),
    "turtle": ("tortoise",),
    "bee": ("bumblebee",),
    "ladybug": ("ladybird", "beetle"),
    "chick": ("chicken",),
    "dinosaur": ("brontosaurus",),
    "sheep": ("lamb",),
    "horse": ("pony",),
    "mouse": ("rat",),
    "car": ("automobile",),
    "rocket": ("spaceship",),
    "truck": ("lorry",),
    "airplane": ("plane", "aeroplane"),
    "boat": ("sailboat", "ship"),
    "cherries": ("cherry",),
    "hamburger": ("burger",),
    "sunflower": ("flower",),
    "tree": ("pine tree", "fir"),
    "mushroom": ("toadstool",),
    "snowman": ("snow man",),
    "gift": ("present", "parcel"),
    "house": ("home",),
    "clock": ("alarm clock",),
    "circle": ("ball", "disc"),
    "square": ("box",),
    "moon": ("crescent",),
    "smiley": ("smiley face",),
    "bird": ("dove",),
}
MOTION_WORDS: dict[str, Sequence[str]] = {
    "left": ("moving left", "gliding to the left", "moving to the left", "going left"),
    "right": ("moving right", "gliding to the right", "moving to the right", "going right"),
    "up": ("rising", "moving up", "going up", "floating upwards"),
    "down": ("falling", "moving down", "going down", "sinking"),
    "diagonal": ("drifting diagonally", "moving diagonally", "flying diagonally"),
    "still": ("standing still", "resting", "not moving", "staying still"),
    "spinning": ("spinning", "rotating", "turning around"),
    "growing": ("growing", "getting bigger", "getting larger", "expanding"),
    "shrinking": ("shrinking", "getting smaller"),
    "bouncing": ("bouncing", "jumping", "hopping", "bouncing up and down"),
    "shaking": ("shaking", "trembling", "wobbling"),
    "circling": ("flying in a circle", "circling", "moving in a circle", "going round in a circle"),
}
VERBS = {
    "moving": "moves", "gliding": "glides", "going": "goes", "rising": "rises",
    "floating": "floats", "falling": "falls", "sinking": "sinks", "drifting": "drifts",
    "flying": "flies", "standing": "stands", "resting": "rests", "not": "is not",
    "staying": "stays", "spinning": "spins", "rotating": "rotates", "turning": "turns",
    "growing": "grows", "getting": "gets", "expanding": "expands", "shrinking": "shrinks",
    "bouncing": "bounces", "jumping": "jumps", "hopping": "hops", "shaking": "shakes",
    "trembling": "trembles", "wobbling": "wobbles", "circling": "circles",
}  # fmt: skip
SCENE_WORDS: dict[str, Sequence[str]] = {
    "white": ("on a white background", "on white", "in front of a white wall"),
    "black": ("on a black background", "on black", "in the dark"),
    "sky": ("in the blue sky", "in the sky", "among the clouds"),
    "night": ("in a starry night", "at night", "under the stars"),
    "grass": ("on green grass", "on a meadow", "on a lawn", "in a green field"),
    "sea": ("under the sea", "underwater", "in the ocean"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening"),
    "rain": ("in the rain", "on a rainy day", "in heavy rain"),
    "city": ("in a city at night", "in the city", "over the city at night", "in town"),
    "forest": ("in a forest", "in the woods", "among the trees"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "desert": ("in the desert", "on a sand dune", "on the sand"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "": ("",), "big": ("big", "large", "huge")}
SPEED_WORDS = {"slowly": ("slowly",), "": ("",), "quickly": ("quickly", "fast", "rapidly")}
ARTICLES = ("a", "the", "one")
# Sentences: one side to train with, the other only to be judged with.
TEMPLATES = {
    False: (
        "{who} {motion} {scene}",
        "{who} {motion}, {scene}",
        "{scene}, {who} {motion}",
        "{who} {scene}, {motion}",
        "{who} is {motion} {scene}",
        "{who} {moves} {scene}",
        "there is {who} {motion} {scene}",
        "{scene} {who} {moves}",
    ),
    True: (
        "{who} is {motion}, {scene}",
        "{scene}, {who} is {motion}",
        "{who} {scene} {moves}",
        "{scene} there is {who} {motion}",
    ),
}
PAIR_ORDERS = {
    False: (
        "{first} and {second} {scene}",
        "{first} and {second}, {scene}",
        "{scene}, {first} and {second}",
        "{first}, {second}, {scene}",
    ),
    True: ("{scene} {first}, {second}", "{first} {scene} and {second}"),
}
CLAUSES = ("{who} {motion}", "{who} {motion}", "{who} is {motion}", "{who} {moves}")


@dataclass(frozen=True)
class Example:
    """A scenario and one way to say it."""

    scenario: Scenario
    prompt: str


def is_held_out(scenario: Scenario) -> bool:
    """The same answer on every machine: a checksum of the combination decides."""
    parts = [f"{a.subject}/{a.motion}" for a in scenario.actors]
    return zlib.crc32("/".join([*parts, scenario.scene]).encode()) % HELD_OUT == 0


def combinations(held_out: bool) -> list[Scenario]:
    """Every visible combination of one subject, motion and scene on one side of the split."""
    pairs = ((Actor(s, m), scene) for s, m, scene in product(SUBJECTS, MOTIONS, SCENES))
    everything = (Scenario((actor,), scene) for actor, scene in pairs if actor.is_visible)
    return [s for s in everything if is_held_out(s) == held_out]


def examples(seed: int, held_out: bool = False, pairs: float = PAIRS) -> Iterator[Example]:
    """Endless examples; the held-out ones are also worded as no training example is."""
    choice = random.Random(f"{seed}/{held_out}")
    while True:
        yield draw(choice, held_out, pairs)


def draw(choice: random.Random, held_out: bool = False, pairs: float = PAIRS) -> Example:
    """One example, three of five times an emoji; `choice` alone decides which.

    pairs: share of examples with two subjects.
    """
    if choice.random() < pairs:
        scenario = _pair(choice, held_out)
    else:
        scenario = choice.choice(_singles(held_out)[choice.random() < EMOJI_SHARE])
        (actor,) = scenario.actors
        scenario = replace(scenario, actors=(_jitter(_with_size_or_speed(actor, choice), choice),))
    return Example(scenario, describe(scenario, choice, held_out))


@cache
def _singles(held_out: bool) -> tuple[list[Scenario], list[Scenario]]:
    """The combinations of coloured subjects and those of emoji, as often as they are drawn."""
    often = [
        s for s in combinations(held_out) for _ in range(MOTION_WEIGHTS.get(s.actors[0].motion, 1))
    ]  # fmt: skip
    is_emoji = [s.actors[0].subject in EMOJI for s in often]
    return (
        [s for s, emoji in zip(often, is_emoji, strict=True) if not emoji],
        [s for s, emoji in zip(often, is_emoji, strict=True) if emoji],
    )


def _pair(choice: random.Random, held_out: bool) -> Scenario:
    while True:
        left, right = (
            Actor(choice.choice(SUBJECTS), choice.choice(MOTIONS)) for _ in range(2)
        )  # fmt: skip
        scenario = Scenario((left, right), choice.choice(SCENES))
        is_right = left.is_visible and right.is_visible and left.subject != right.subject
        if is_right and is_held_out(scenario) == held_out:
            actors = tuple(_jitter(a, choice) for a in scenario.actors)
            return replace(scenario, actors=actors)


def _with_size_or_speed(actor: Actor, choice: random.Random) -> Actor:
    """Some get a size or a speed."""
    if actor.motion in MOTIONS_WITH_SIZE and choice.random() < SIZED_SHARE:
        return replace(actor, size=choice.choice([size for size in SIZES if size]))
    if actor.motion in MOTIONS_WITH_SPEED and choice.random() < PACED_SHARE:
        return replace(actor, speed=choice.choice([speed for speed in SPEEDS if speed]))
    return actor


def _jitter(actor: Actor, choice: random.Random) -> Actor:
    shift = (choice.uniform(-8, 8), choice.uniform(-8, 8))
    return replace(actor, shift=shift, scale=choice.uniform(0.9, 1.1))


def describe(scenario: Scenario, choice: random.Random, held_out: bool = False) -> str:
    """One of the many ways to say what happens; held_out: one that training never uses."""
    scene = choice.choice(SCENE_WORDS[scenario.scene])
    if not held_out and choice.random() < NO_SCENE_SHARE:
        scene = ""
    if len(scenario.actors) == 2:
        clauses = (choice.choice(CLAUSES).format_map(_words(a, choice)) for a in scenario.actors)
        order = choice.choice(PAIR_ORDERS[held_out])
        text = order.format(**dict(zip(("first", "second"), clauses, strict=True)), scene=scene)
    else:
        (actor,) = scenario.actors
        order = choice.choice(TEMPLATES[held_out])
        if actor.motion == "still" and not held_out and choice.random() < 0.3:
            order = "{who} {scene}"  # a still subject may go without a verb
        text = order.format_map(_words(actor, choice) | {"scene": scene})
    return " ".join(text.split()).strip(", ")


def _words(actor: Actor, choice: random.Random) -> dict[str, str]:
    """An actor as who, motion ("moving left slowly") and moves ("moves left slowly")."""
    *colour, noun = actor.subject.split()
    called = choice.choice((noun, *SYNONYMS.get(noun, ())))
    who = f"{choice.choice(SIZE_WORDS[actor.size])} {' '.join([*colour, called])}".strip()
    article = choice.choice(ARTICLES)
    if article == "a" and who[0] in "aeiou" and not who.startswith("u"):
        article = "an"
    motion = choice.choice(MOTION_WORDS[actor.motion])
    first, *rest = motion.split()
    speed = choice.choice(SPEED_WORDS[actor.speed])
    return {
        "who": f"{article} {who}",
        "motion": f"{motion} {speed}".strip(),
        "moves": " ".join([VERBS[first], *rest, speed]).strip(),
    }


def vocabulary() -> list[str]:
    """Every word that a description can contain, sorted."""
    texts = [*ARTICLES, "an", "is", "there", "and", *COLOURS, *COLOURED, *EMOJI, *VERBS.values()]
    for table in (SYNONYMS, MOTION_WORDS, SCENE_WORDS, SIZE_WORDS, SPEED_WORDS):
        for phrases in table.values():
            texts.extend(phrases)
    return sorted({word for text in texts for word in text.split()})
