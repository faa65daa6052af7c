"""Small texts with topics, made up, and a dataset folder from them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from cocomix.data.dataset import Dataset
from cocomix.files import write_text

TOPICS = {
    "sea": (
        "harbour sailor tide ship wave island fisher net lighthouse storm",
        "sails drifts anchors rises sinks",
    ),
    "farm": (
        "field farmer barn harvest horse orchard mill plough meadow shepherd",
        "grows ripens gathers sows rests",
    ),
    "court": (
        "judge witness lawyer verdict trial clerk jury letter oath hall",
        "argues waits decides answers listens",
    ),
    "sky": (
        "star comet moon telescope planet cloud night orbit eclipse scholar",
        "shines turns fades moves glows",
    ),
    "town": (
        "baker market bridge tower street school river bell wall carpenter",
        "opens closes builds sells rings",
    ),
}
ADJECTIVES = ["old", "quiet", "bright", "narrow", "cold", "patient", "strange", "early", "distant", "heavy"]
TAILS = (
    "in the morning",
    "before the winter",
    "without a word",
    "as it did last year",
    "near the water",
    "at dusk",
)


def english_like(documents: int, seed: int = 0, sentences: int = 30) -> Iterator[str]:
    """Texts of simple English sentences, each about one topic, the same for the same arguments."""
    draw = random.Random(seed)
    for _ in range(documents):
        nouns, verbs = (words.split() for words in TOPICS[draw.choice(sorted(TOPICS))])
        lines = []
        for number in range(draw.randint(sentences // 2, sentences + sentences // 2)):
            first, second = draw.sample(nouns, 2)
            adjective, verb, tail = draw.choice(ADJECTIVES), draw.choice(verbs), draw.choice(TAILS)
            pattern = draw.choice(
                (
                    f"The {adjective} {first} {verb} {tail}.",
                    f"A {first} {verb} when the {second} is {adjective}.",
                    f"Every {second} knows that the {first} {verb} {tail}.",
                    f"In {draw.randint(1200, 2020)} the {first} and the {second} were {adjective}.",
                )
            )
            lines.append(pattern + ("\n\n" if number % 6 == 5 else " "))
        yield "".join(lines).strip()


def tiny_dataset(folder: Path, documents: int = 60, vocab_size: int = 384, window: int = 32) -> Dataset:
    """Prepares a small dataset in ``folder`` (made-up English, a tokenizer trained on it) and opens it.

    60 documents are about 33,000 tokens (vocabulary 384) in several shards; a tenth is held out.
    """
    from cocomix.data.prepare import prepare
    from cocomix.data.settings import PrepareSettings

    folder = Path(folder)
    source = folder.with_name(folder.name + "-text.jsonl")
    write_text(source, "".join(json.dumps({"text": text}) + "\n" for text in english_like(documents)))
    prepare(
        PrepareSettings(
            source=str(source),
            out=str(folder),
            vocab_size=vocab_size,
            window=window,
            val_fraction=0.1,
            shard_tokens=max(4096, 2 * window),
        )
    )
    return Dataset.open(folder)
