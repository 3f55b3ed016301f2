"""Words of emoji, for tokenizers that have no token for them."""

from unicodedata import category, name

# Where Unicode's name is another than people say, as in CLDR's short names; those that pocket
# draws are all here or have the name that it knows.
SHORT_NAMES = {
    "🐳": "whale", "🐋": "whale", "🐝": "bee", "🐞": "ladybug", "🐤": "chick", "🐥": "chick",
    "🐣": "chick", "🦕": "dinosaur", "🐫": "camel", "🐪": "camel", "🚗": "car", "🚚": "truck",
    "🚛": "truck", "🛩": "airplane", "✈": "airplane", "⛵": "boat", "🚂": "locomotive",
    "🍎": "red apple", "🌽": "corn", "🧀": "cheese", "🍊": "orange", "🍕": "pizza", "🌲": "tree",
    "🎃": "pumpkin", "⛄": "snowman", "👽": "alien", "🎁": "gift", "☔": "umbrella",
    "🌂": "umbrella", "🏠": "house", "⏰": "clock", "😀": "smiley", "🙂": "smiley",
    "⭐": "yellow star", "🌟": "yellow star",
    "❤": "red heart", "🩷": "pink heart", "🩵": "cyan heart",
    "🪐": "planet", "🏰": "castle", "🥁": "drum", "⚽": "ball", "🏀": "orange ball",
}  # fmt: skip
# Of Unicode's names, which say how a sign looks in print.
NAMES_OF_FORM = {"face", "large", "medium", "heavy", "symbol", "sign"}
VARIANTS = ("\ufe0e", "\ufe0f", *map(chr, range(0x1F3FB, 0x1F400)))  # text, picture, skin colours
FIRST_EMOJI = 0x2300  # no arrows, currencies or letters below


def emoji_words(sign: str) -> list[str]:
    """Return what an emoji is called, the best name first; nothing for another sign.

    sign: one emoji with its variants; a flag or a family of several has no name here.
    """
    for variant in VARIANTS:
        sign = sign.replace(variant, "")
    if len(sign) != 1 or ord(sign) < FIRST_EMOJI or category(sign) != "So":
        return []
    words = name(sign, "").lower().split()
    plain = " ".join(word for word in words if word not in NAMES_OF_FORM)
    names = (SHORT_NAMES.get(sign, ""), plain, plain.replace("-", ""), " ".join(words))
    return [text for text in dict.fromkeys(names) if text]
