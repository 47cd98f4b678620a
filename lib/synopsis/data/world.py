"""A small generated language in which context has value, so that compression can be shown on a laptop.

Real text cannot be shipped with the demo, and a model of a million parameters could not use it. This language has
three kinds of context-dependent words, from easy to hard:

- *topic*: what an animal eats, visits and wears follows from the hidden topic of the document, one of 4 fixed tables.
  A topic uses 3 of a verb's 12 words, so a first statement narrows the words down, and a few more give the topic
  away, and with it which animal goes with which word.
- *recall*: each document has one or two guests who hold things drawn at random. The first mention cannot be predicted,
  every later one can, by whoever remembers the first. Some documents are mostly about guests, most are not: the easy
  ones teach a model to remember, which it learns late or never when all are equally hard.
- *instruction*: what to write follows from the instruction alone (translate words into one of eight languages), never
  from the input.

Everything follows from seeds: the same configuration gives the same bytes.

    world = World()
    words, kinds = world.story(numpy.random.default_rng(0), facts=32)
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

# Whoever changes the language here counts `config.data.WORLD_VERSION` up, so that all that it is in is made again.
TOPICS = 4
WORDS_PER_TOPIC = 3
ANIMALS = ("fox", "owl", "bear", "hare", "crow", "wolf", "toad", "deer")
MANNERS = ("old", "young", "shy", "proud", "quick", "calm")
ATTRIBUTES = {
    verb: tuple(words.split())
    for verb, words in {
        "eats": "plums seeds bread honey roots fish apples nuts corn figs peas cheese",
        "visits": "rivers caves markets hills islands towers gardens bridges meadows harbours mills ruins",
        "wears": "red green blue white yellow black purple brown silver golden orange pink",
    }.items()
}
GUESTS = ("Mira", "Tomas", "Ilse", "Pavel", "Nadia", "Oskar", "Greta", "Juri")
THINGS = tuple("lantern compass violin ladder basket mirror hammer kettle anchor drum candle map".split())  # noqa: SIM905
LANGUAGES = ("Noric", "Velan", "Tarsi", "Ombra", "Lusic", "Kethi", "Dorai", "Pelun")
PHRASINGS = (
    "Translate the words into {language}",
    "Say these in {language}",
    "Write the {language} words",
    "Give me {language} for this",
    "How does one say it in {language}",
)
END = "\n\n"
MOST_GUESTS = 2
HELD_OUT_SHARE = 0.2

KINDS = ("other", "topic", "recall")
"""Meaning of the numbers in a token's `kind`."""


