"""``cocomix compare --watch``: followed until the end, told in short, ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cocomix.compare import watch as watching
from cocomix.compare.runs import load_run
from cocomix.compare.watch import is_over, run_folders, state, watch
from cocomix.errors import UserError
from cocomix.testing.run_folders import MadeUpRun

TOKENS, LOSSES = (250_000, 500_000, 750_000, 1_000_000), (5.0, 4.6, 4.4, 4.3)


def at(tmp_path, name, evaluations, finished=False, method="ntp"):
    """A run that has come so far."""
    made = MadeUpRun(method=method, tokens=TOKENS[:evaluations], losses=LOSSES[:evaluations], finished=finished)
    return made.write(tmp_path / name)


def test_looks_follow_a_run_to_its_end_and_say_what_is_new(tmp_path, monkeypatch):
    folder = at(tmp_path, "ntp", 1)
    steps = iter([lambda: None, lambda: at(tmp_path, "ntp", 2), lambda: at(tmp_path, "ntp", 4, finished=True)])
    monkeypatch.setattr(watching, "_wait", lambda seconds, stop: next(steps)())
    looks = []
    last = watch([str(folder)], 5, looks.append)
    assert [(len(look.runs[0].evaluations), look.news, look.last) for look in looks] == [
        (1, True, False),
        (1, False, False),
        (2, True, False),
        (4, True, True),
    ]
    assert last is looks[-1]


def test_finished_runs_are_looked_at_once(tmp_path):
    folder, looks = at(tmp_path, "ntp", 4, finished=True), []
    watch([str(folder)], 600, looks.append)
    assert [look.last for look in looks] == [True]


def test_folder_of_runs_stands_for_its_runs_until_its_sweep_is_over(tmp_path):
    sweep = tmp_path / "sweep"
    folders = [at(sweep, name, 4, finished=True) for name in ("b", "a")]
    assert run_folders([str(sweep)]) == sorted(folders)
    assert run_folders([str(folders[0])]) == [folders[0]]
    runs = [load_run(folder) for folder in folders]
    assert is_over([str(folder) for folder in folders], runs)
    assert not is_over([str(sweep)], runs)  # the next run may not have begun
    (sweep / "sweep.json").write_text("{}")
    assert is_over([str(sweep)], runs)
    begun = [load_run(at(sweep, "a", 2))]
    assert not is_over([str(sweep)], begun)
    (sweep / "sweep.json").write_text(
        '{"runs": [{"name": "a", "state": "failed"}, {"name": "b", "state": "finished"}]}'
    )
    assert is_over([str(sweep)], begun)
    assert not is_over([str(sweep)], [load_run(at(tmp_path / "elsewhere", "a", 2))])


def test_an_earlier_comparison_is_passed_over_and_said_once(tmp_path, capsys):
    folder, told = at(tmp_path, "ntp", 4), set()
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "summary.json").write_text("{}")
    for _ in range(2):
        assert run_folders([str(tmp_path / "comparison"), str(folder)], told) == [folder]
    assert capsys.readouterr().err.count("passed over") == 1


def test_sweep_in_parts_is_over_when_each_part_is(tmp_path):
    sweep = tmp_path / "sweep"
    runs = [load_run(at(sweep, "a", 4, finished=True))]
    (sweep / "sweep-1-2.json").write_text("{}")
    (sweep / "sweep-2-3.json").write_text("{}")  # of another division
    assert not is_over([str(sweep)], runs)
    (sweep / "sweep-2-2.json").write_text("{}")
    assert is_over([str(sweep)], runs)


def test_first_run_of_a_folder_that_is_there_is_waited_for(tmp_path, cli, monkeypatch):
    sweep, done = tmp_path / "sweep", at(tmp_path, "ntp", 4, finished=True)
    (sweep / "cocomix").mkdir(parents=True)  # its log lies in it before its description
    steps = iter([lambda: None, lambda: at(sweep, "cocomix", 4, finished=True, method="cocomix")])
    monkeypatch.setattr(watching, "_wait", lambda seconds, stop: next(steps)())
    code, out, err = cli("compare", sweep / "cocomix", "--watch", "7", "--json")
    assert code == 0, err
    assert err.count(f"no run has begun yet in {sweep / 'cocomix'}: waiting for one") == 1
    assert [run["name"] for run in json.loads(out)["runs"]] == ["cocomix"]
    other, looks = tmp_path / "other", []
    other.mkdir()
    steps = iter([lambda: at(other, "b", 4, finished=True), lambda: (other / "sweep.json").write_text("{}")])
    watch([str(done), str(other)], 5, looks.append)  # what has begun is shown meanwhile
    assert [len(look.runs) for look in looks] == [1, 2, 2]
    assert [look.last for look in looks] == [False, False, True]
    later = tmp_path / "later"
    later.mkdir()
    monkeypatch.setattr(watching, "_wait", lambda seconds, stop: at(tmp_path, "later", 4, finished=True))
    code, _, err = cli("compare", later, done, "--watch")
    assert code == 0, err
    assert {line for line in err.splitlines() if "report: " in line} == {f"report: {tmp_path}/comparison/index.html"}


def test_signal_ends_the_wait_for_a_first_run(tmp_path, cli, monkeypatch):
    monkeypatch.setattr(watching, "_wait", lambda seconds, stop: os.kill(os.getpid(), signal.SIGINT))
    code, out, err = cli("compare", tmp_path, "--watch")
    assert (code, out) == (75, "")
    assert f"stopped: no run has begun in {tmp_path}" in err
    assert "nowhere does not exist" in cli("compare", "nowhere", "--watch")[2]


def test_states_say_how_far_a_run_is_and_that_nothing_comes_any_more(tmp_path):
    folder = at(tmp_path, "ntp", 2)
    assert state(load_run(folder)) == "step 500"
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**manifest, "steps": 1000}))
    assert state(load_run(folder)) == "50%"
    old = time.time() - 720
    os.utime(folder / "metrics.jsonl", (old, old))
    assert state(load_run(folder)) == "50%, quiet for 12 min"
    (folder / "metrics.jsonl").unlink()
    assert state(load_run(folder)) == "starting"
    assert state(load_run(at(tmp_path, "done", 4, finished=True))) == "finished"


def refresh(page):
    return re.findall(r'<meta http-equiv="refresh" content="(\d+)">', page.read_text(encoding="utf-8"))


def test_page_reloads_itself_while_runs_are_followed_and_no_longer_at_the_end(tmp_path, cli, monkeypatch):
    folder, page, seen = at(tmp_path, "ntp", 1), tmp_path / "comparison" / "index.html", []

    def wait(seconds, stop):
        seen.append((seconds, refresh(page), page.stat().st_ino))
        at(tmp_path, "ntp", min(len(seen), 4), finished=len(seen) == 4)

    monkeypatch.setattr(watching, "_wait", wait)
    code, out, err = cli("compare", folder, "--watch", "7")
    assert code == 0
    assert [(seconds, found) for seconds, found, _ in seen] == [(7.0, ["7"])] * 4
    assert seen[0][2] == seen[1][2]  # nothing was new: the page was left alone
    assert seen[1][2] != seen[2][2]
    assert refresh(page) == []
    assert out.count("step 250") == 2
    assert "step 750" in out
    assert "seed  active" in out  # the whole table at the end
    assert err.count("report: ") == 4


def test_json_of_followed_runs_is_the_last_summary_alone(tmp_path, cli, monkeypatch):
    folder = at(tmp_path, "ntp", 1)
    monkeypatch.setattr(watching, "_wait", lambda seconds, stop: at(tmp_path, "ntp", 4, finished=True))
    code, out, _ = cli("compare", "--watch", folder, "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["finished"]


def test_ctrl_c_ends_with_a_whole_page_and_the_verdicts(tmp_path):
    at(tmp_path, "ntp", 2)
    folder = at(tmp_path, "cocomix", 2, method="cocomix")
    page = tmp_path / "comparison" / "index.html"
    words = [sys.executable, "-m", "cocomix", "compare", str(folder), str(tmp_path / "ntp"), "--watch", "600"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "report: " in process.stderr.readline()  # the first page is there, and the long wait begins
        assert refresh(page) == ["600"]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "cocomix against ntp: At equal tokens" in out
    assert refresh(page) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watch", "0.5"], "--watch 0.5: looks are a second apart at least"),
        (["--watch", "5", "6"], "--watch takes one number of seconds, these are 2"),
        (["5"], "5 does not exist"),
        (["format=latex", "--json"], "format=latex and --json both say what is printed: leave one of them out"),
        (["upstream_shared_by=0"], "setting 'upstream_shared_by'=0: input should be greater than or equal to 1"),
        (["format=tex"], "setting 'format'='tex'"),
    ],
)
def test_mistake_is_one_sentence_and_exit_2(tmp_path, cli, words, message):
    code, out, err = cli("compare", at(tmp_path, "ntp", 2, finished=True), *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_looks_less_than_a_second_apart_are_refused(tmp_path):
    with pytest.raises(UserError, match="looks are a second apart at least"):
        watch([str(at(tmp_path, "ntp", 2))], 0, lambda look: None)
