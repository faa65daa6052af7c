"""``cocomix compare`` as it is called."""

from __future__ import annotations

import json

import pytest

from cocomix.testing.run_folders import MadeUpRun


@pytest.fixture
def runs(tmp_path):
    made = {"ntp": (5.0, 4.6, 4.4, 4.3), "cocomix": (5.2, 4.7, 4.4, 4.2)}
    return [str(MadeUpRun(method=m, losses=losses).write(tmp_path / m)) for m, losses in made.items()]


def test_table_and_verdict_are_printed_and_the_report_lies_beside_the_runs(tmp_path, runs, cli):
    code, out, err = cli("compare", *runs)
    assert code == 0
    assert "cocomix against ntp: At equal tokens (1M) cocomix ends 0.100 nats" in " ".join(out.split())
    assert (tmp_path / "comparison" / "index.html").is_file()
    assert str(tmp_path / "comparison" / "index.html") in err
    assert (tmp_path / "comparison" / "plots" / "loss-tokens.svg").is_file()


def test_json_on_stdout_is_the_summary(tmp_path, runs, cli):
    code, out, _ = cli("compare", *runs, f"out={tmp_path / 'here'}", "baseline=cocomix", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed == json.loads((tmp_path / "here" / "summary.json").read_text())
    assert printed["baseline"] == "cocomix"
    assert printed["pairs"][0]["tokens_saved"] is None
    assert not (tmp_path / "comparison").exists()


def test_earlier_comparison_among_the_runs_is_passed_over(tmp_path, runs, cli):
    cli("compare", *runs)
    code, _, err = cli("compare", *runs, tmp_path / "comparison")
    assert code == 0
    assert "holds an earlier comparison, no run: passed over" in err


def test_a_second_report_over_all_folders_replaces_the_first(tmp_path, runs, cli):
    comparison = tmp_path / "comparison"
    comparison.mkdir()
    (comparison / "summary.json").write_text("{}")
    code, _, err = cli("compare", comparison, *runs)
    assert (code, f"report: {comparison / 'index.html'}" in err) == (0, True), err
    assert not (comparison / "comparison").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no run to compare"),
        (["nowhere"], "nowhere does not exist"),
        (["basline=ntp"], "unknown setting 'basline' (did you mean 'baseline'?)"),
    ],
)
def test_mistake_is_one_sentence_and_exit_2(words, message, cli):
    code, out, err = cli("compare", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_help_names_the_settings(cli):
    code, out, _ = cli("compare", "--help")
    assert code == 0
    assert "baseline" in out
    assert "Example: cocomix compare runs/ntp runs/cocomix" in out
