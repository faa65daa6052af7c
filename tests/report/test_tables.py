"""Tables for a paper: the same numbers in every format, and nothing in a name that breaks them."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from cocomix.compare.comparison import compare
from cocomix.compare.runs import load_run
from cocomix.compare.summary import summary
from cocomix.report.page import write_comparison
from cocomix.report.tables import as_csv, as_latex, as_markdown, tables
from cocomix.testing.run_folders import MadeUpRun


def by_name(comparison):
    return {table.name: table for table in tables(comparison)}


def cell(table, method, column):
    (row,) = [row for row in table.rows if row[0] == method]
    return row[table.columns.index(column)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Two methods, three seeds, benchmarks for one of the methods, a teacher from elsewhere."""
    root = tmp_path_factory.mktemp("scored")
    upstream = {"teacher": None, "sae": {"flops": 1e12, "seconds": 10.0}}
    for seed in (0, 1, 2):
        MadeUpRun(seed=seed).write(root / f"ntp-{seed}")
        losses = (5.0, 4.6, 4.3, 4.2 + 0.01 * seed)
        folder = MadeUpRun(
            method="cocomix", seed=seed, losses=losses, label_flops_per_token=3e6, upstream=upstream
        ).write(root / f"cocomix-{seed}")
        (folder / "benchmarks.json").write_text(json.dumps({"piqa": {"acc": 0.5 + 0.01 * seed, "acc_stderr": 0.012}}))
    return compare([load_run(folder) for folder in sorted(root.iterdir())])


def test_a_row_a_method_with_levels_savings_differences_and_accuracies(scored):
    found = by_name(scored)
    assert list(found) == ["loss", "perplexity", "saved", "difference", "benchmarks"]
    for table in found.values():
        assert [row[0] for row in table.rows] == ["ntp", "cocomix"]
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert cell(found["loss"], "ntp", "final") == "4.300 ± 0.000"
    # Student's t with two degrees of freedom: 4.303 · 0.01 / √3
    assert cell(found["loss"], "cocomix", "tokens") == "4.210 ± 0.025"
    assert cell(found["loss"], "cocomix", "active") == "1M"
    assert cell(found["loss"], "cocomix", "seeds") == "3"
    assert cell(found["loss"], "cocomix", "FLOPs + upstream") == "not known"
    assert cell(found["perplexity"], "ntp", "final") == "73.70 ± 0.00"
    assert cell(found["difference"], "cocomix", "tokens") == "−0.090 (−0.100 to −0.080)"
    # 4.3 is reached at 750k of 1M tokens, with 9e6 FLOPs of 6e6 a token
    assert cell(found["saved"], "cocomix", "tokens") == "25.0 % (25.0 % to 25.0 %)"
    assert cell(found["saved"], "cocomix", "FLOPs + teacher") == "−12.5 % (−12.5 % to −12.5 %)"
    assert cell(found["saved"], "cocomix", "FLOPs + upstream") == "not known"
    assert cell(found["saved"], "ntp", "tokens") == "–"
    assert cell(found["benchmarks"], "cocomix", "piqa acc") == "51.0 ± 1.2"
    assert cell(found["benchmarks"], "ntp", "piqa acc") == "–"


def test_captions_say_where_cost_is_equal_who_shares_upstream_and_what_three_seeds_are_worth(scored):
    found = by_name(scored)
    assert "(tokens 1M; FLOPs, student 6 TFLOP; FLOPs + teacher 6 TFLOP; FLOPs + upstream 6 TFLOP; time" in (
        found["loss"].caption
    )
    assert "borne by 3 runs" in found["saved"].caption
    assert "A 95 % bootstrap over 3 seeds holds the truth in about 75 % of cases" in found["difference"].caption


def test_what_was_never_reached_is_said_in_words_in_every_format(comparison):
    assert cell(by_name(comparison)["saved"], "cocomix", "tokens") == "never reached"
    for text in (as_latex(comparison), as_markdown(comparison), as_csv(comparison)):
        assert "never reached" in text


def test_csv_holds_the_summarys_numbers_in_full(scored):
    ntp, cocomix = csv.DictReader(io.StringIO(as_csv(scored)))
    found = summary(scored)
    pair, method = found["pairs"][0], found["methods"][1]
    assert float(cocomix["final_loss"]) == method["final"]["loss"]["mean"]
    assert float(cocomix["equal_flops_ppl_half"]) == method["equal"]["flops"]["ppl"]["half"]
    assert float(cocomix["equal_flops_at"]) == found["budgets"]["flops"] == 6e12
    assert float(cocomix["flops_saved"]) == pair["flops_saved"]
    assert [float(cocomix[f"flops_saved_{end}"]) for end in ("low", "high")] == pair["intervals"]["flops_saved"]
    assert float(cocomix["loss_difference_student_flops"]) == pair["loss"]["equal_student_flops"]["difference"]
    assert cocomix["equal_upstream_flops_loss"] == cocomix["upstream_flops_saved"] == "not known"
    assert (cocomix["upstream_shared_by"], cocomix["paired_seeds"], cocomix["active_parameters"]) == (
        "3",
        "3",
        "1000000",
    )
    assert (float(cocomix["piqa acc"]), float(cocomix["piqa acc stderr"])) == pytest.approx((0.51, 0.012))
    assert ntp["tokens_saved"] == ntp["piqa acc"] == ""


def test_markdown_is_a_table_of_equal_rows_whatever_a_name_holds(comparison):
    text = as_markdown(comparison)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert len(rows) == 4 * (2 + 4)  # four tables of four methods
    assert {widths[i] for i in range(6)} == {widths[0]}
    assert r"\$a\_b\$ \<script\>alert('x')\</script\>" in text
    assert "<script>" not in text


def test_latex_is_balanced_and_escaped_whatever_a_name_holds(comparison):
    text = as_latex(comparison)
    begun, ended = (re.findall(rf"\\{word}{{([^}}]+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    assert begun.count("tabular") == 4
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"\{(l r*|lr*)\}", table)[1]
        body = table.split(r"\toprule")[1].split(r"\bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 5
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    source = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert re.findall(r"(?<!\\)%", source) == []  # a comment would swallow the rest of its row
    assert set(re.findall(r"(?<!\\)\$[^$]*(?<!\\)\$", source)) == {"$-$", r"$\pm$"}
    assert r"\$a\_b\$ \textless{}script\textgreater{}alert('x')\textless{}/script\textgreater{} \& ''q''" in source
    assert re.findall(r"[±−–]", source) == []


@pytest.mark.parametrize(
    ("format", "file", "start"),
    [
        ("latex", "table.tex", "% Needs \\usepackage{booktabs}"),
        ("markdown", "table.md", "Held-out loss in nats a token"),
        ("csv", "table.csv", "method,baseline,seeds"),
    ],
)
def test_printed_table_is_the_written_file(tmp_path, cli, format, file, start):
    folders = [MadeUpRun(method=method).write(tmp_path / method) for method in ("ntp", "cocomix")]
    code, out, _ = cli("compare", *folders, f"format={format}")
    assert code == 0
    assert out.startswith(start)
    assert out == (tmp_path / "comparison" / file).read_text(encoding="utf-8")


def test_one_run_that_was_never_evaluated_makes_tables_without_numbers(tmp_path):
    run = load_run(MadeUpRun(tokens=(), losses=(), finished=False).write(tmp_path / "run"))
    write_comparison(compare([run]), tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| ntp | 1M | 0 (1 left out) | – | not known |" in text
