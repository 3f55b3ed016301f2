"""What a language model puts around the prompt that it was asked for, and its removal."""

import re
from unicodedata import category

from filmlet.errors import EnhancementFailed

MAX_CHARS = 2000  # of an enhanced prompt; some 400 tokens
MAX_RAW_CHARS = 20_000  # with the thoughts before it
THOUGHTS_END = re.compile(r"</(think|thinking|thought|reasoning)>", re.IGNORECASE)
THOUGHTS_START = re.compile(r"<(think|thinking|thought|reasoning)>", re.IGNORECASE)
FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)
YES = r"(sure|certainly|of course|absolutely|okay|ok)"
LABEL = r"(the |your |an? )?((enhanced|improved|rewritten|final|video|detailed|ltx) )*prompt"
# Sure! Here is the enhanced prompt, and a colon; or such a label in bold.
PREAMBLE = re.compile(
    rf"[#*_ ]{{0,9}}({YES}\b[^\n:]*:|{YES}[.!,]? *\n|here( is|'s|’s| are)\b[^\n:]*:"
    rf"|{LABEL}[*_ ]{{0,9}}:)[*_]{{0,9}}",
    re.IGNORECASE,
)
POSTSCRIPT = re.compile(
    r"^[*_( ]{0,9}((note|explanation)[*_]{0,3}:|let me know\b)", re.MULTILINE | re.IGNORECASE
)
REFUSAL = re.compile(
    r"(i['’]m |i am )?(very )?sorry\b|i (can ?not|can['’]t|won['’]t|am unable)\b|as an ai\b",
    re.IGNORECASE,
)
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`", "*": "*"}
# Controls, halves of surrogates, private characters; and marks that turn the direction of text.
NO_TEXT = ("Cc", "Cs", "Co")
DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_answer(answer: str) -> str:
    """Return the prompt in an answer, as one paragraph. Raises EnhancementFailed."""
    if len(answer) > MAX_RAW_CHARS:
        raise EnhancementFailed("The prompt enhancer's answer is too long.")
    text = _unquote(_join_lines(_remove_wrapping(_remove_thoughts(answer))))
    if not text:
        raise EnhancementFailed("The prompt enhancer's answer is empty.")
    if REFUSAL.match(text):
        raise EnhancementFailed("The prompt enhancer refuses this prompt.")
    if len(text) > MAX_CHARS:
        raise EnhancementFailed("The prompt enhancer's answer is too long.")
    return text


def _remove_thoughts(text: str) -> str:
    """Some servers send the end of the thoughts only, and a model may be cut off within them."""
    if ends := list(THOUGHTS_END.finditer(text)):
        text = text[ends[-1].end() :]
    return THOUGHTS_START.split(text, maxsplit=1)[0]


def _remove_wrapping(text: str) -> str:
    """Return what stands in a code fence or between the sentences about the prompt."""
    if fenced := FENCE.search(text):
        text = fenced[1]
    text = text.strip().strip("`").strip()
    while match := PREAMBLE.match(text):
        text = text[match.end() :].lstrip()
    if (note := POSTSCRIPT.search(text)) and note.start():
        text = text[: note.start()]
    return text


def _join_lines(text: str) -> str:
    words = " ".join(text.split())
    return "".join(c for c in words if category(c) not in NO_TEXT and c not in DIRECTIONS).strip()


def _unquote(text: str) -> str:
    """Remove quotes around the whole; speech at both ends has quotes of its own."""
    opening, closing, inner = text[:1], QUOTES.get(text[:1]), text[1:-1]
    if opening == "*":
        inner = inner.strip("*")
    is_whole = len(text) > 1 and text.endswith(closing or " ")
    if not is_whole or opening in inner or (closing and closing in inner):
        return text
    return _unquote(inner.strip())
