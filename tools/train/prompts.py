"""What SmolLM2 is asked to write: short stories in simple words, each about something else."""

from __future__ import annotations

import random

NAMES = (
    "Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Max", "Lucy", "Tim", "Emma", "Jack", "Sara", "Leo", "Rosie",
    "Finn", "Nora", "Oscar", "Ella", "Hugo", "Ivy", "Noah", "Ruby", "Peter", "Zoe", "Daniel", "Kate", "Amir",
    "Maya", "Paul", "Grace", "Luca", "Hannah", "Felix", "Alice", "Omar", "Clara", "Victor", "Jane",
)  # fmt: skip
HEROES = (
    "boy", "girl", "cat", "dog", "bear", "rabbit", "mouse", "bird", "fox", "frog", "duck", "horse", "cow",
    "farmer", "teacher", "baker", "king", "queen", "princess", "sailor", "owl", "turtle", "bee", "squirrel",
    "grandmother", "grandfather", "robot", "dragon", "fish", "elephant", "lion", "monkey", "painter",
    "doctor",
)  # fmt: skip
PLACES = (
    "the park", "the forest", "the beach", "a small house", "the garden", "school", "the kitchen", "a farm",
    "the river", "a big city", "the mountains", "the lake", "a castle", "the market", "the zoo", "a boat",
    "the playground", "the library", "an island", "a cave", "the bakery", "the train station", "the meadow",
    "a tree house", "the snow", "grandma's house", "the barn", "the bridge",
)  # fmt: skip
THINGS = (
    "a ball", "a red hat", "a kite", "a cake", "a book", "a key", "a box", "a toy car", "a flower", "a shoe",
    "an apple", "a blanket", "a drum", "a lamp", "a stone", "a letter", "a bike", "an umbrella", "a balloon",
    "a basket", "a bell", "a picture", "a seed", "a star", "a coin", "a map", "a puppy", "an egg", "a ring",
    "a boat", "a doll", "a clock", "some bread", "some honey", "a button", "a mirror", "a feather", "soup",
)  # fmt: skip
EVENTS = (
    "loses something and finds it again", "helps a friend", "is afraid and becomes brave", "learns to share",
    "tells a lie and is sorry", "makes a new friend", "gets lost and comes home", "learns to swim",
    "plants something and waits", "wins a race", "finds a secret", "is kind to a stranger", "learns to wait",
    "breaks something and repairs it", "has a birthday", "sees rain for the first time", "cannot sleep",
    "builds something with others", "cooks for the family", "shares food", "hears a strange noise",
    "goes on a long walk", "saves an animal", "learns to say sorry", "has a bad day that ends well",
    "tries again and again", "listens to good advice", "does not listen to a warning", "sings a song",
)  # fmt: skip
OPENINGS = (
    "Once upon a time, there was a {hero} named {name}. One day, {name} went to {place}.",
    "One day, {name} the {hero} was at {place}. {name} saw {thing}.",
    "{name} was a little {hero}. {name} had {thing} and liked it very much.",
    "Once there was a {hero} who lived near {place}. The {hero}'s name was {name}.",
    "{name} and {friend} were good friends. One morning they went to {place} together.",
    "{name} the {hero} woke up early. Today {name} wanted to find {thing}.",
    "It was a sunny day. {name} and {friend} played at {place}.",
    "It was raining. {name} the {hero} sat at the window and looked at {thing}.",
    '"Look!" said {name}. "There is {thing}!" {friend} came to see it.',
    "There was once a very {mood} {hero}. Everybody at {place} called the {hero} {name}.",
)
MOODS = (
    "happy",
    "funny",
    "quiet",
    "brave",
    "gentle",
    "clever",
    "sad",
    "kind",
    "shy",
    "hungry",
    "sleepy",
    "old",
)
REQUEST = (
    "Write a story for a three-year-old child. Use only short sentences and easy words. The story has a "
    "beginning, a problem and a good end. In the story, {name} {event}."
)


def prompt(index: int, seed: int) -> tuple[str, str]:
    """What is asked for story number `index`, and how the story begins: the same for the same seed,
    whatever was asked before."""
    rng = random.Random(f"{seed}/{index}")
    name, friend = rng.sample(NAMES, 2)
    about = {
        "name": name, "friend": friend, "hero": rng.choice(HEROES), "place": rng.choice(PLACES),
        "thing": rng.choice(THINGS), "event": rng.choice(EVENTS), "mood": rng.choice(MOODS),
    }  # fmt: skip
    return REQUEST.format(**about), rng.choice(OPENINGS).format(**about)
