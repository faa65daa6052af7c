from __future__ import annotations

import pytest

from cocomix.stages import Job, Stage


class Work:
    """Stages that note that they ran and write a file each."""

    def __init__(self, folder):
        self.folder, self.ran = folder, []

    def stages(self, dies: str = "", **settings) -> list[Stage]:
        def work(name: str):
            def do():
                self.ran.append((name, (self.folder / name).exists()))
                (self.folder / name).write_text("x")
                if name == dies:
                    raise KeyboardInterrupt
                return {"flops": 7}

            return do

        return [Stage(n, f"does {n}", lambda: 1.0, (n,), settings.get(n, 0), work(n)) for n in ("one", "two", "three")]


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path)


def test_finished_stages_are_found_again(work, tmp_path):
    record = Job(tmp_path).run(work.stages())
    assert record["two"]["facts"] == {"flops": 7}
    work.ran.clear()
    assert Job(tmp_path).run(work.stages()) == record
    assert work.ran == []


def test_an_interrupted_stage_goes_on_with_what_it_left(work, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Job(tmp_path).run(work.stages(dies="two"))
    work.ran.clear()
    Job(tmp_path).run(work.stages())
    assert work.ran == [("two", True), ("three", False)]


def test_changed_settings_do_the_stage_and_all_behind_it_anew_from_nothing(work, tmp_path):
    Job(tmp_path).run(work.stages())
    work.ran.clear()
    Job(tmp_path).run(work.stages(two=1))
    assert work.ran == [("two", False), ("three", False)]


def test_a_lost_output_is_made_again(work, tmp_path):
    Job(tmp_path).run(work.stages())
    work.ran.clear()
    (tmp_path / "two").unlink()
    Job(tmp_path).run(work.stages())
    assert ("two", False) in work.ran