class World:
    """The tables of the language, drawn once from a fixed seed: every corpus and task speaks the same language."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng([seed, 97])
        # table[verb][topic, animal] -> index of the word that follows
        self.tables = {verb: _table(rng, len(words)) for verb, words in ATTRIBUTES.items()}
        syllables = ["".join(s) for s in itertools.product("bdfgklmnprstvz", "aeiou")]
        pairs = rng.permutation(len(syllables) ** 2)[: len(LANGUAGES) * len(ANIMALS)]
        names = [syllables[p // len(syllables)] + syllables[p % len(syllables)] for p in pairs]
        self.lexicon = {
            language: dict(zip(ANIMALS, names[i * len(ANIMALS) : (i + 1) * len(ANIMALS)], strict=True))
            for i, language in enumerate(LANGUAGES)
        }
        combinations = list(itertools.product(range(len(PHRASINGS)), LANGUAGES))
        order = rng.permutation(len(combinations))
        cut = int(len(combinations) * HELD_OUT_SHARE)
        self.held_out = [combinations[i] for i in order[:cut]]
        """Instructions that no training document or row holds: the split `unseen`."""
        self.seen = [combinations[i] for i in order[cut:]]

    @property
    def vocabulary(self) -> list[str]:
        """Every word of the language, in a fixed order."""
        words = [END, "holds", "guest", *ATTRIBUTES, *ANIMALS, *MANNERS, *GUESTS, *THINGS]
        words += [word for values in ATTRIBUTES.values() for word in values]
        words += [word for phrase in PHRASINGS for word in phrase.split() if "{" not in word]
        words += [*LANGUAGES, *(word for language in self.lexicon.values() for word in language.values())]
        words += ["Instruction:", "Input:", "Output:", "\n", "N/A"]
        return list(dict.fromkeys(words))

    def statement(self, rng: np.random.Generator, verb: str, topic: int) -> list[str]:
        """Words like "old fox eats plums", the last one following from the topic."""
        animal = int(rng.integers(len(ANIMALS)))
        manner = MANNERS[rng.integers(len(MANNERS))]
        return [manner, ANIMALS[animal], verb, ATTRIBUTES[verb][self.tables[verb][topic, animal]]]

    def story(self, rng: np.random.Generator, facts: int) -> tuple[list[str], list[int]]:
        """Words of a document of `facts` statements, and the kind of each word (an index into KINDS)."""
        topic = int(rng.integers(TOPICS))
        recall_share = rng.random() ** 2
        guests = rng.choice(len(GUESTS), size=int(rng.integers(1, MOST_GUESTS + 1)), replace=False)
        holds = {GUESTS[g]: THINGS[rng.integers(len(THINGS))] for g in guests}
        words: list[str] = []
        kinds: list[int] = []
        mentioned: set[str] = set()
        for _ in range(facts):
            if rng.random() < recall_share:
                guest = list(holds)[rng.integers(len(holds))]
                sentence = ["guest", guest, "holds", holds[guest]]
                kind = KINDS.index("recall") if guest in mentioned else 0
                mentioned.add(guest)
            else:
                verb = list(ATTRIBUTES)[rng.integers(len(ATTRIBUTES))]
                sentence = self.statement(rng, verb, topic)
                kind = KINDS.index("topic")
            words += [*sentence, END]
            kinds += [0] * (len(sentence) - 1) + [kind, 0]
        return words, kinds

    def instruction(self, rng: np.random.Generator, *, held_out: bool = False) -> dict[str, str]:
        """A row of instruction, input and output. Inputs are two to four animals; outputs their translations."""
        pool = self.held_out if held_out else self.seen
        phrasing, language = pool[rng.integers(len(pool))]
        animals = [ANIMALS[i] for i in rng.choice(len(ANIMALS), size=int(rng.integers(2, 5)), replace=False)]
        return {
            "instruction": PHRASINGS[phrasing].format(language=language),
            "input": " ".join(animals),
            "output": " ".join(self.lexicon[language][animal] for animal in animals),
        }

    def task(self, verb: str, seed: int, train: int = 400) -> dict[str, list[dict[str, Any]]]:
        """Rows (`text`, `label`) of a classification task: which word follows, all examples sharing one hidden topic.

        The label is an index into ATTRIBUTES[verb]. Without demonstrations the topic is unknown, and so is the label.
        Test rows are all combinations of manner and animal; training rows are drawn from the same.
        """
        rng = np.random.default_rng([seed, 5, list(ATTRIBUTES).index(verb)])
        topic = int(rng.integers(TOPICS))
        texts = [
            (f"{manner} {animal} {verb}", int(self.tables[verb][topic, index]))
            for manner in MANNERS
            for index, animal in enumerate(ANIMALS)
        ]
        draws = {"train": rng.integers(len(texts), size=train), "test": rng.permutation(len(texts))}
        return {
            split: [{"id": i, "text": texts[d][0], "label": texts[d][1]} for i, d in enumerate(rows)]
            for split, rows in draws.items()
        }


def _table(rng: np.random.Generator, words: int) -> np.ndarray:
    """(topics, animals) indices of words; each topic uses WORDS_PER_TOPIC of them."""
    chosen = [rng.permutation(words)[:WORDS_PER_TOPIC] for _ in range(TOPICS)]
    return np.stack([words_of_topic[rng.integers(WORDS_PER_TOPIC, size=len(ANIMALS))] for words_of_topic in chosen])
