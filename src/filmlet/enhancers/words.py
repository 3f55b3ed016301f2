"""Words of pocket's world by what they say, and everyday words for them.

A model's vocabulary decides which of them are used: what it lacks is never written.
"""

from collections.abc import Mapping

ARTICLES = ("a", "an", "the", "one")
SIZES = ("small", "little", "tiny", "big", "large", "huge")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "brown", "cyan")
SPEEDS = ("slowly", "quickly", "fast", "rapidly")
DIRECTIONS: Mapping[str, str] = {  # what a movement is called by the word for its direction
    "left": "moving left",
    "right": "moving right",
    "up": "rising",
    "upwards": "rising",
    "down": "falling",
    "diagonally": "drifting diagonally",
}
MOTIONS: Mapping[str, tuple[str, ...]] = {  # a phrase, and the words that stand for it
    "standing still": (
        "still", "standing", "stands", "resting", "rests", "staying", "stays", "not",
    ),
    "spinning": ("spinning", "spins", "rotating", "rotates", "turning", "turns"),
    "growing": ("growing", "grows", "expanding", "expands", "bigger", "larger"),
    "shrinking": ("shrinking", "shrinks", "smaller"),
    "bouncing": ("bouncing", "bounces", "jumping", "jumps", "hopping", "hops"),
    "shaking": ("shaking", "shakes", "trembling", "trembles", "wobbling", "wobbles"),
    "flying in a circle": ("circling", "round"),
    "rising": ("rising", "rises"),
    "falling": ("falling", "falls", "sinking", "sinks"),
}  # fmt: skip
# Movements without a direction, which a model must be given one.
MOVES = (
    "moving", "moves", "gliding", "glides", "going", "goes", "floating", "floats", "drifting",
    "drifts", "flying", "flies",
)  # fmt: skip
ANY_MOVE = "moving right"
SCENES: Mapping[str, tuple[str, ...]] = {  # a phrase, and the words that stand for it
    "in a city at night": ("city", "town"),
    "under the sea": ("underwater", "sea", "ocean"),
    "in a forest": ("forest", "woods", "trees"),
    "in the snow": ("snow", "snowy", "winter"),
    "in the rain": ("rain", "rainy"),
    "in the desert": ("desert", "dune", "sand"),
    "on green grass": ("grass", "meadow", "lawn", "field"),
    "at sunset": ("sunset", "evening"),
    "in a starry night": ("night", "starry", "stars"),
    "in the blue sky": ("sky", "clouds"),
    "on a black background": ("dark",),
}
GROUNDS = ("white", "black")  # colours of a scene only: "on white", "a white background"
SUBJECT_PAIRS = ("snow man", "spinning top", "flying saucer")
# Words that belong to phrases of scenes and motions, beside those that stand for them.
FILLERS = (
    *ARTICLES, "is", "there", "and", "in", "on", "at", "of", "to", "under", "over", "among",
    "front", "background", "wall", "day", "heavy", "getting", "gets", "around",
)  # fmt: skip

