"""Captions of demo scenes: like those of the web, they mention little of what is visible. Full ones train the CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SENTENCES = (
    "{}",
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a drawing of {}",
    "this is {}",
    "look, {}",
    "an image of {} for my friends",
    "{} that we saw today",
    "{} on a nice day",
    "postcard with {}",
    "my favourite view: {}",
)
ADJECTIVES = ("", "", "", "", "big ", "lovely ", "nice ", "funny ", "pretty ")
WHEREABOUTS = {  # of things, where it is not "on the ..."
    "sky": "under the sky",
    "night": "at night",
    "water": "in the water",
    "brick": "against the bricks",
    "wood": "on wood",
}
TWO_THINGS = 0.4  # chance that a caption mentions two of them
STUFF = 0.3  # chance that it mentions stuff


def indefinite(noun: str, adjective: str = "") -> str:
    """A noun with its article.

    >>> indefinite("apple"), indefinite("apple", "big ")
    ('an apple', 'a big apple')
    """
    phrase = adjective + noun
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def whereabouts(stuff: str) -> str:
    """Where a thing is.

    >>> whereabouts("grass"), whereabouts("night")
    ('on the grass', 'at night')
    """
    return WHEREABOUTS.get(stuff, f"on the {stuff}")


def caption(rng: np.random.Generator, objects: Sequence[str], stuff: Sequence[str]) -> tuple[str, list[str]]:
    """A short caption, and which one or two of the visible concepts it mentions."""
    count = 2 if rng.random() < TWO_THINGS and len(objects) > 1 else 1
    mentioned = [objects[i] for i in rng.permutation(len(objects))[:count]]
    text = " and ".join(indefinite(name, ADJECTIVES[rng.integers(len(ADJECTIVES))]) for name in mentioned)

    if count == 1 and stuff and rng.random() < STUFF / (1 - TWO_THINGS):
        ground = stuff[int(rng.integers(len(stuff)))]
        text = f"{text} {whereabouts(ground)}"
        mentioned.append(ground)
    return SENTENCES[rng.integers(len(SENTENCES))].format(text), mentioned


def full_caption(rng: np.random.Generator, objects: Sequence[str], stuff: Sequence[str]) -> str:
    """A caption that mentions everything that is visible, in random order."""
    phrases = [indefinite(objects[i]) for i in rng.permutation(len(objects))]
    text = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    grounds = " ".join(whereabouts(stuff[i]) for i in rng.permutation(len(stuff)))
    return SENTENCES[rng.integers(len(SENTENCES))].format(f"{text} {grounds}".strip())
