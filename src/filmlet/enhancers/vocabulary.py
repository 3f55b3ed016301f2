"""Enhancement by rule, for models that know a few hundred words: no network, no language model.

Each word becomes the nearest that the model knows or is dropped; what is left is put into the order
of the sentences that pocket was trained on: "a small red star moving left slowly at sunset".
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import groupby

from filmlet.enhancers import words
from filmlet.errors import InvalidRequest

MAX_WORDS = 64  # of a prompt that are read; the model reads fewer
MAX_WORD_CHARS = 40
MAX_ACTORS = 2  # in one clip
MIN_SIMILAR_CHARS = 4  # shorter words are near to anything
SIMILARITY = 0.8  # of 1: a letter or two of a word differ
WORD = re.compile(r"[^\W_]+|[^\w\s]")  # words, and single symbols
NOISE = ("face", "symbol", "sign", "with", "and", "black", "white", "heavy", "medium", "small")
ENDINGS = (  # of plurals and verbs, and what may stand instead
    ("ies", "y"), ("es", ""), ("s", ""), ("ing", "es"), ("ing", "s"), ("ed", "ing"), ("", "s"),
    ("", "ing"), ("e", "ing"), ("y", "ies"),
)  # fmt: skip
SYMBOL_END = "|"  # two symbols are two subjects
BREAKS = (SYMBOL_END, "and", ",", ".", ";", "&")  # between the parts of a sentence
CIRCLE = ("in", "a", "circle")  # a motion, not a subject
CIRCLES = "circles"  # what a subject does, or several of them
LAST_SCENES = ("on a black background",)  # "a dark forest" is a forest
MOTION_WORDS = {word: phrase for phrase, group in words.MOTIONS.items() for word in group}
SCENE_WORDS = {word: phrase for phrase, group in words.SCENES.items() for word in group}
NO_SUBJECTS = {
    *words.FILLERS, *words.SIZES, *words.COLOURS, *words.SPEEDS, *words.DIRECTIONS, *words.MOVES,
    *words.GROUNDS, *MOTION_WORDS, *SCENE_WORDS,
}  # fmt: skip


@dataclass(frozen=True)
class Clause:
    """What is said of one actor; a part that is not said is empty."""

    size: str = ""
    colour: str = ""
    subject: str = ""
    motion: str = ""
    speed: str = ""

    def fill_from(self, other: "Clause") -> "Clause":
        """Return it with what only the other one says."""
        pairs = zip(_parts(self), _parts(other), strict=True)
        return Clause(*(mine or theirs for mine, theirs in pairs))

    def as_text(self) -> str:
        who = " ".join(filter(None, (self.size, self.colour, self.subject)))
        if self.subject:
            who = f"{'an' if who[0] in 'aeio' else 'a'} {who}"
        return " ".join(filter(None, (who, self.motion, self.speed)))


def _parts(clause: Clause) -> tuple[str, ...]:
    return (clause.size, clause.colour, clause.subject, clause.motion, clause.speed)


@dataclass(frozen=True)
class VocabularyEnhancer:
    """Writes prompts in the words of one model. model: its name."""

    model: str
    vocabulary: frozenset[str] = field(repr=False)

    @property
    def source(self) -> str:
        return f"the vocabulary of {self.model}"

    def enhance(self, prompt: str) -> str:
        """Return the nearest sentence. Raises InvalidRequest where the model knows no word."""
        known = list(self._join_subjects(list(self._known_words(prompt))))
        scene, known = self._take_scene(known)
        clauses = self._read_clauses(known)
        text = " ".join((" and ".join(clause.as_text() for clause in clauses), scene))
        text = " ".join(word for word in text.split() if word in self.vocabulary)
        if not text:
            raise InvalidRequest(
                f"{self.model} knows no word of this prompt, and none that is near.", param="prompt"
            )
        return text

    def _known_words(self, prompt: str) -> Iterator[str]:
        """Yield the words of the vocabulary that stand for the prompt's, and breaks."""
        text = unicodedata.normalize("NFKC", prompt).lower()
        for word in WORD.findall(text[: MAX_WORDS * MAX_WORD_CHARS])[:MAX_WORDS]:
            if word in BREAKS:
                yield word
            elif word.isalnum():
                yield from self._nearest(word[:MAX_WORD_CHARS])
            else:
                yield from self._symbol_words(word)

    def _symbol_words(self, symbol: str) -> Iterator[str]:
        """Yield a colour and the last other word of a symbol's name: CAT FACE, LARGE RED CIRCLE."""
        names = re.findall("[a-z]+", unicodedata.name(symbol, "").lower())
        known = [word for name in names if name not in NOISE for word in self._exact(name)]
        yield from [word for word in known if word in words.COLOURS]
        yield from [word for word in known if word not in words.COLOURS][-1:]
        if known:
            yield SYMBOL_END

    def _exact(self, word: str) -> Sequence[str]:
        """Return what a word is called in the vocabulary, by itself, a synonym or another form."""
        for candidate in (word, *words.SYNONYMS.get(word, ())):
            if candidate in self.vocabulary:
                return (candidate,)
        for ending, other in ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= 2:
                form = word[: len(word) - len(ending)] + other
                for candidate in (form, *words.SYNONYMS.get(form, ())):
                    if candidate in self.vocabulary:
                        return (candidate,)
        return ()

    def _nearest(self, word: str) -> Sequence[str]:
        found = self._exact(word)
        if found or len(word) < MIN_SIMILAR_CHARS or not word.isascii():
            return found
        return get_close_matches(word, sorted(self.vocabulary), n=1, cutoff=SIMILARITY)

    def _join_subjects(self, known: list[str]) -> Iterator[str]:
        """Yield subjects of two words as one, where the first is also a motion or a scene."""
        place = 0
        while place < len(known):
            pair = " ".join(known[place : place + 2])
            length = 2 if pair in words.SUBJECT_PAIRS else 1
            yield " ".join(known[place : place + length])
            place += length

    def _take_scene(self, known: list[str]) -> tuple[str, list[str]]:
        """Return the scene, and the words without those that tell it."""
        phrases = [SCENE_WORDS[word] for word in known if word in SCENE_WORDS]
        grounds = [g for i, g in enumerate(known) if g in words.GROUNDS and _is_ground(known, i)]
        phrases += [f"on a {ground} background" for ground in grounds]
        # "in a city at night" is one scene, whose last word is another one's.
        phrases.sort(key=lambda phrase: ("city" not in phrase, phrase in LAST_SCENES))
        scene = next((p for p in phrases if self.vocabulary.issuperset(p.split())), "")
        # The colour of a scene is none of a subject: green grass, the blue sky.
        left = [
            word
            for word, following in zip(known, [*known, ""][1:], strict=True)
            if not (word in words.COLOURS and following in SCENE_WORDS)
            and word not in SCENE_WORDS
            and word not in words.GROUNDS
        ]
        return scene, left

    def _read_clauses(self, known: list[str]) -> list[Clause]:
        """Return what is said of each actor; a part without a subject is said of the one before."""
        clauses: list[Clause] = []
        for is_break, group in groupby(known, key=lambda word: word in BREAKS):
            for clause in () if is_break else self._split_subjects(list(group)):
                if clauses and not (clause.subject and clauses[-1].subject):
                    clauses[-1] = clauses[-1].fill_from(clause)
                else:
                    clauses.append(clause)
        found = [clause for clause in clauses if any(_parts(clause))]
        return found[:MAX_ACTORS]

    def _split_subjects(self, known: list[str]) -> Iterator[Clause]:
        """Yield a clause for each subject: a run of words that are nothing else."""
        clause = Clause()
        place = 0
        while place < len(known):
            word = known[place]
            if tuple(known[place : place + 3]) == CIRCLE:
                clause = replace(clause, motion=self._phrase("flying in a circle"))
                place += 3
                continue
            place += 1
            if word == CIRCLES and clause.subject:
                clause = replace(clause, motion=self._phrase("flying in a circle"))
                continue
            if word in NO_SUBJECTS:
                clause = self._add_word(clause, word)
                continue
            if clause.subject:
                yield clause
                clause = Clause()
            start = place - 1
            while place < len(known) and known[place] not in (*NO_SUBJECTS, CIRCLES):
                place += 1
            clause = replace(clause, subject=" ".join(known[start:place]))
        yield clause

    def _add_word(self, clause: Clause, word: str) -> Clause:
        """Return the clause with a word that is no subject; the first one of a kind counts."""
        if word in words.SIZES:
            return replace(clause, size=clause.size or word)
        if word in words.COLOURS:
            return replace(clause, colour=clause.colour or word)
        if word in words.SPEEDS:
            return replace(clause, speed=clause.speed or word)
        motion = self._phrase(MOTION_WORDS.get(word, ""))
        if not motion and clause.motion in ("", words.ANY_MOVE):
            any_move = words.ANY_MOVE if word in words.MOVES else ""
            motion = self._phrase(words.DIRECTIONS.get(word, any_move))
            return replace(clause, motion=motion or clause.motion)
        is_open = clause.motion in ("", words.ANY_MOVE)
        return replace(clause, motion=motion) if motion and is_open else clause

    def _phrase(self, phrase: str) -> str:
        """Return a phrase if the model knows its words."""
        return phrase if self.vocabulary.issuperset(phrase.split()) else ""


def _is_ground(known: Sequence[str], place: int) -> bool:
    """Return whether a colour is that of the ground: "on white", "a white wall"."""
    before = [word for word in known[max(0, place - 2) : place] if word not in words.ARTICLES]
    after = known[place + 1] if place + 1 < len(known) else ""
    return before[-1:] == ["on"] or after in ("background", "wall")