# Everyday words for words of the vocabulary, the nearest first.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    # colours, sizes, speeds
    "crimson": ("red",), "scarlet": ("red",), "golden": ("yellow",), "gold": ("yellow",),
    "violet": ("purple",), "lilac": ("purple",), "turquoise": ("cyan",), "teal": ("cyan",),
    "aqua": ("cyan",), "navy": ("blue",), "azure": ("blue",), "beige": ("brown",),
    "rosy": ("pink",), "magenta": ("pink",), "giant": ("huge",), "gigantic": ("huge",),
    "enormous": ("huge",), "massive": ("huge",), "mini": ("tiny",), "miniature": ("tiny",),
    "slow": ("slowly",), "gently": ("slowly",), "calmly": ("slowly",), "lazily": ("slowly",),
    "quick": ("quickly",), "swiftly": ("quickly",), "speedily": ("quickly",),
    "hastily": ("quickly",), "rapid": ("rapidly",),
    # motions
    "walking": ("moving",), "walks": ("moves",), "walk": ("moving",), "running": ("moving",),
    "runs": ("moves",), "run": ("moving",), "driving": ("moving",), "drives": ("moves",),
    "drive": ("moving",), "swimming": ("moving",), "swims": ("moves",), "swim": ("moving",),
    "sailing": ("moving",), "sails": ("moves",), "sliding": ("gliding",), "slides": ("glides",),
    "rolling": ("moving",), "rolls": ("moves",), "travelling": ("moving",), "fly": ("flying",),
    "ascending": ("rising",), "ascends": ("rises",), "climbing": ("rising",), "climbs": ("rises",),
    "soaring": ("rising",), "soars": ("rises",), "launching": ("rising",), "launches": ("rises",),
    "descending": ("falling",), "descends": ("falls",), "dropping": ("falling",),
    "drops": ("falls",), "fall": ("falling",), "rise": ("rising",), "leaping": ("jumping",),
    "leaps": ("jumps",), "skipping": ("hopping",), "dancing": ("bouncing",), "dances": ("bounces",),
    "dance": ("bouncing",), "twirling": ("spinning",), "twirls": ("spins",),
    "whirling": ("spinning",), "whirls": ("spins",), "revolving": ("rotating",),
    "revolves": ("rotates",), "enlarging": ("growing",), "swelling": ("growing",),
    "vibrating": ("shaking",), "vibrates": ("shakes",), "shivering": ("trembling",),
    "shivers": ("trembles",), "quivering": ("trembling",), "orbiting": ("circling",),
    "orbits": ("circling",), "sitting": ("resting",), "sits": ("rests",), "sit": ("resting",),
    "sleeping": ("resting",), "sleeps": ("rests",), "waiting": ("standing",), "waits": ("stands",),
    "upward": ("upwards",), "downwards": ("down",), "downward": ("down",),
    "leftwards": ("left",), "rightwards": ("right",), "forward": ("right",), "forwards": ("right",),
    # scenes
    "lake": ("sea",), "water": ("underwater",), "beach": ("sand",), "jungle": ("forest",),
    "wood": ("forest",), "woodland": ("forest",), "space": ("starry",), "galaxy": ("starry",),
    "midnight": ("night",), "dusk": ("sunset",), "dawn": ("sunset",), "sunrise": ("sunset",),
    "twilight": ("sunset",), "street": ("city",), "skyline": ("city",), "village": ("town",),
    "cloud": ("clouds",), "cloudy": ("clouds",), "garden": ("meadow",), "park": ("lawn",),
    "pasture": ("meadow",), "raining": ("rain",), "storm": ("rain",), "snowing": ("snow",),
    "snowfall": ("snow",), "ice": ("snow",), "darkness": ("dark",), "sandy": ("sand",),
    # subjects
    "sphere": ("ball",), "orb": ("ball",), "cube": ("box", "square"), "feline": ("cat",),
    "hound": ("dog",), "doggy": ("dog",), "doggo": ("dog",), "bunnies": ("bunny",),
    "hare": ("rabbit",), "stallion": ("horse",), "foal": ("pony",), "bull": ("cow",),
    "calf": ("cow",), "ewe": ("sheep",), "hen": ("chicken",), "rooster": ("chicken",),
    "orca": ("whale",), "cheetah": ("tiger",), "leopard": ("tiger",), "chimp": ("monkey",),
    "gorilla": ("ape",), "pigeon": ("bird", "dove"), "sparrow": ("bird",), "eagle": ("bird",),
    "wasp": ("bee",), "honeybee": ("bee",), "moth": ("butterfly",), "sauropod": ("dinosaur",),
    "vehicle": ("car",), "taxi": ("car",), "lorries": ("lorry",), "van": ("truck",),
    "jet": ("airplane",), "aircraft": ("airplane",), "chopper": ("helicopter",),
    "yacht": ("sailboat", "boat"), "vessel": ("ship",), "shuttle": ("rocket", "spaceship"),
    "starship": ("spaceship",), "extraterrestrial": ("alien",), "martian": ("alien",),
    "spirit": ("ghost",), "android": ("robot",), "cottage": ("house",), "cabin": ("house",),
    "hut": ("house",), "package": ("parcel", "present"), "parasol": ("umbrella",),
    "blossom": ("flower",), "evergreen": ("fir", "tree"), "conifer": ("fir", "tree"),
    "burgers": ("burger",), "lantern": ("pumpkin",), "sailboats": ("sailboat",),
    "grinning": ("smiley",), "berry": ("strawberry",), "melon": ("watermelon",),
}  # fmt: skip
