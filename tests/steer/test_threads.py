"""Threads steer one model side by side, each as if it were alone; nothing stays behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cocomix.steer.edits import Edit, steering
from cocomix.steer.generation import continuations
from cocomix.steer.notation import parse_edit
from cocomix.steer.settings import GenerateSettings
from cocomix.steer.teacher_view import TeacherView
from cocomix.testing.models import tiny_model

REQUESTS = 50
EDITS = ["", "3=set:30", "3=off", "5=x-8 @prompt:", "4=set:20 @2:6", "3=set:30 until:e", "7=+9"]


def test_fifty_requests_at_once_get_each_its_own_answer_and_nothing_stays_behind(steered_run):
    from cocomix.model.load import load_concept_model

    model, tokenizer = load_concept_model(str(steered_run))

    def ask(number: int) -> list[str]:
        settings = GenerateSettings(
            model="", max_new_tokens=8, seed=number, temperature=number % 3 / 2, samples=1 + (number % 3 > 0)
        )
        text = EDITS[number % len(EDITS)]
        prompt = "The old harbour"[: 3 + number % 12]
        return continuations(model, tokenizer, prompt, settings, [parse_edit(text)] if text else [])

    alone = [ask(number) for number in range(REQUESTS)]
    gc.collect()
    before = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    with ThreadPoolExecutor(REQUESTS) as pool:
        together = list(pool.map(ask, range(REQUESTS)))
    assert together == alone
    assert len({str(texts) for texts in together}) > REQUESTS // 2
    gc.collect()
    assert sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()) <= before
    assert model.mixer.edit_point.idle
    assert not model._forward_pre_hooks


def test_threads_that_ask_one_teacher_get_each_its_own_strengths(steered_run):
    view = TeacherView(str(steered_run), "cpu")
    every = torch.arange(64)

    def ask(number: int) -> list[float]:
        ids = torch.arange(number, number + 4 + number % 5)
        return view.strengths(ids, every.expand(len(ids), -1)).flatten().tolist()

    alone = [ask(number) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(40))) == alone


def test_a_thread_without_edits_is_not_touched_by_those_of_others():
    model = tiny_model()
    ids = torch.arange(1, 13)[None]
    with torch.no_grad():
        plain = model(ids).logits
    wrong, stop = [], threading.Event()

    def steer() -> None:
        while not stop.is_set():
            with torch.no_grad(), steering(model, [Edit(3, "set", 30.0, start=2)]):
                if not (model(ids).concept_logits[:, 2:, 3] == 30.0).all():
                    wrong.append("an edit was lost")

    threads = [threading.Thread(target=steer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        with torch.no_grad():
            if not torch.equal(model(ids).logits, plain):
                wrong.append("another's edit was seen")
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_tasks_of_one_thread_see_each_its_own_edits():
    model = tiny_model()
    ids = torch.arange(1, 13)[None]

    async def ask(strength: float) -> set[float]:
        with steering(model, [Edit(3, "set", strength)]):
            await asyncio.sleep(0)
            with torch.no_grad():  # the thread's: it must not be left to another task's end
                return set(model(ids).concept_logits[..., 3].flatten().tolist())

    async def together() -> list[set[float]]:
        return await asyncio.gather(ask(8.0), ask(9.0))

    assert asyncio.run(together()) == [{8.0}, {9.0}]


def test_a_thread_in_a_copied_context_is_steered_until_the_context_ends():
    model = tiny_model()
    ids = torch.arange(1, 13)[None]

    def look() -> bool:
        with torch.no_grad():
            return bool((model(ids).concept_logits[..., 3] == 30.0).all())

    with ThreadPoolExecutor(1) as pool, steering(model, [Edit(4, "set", 9.0)]):
        with steering(model, [Edit(3, "set", 30.0)]):
            copied = contextvars.copy_context()
            assert pool.submit(copied.run, look).result()
            assert not pool.submit(look).result()
        assert not pool.submit(copied.run, look).result()


def test_an_error_in_one_thread_leaves_the_edits_of_another():
    model = tiny_model()
    ids = torch.arange(1, 13)[None]
    with torch.no_grad(), steering(model, [Edit(3, "set", 30.0)]):

        def fail() -> None:
            with steering(model, [Edit(4, "set", 9.0)]):
                raise RuntimeError

        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError):
            pool.submit(fail).result()
        z = model(ids).concept_logits
    assert (z[..., 3] == 30.0).all()
    assert not (z[..., 4] == 9.0).any()
