"""The docs are true: links lead somewhere, commands run on small data or are at least understood, the site is whole."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from cocomix.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))

SMALLER = {
    # verb: words that go behind the page's own
    "data prepare": ["vocab_size=384", "window=64", r'separator="\n\n"', "val_fraction=0.1", "limit_documents=100"],
    # so few concepts that a short training meets each, and all of them mixed, so that each has a usual strength
    "train": ["tokens=2048", "batch_windows=8", "evaluations=1", "eval_documents=2", "model.concept_k=96"],
    "sae train": ["tokens=2048", "buffer_tokens=4096", "latents=96"],
    "sae check": ["tokens=2048"],
    "concepts extract": ["force=true", "train_windows=32"],  # an autoencoder of two thousand tokens explains little
    "concepts probabilities": ["train_windows=32"],
    "concepts atlas": ["student_tokens=512", "effects=4", "effect_tokens=64"],
    "generate": ["max_new_tokens=8"],
    "eval": ["documents=2"],
}

STANDS_FOR = {
    # what a page takes for granted: what the tutorial made
    "compare.md": {
        "runs/ntp-s0": "runs/ntp",
        "runs/ntp-s1": "runs/ntp",
        "runs/cocomix-s0": "runs/cocomix",
        "runs/cocomix-s1": "runs/cocomix",
    },
}

NOT_RUN = {
    # what a command line says: why it is parsed and no more
    "pip install ": "changes the environment",
    ".venv": "changes the environment",
    "make ": "changes the environment",
    "torchrun ": "tests/contracts/test_ranks_agree.py starts ranks",
    "lm_eval ": "tests/evaluate/test_lm_eval.py runs it",
    "benchmarks/": "takes minutes to hours, and some other software",
    "tasks=": "reads 85 MB of items; tests/evaluate/ runs each task",
    "data/owt": "a corpus of gigabytes",
    "data/smol": "a released backbone",
    "runs/69m": "a run of GPUs",
    "openai/": "a released autoencoder",
    "openwebtext": "a corpus of gigabytes",
    "cocomix studio ": "serves until it is stopped; tests/studio/ uses it in a browser",
    "steer score ": "takes minutes; tests/steer/test_score.py runs it",
    "--watch": "waits until a sweep has ended; tests/compare/ follows runs",
    "1.38b/": "a dry run of a large model takes a minute",
}
ONLY_PARSED = {"cli.md": "made from the verbs' help: its examples are parsed here, the verbs have tests of their own"}
NO_COMMANDS = {
    # the beginning of a block: what it is
    "src/cocomix/": "the tree of the source",
    "ID=HOW ": "a notation",
    "#!/bin/bash\n#SBATCH": "a job of SLURM: read by bash, its command parsed, see test_slurm_job_is_understood",
}


class Block(NamedTuple):
    """A piece of code on a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"docs/{self.page}:{self.line}"


def read(page: str) -> str:
    """A page's text."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """Fenced blocks in their language ("" where none is given); commands of ours and indented ones need none."""
    lines, number = read(page).splitlines(), 0
    while number < len(lines):
        fence, start = re.match(r"(```+)(\w*)$", lines[number]), number + 1
        if fence:
            number = lines.index(fence[1], start)
            text = "\n".join(lines[start:number])
            yield Block(page, start, fence[2] or "bash" * text.startswith(("cocomix ", "echo ")), text)
        elif re.match(r" {4}\S", lines[number]) and not lines[number - 1].strip():
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            yield Block(page, start, "bash", "\n".join(line[4:] for line in lines[start - 1 : number + 1]))
        number += 1


CODE = [block for page in PAGES for block in blocks(page) if block.language != "text"]


def commands(text: str) -> list[list[str]]:
    """The words of each command; comments, continued lines and ``&&`` are understood, a variable of the shell is 1."""
    lines = re.split(r"\n|&&", re.sub(r"\$\w+", "1", text.replace("\\\n", " ")))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def verb_of(words: list[str]) -> str:
    """The name of the verb that a command's words after ``cocomix`` begin with."""
    from cocomix.cli.app import VERBS

    for verb, _, _ in VERBS:
        if words[: len(verb.split())] == verb.split():
            return verb
    raise AssertionError(f"no verb: cocomix {shlex.join(words)}")


class Understood(BaseException):
    """Raised in the place of a verb's work."""


@pytest.fixture
def accept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Checks a command without running it, by the parsers of the programs themselves."""
    from cocomix import config
    from cocomix.train import plan

    def settings(*args: object, **given: object) -> None:
        load(*args, **given)
        raise Understood

    def nothing(*_: object) -> None:
        raise Understood

    load, real_plan = config.load_settings, plan.plan
    monkeypatch.setattr(config, "load_settings", settings)
    monkeypatch.setattr(plan, "plan", nothing)  # it reads its settings in its own way

    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text(next(block.text for block in CODE if block.language == "yaml"), encoding="utf-8")

    def accept(words: list[str]) -> None:
        match words:
            case ["cocomix", *rest] if verb_of(rest) in ("data verify", "sae convert"):
                assert rest[2:], f"'{shlex.join(words)}' names no folder"
            case ["cocomix", *rest]:
                with contextlib.suppress(Understood):
                    main(rest)
                    pytest.fail(f"{shlex.join(words)}\n{capsys.readouterr().err}")
            case ["torchrun", *rest]:
                from torch.distributed.run import get_args_parser

                asked = get_args_parser().parse_args(rest)
                assert asked.module
                accept([asked.training_script, *asked.training_script_args])
            case ["pip", "install", *what]:
                known = (ROOT / "constraints.txt").read_text() + (ROOT / "pyproject.toml").read_text()
                for before, name in zip(["", *what], what, strict=False):
                    if before == "-c":
                        assert (ROOT / name).is_file()
                    elif not name.startswith("-") and before != "--index-url":
                        extras = re.fullmatch(r"(?:cocomix|\.)\[([\w,]+)\]", name)
                        for part in extras[1].split(",") if extras else [name]:
                            assert re.search(rf"^{part}{'$' if '==' in part else ' *='}", known, re.M), part
            case ["python3", "-m", "venv", ".venv"] | ["source", ".venv/bin/activate"]:
                pass
            case ["echo", _, ">", _]:
                pass
            case ["make", *targets]:
                known = (ROOT / "Makefile").read_text()
                assert all(re.search(rf"^{target}:", known, re.M) for target in targets)
            case ["lm_eval", *_]:
                pass
            case ["python", program, *options] | [program, *options]:
                source = (ROOT / program).read_text()
                beside = (ROOT / program).parent.glob("*.py")
                source += "".join(file.read_text() for file in beside if f"from {file.stem} import" in source)
                for option in options:
                    assert not option.startswith("-") or f'"{option}"' in source, f"{program} has no {option}"

    yield accept
    for module in list(sys.modules.values()):  # that were first imported meanwhile and took the stand-in along
        for name, value in ((name, vars(module)[name]) for name in ("load_settings", "plan") if name in vars(module)):
            if value is settings or value is nothing:
                setattr(module, name, load if value is settings else real_plan)


def small(words: list[str]) -> list[str]:
    """A command's words after ``cocomix`` with small budgets behind them."""
    return words + SMALLER.get(verb_of(words), [])


def run_page(page: str, place: Path, call) -> None:
    """Runs what a page shows, from top to bottom, in a folder; what :data:`NOT_RUN` names is left out."""
    names: dict[str, object] = {"__name__": page}
    for new, old in STANDS_FOR.get(page, {}).items():
        shutil.copytree(place / old, place / new)
    for block in blocks(page):
        if block.language == "python":
            with contextlib.chdir(place):
                exec(compile(block.text, block.place, "exec"), names)
        elif block.language == "yaml":
            (place / "sweep.yaml").write_text(block.text, encoding="utf-8")
            done = call(place, ["sweep", "sweep.yaml", "--list"])
            assert done.code == 0, f"{block.place}\n{done.err}"
        elif block.language == "bash" and not block.text.startswith(tuple(NO_COMMANDS)):
            for words in commands(block.text):
                shown = " ".join(words)
                if any(part in shown for part in NOT_RUN):
                    continue
                if words[0] == "echo" and words[2] == ">":
                    (place / words[3]).write_text(words[1], encoding="utf-8")
                    continue
                assert words[0] == "cocomix", f"{block.place}: {shown}: neither run nor in NOT_RUN"
                done = call(place, small(words[1:]))
                assert done.code == 0, f"{block.place}: {shown}\n{done.err}"
                assert done.out, f"{block.place}: {shown} printed nothing"


@pytest.fixture(scope="module")
def place(call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder in which the tutorial was followed, with small budgets."""
    import torch

    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("reader")
    run_page("tutorial.md", place, call)
    return place


def test_tutorial_runs_from_top_to_bottom(place):
    assert (place / "runs" / "comparison" / "index.html").is_file()
    assert (place / "models" / "mine" / "config.json").is_file()


@pytest.mark.parametrize("page", sorted({block.page for block in CODE} - {"tutorial.md", *ONLY_PARSED}))
def test_what_a_page_shows_runs_in_the_tutorials_folder(page, place, call):
    run_page(page, place, call)


@pytest.mark.parametrize("block", [block for block in CODE if block.language == "bash"], ids=lambda block: block.place)
def test_commands_are_understood(block, accept):
    if not block.text.startswith(tuple(NO_COMMANDS)):
        for words in commands(block.text):
            accept(words)


def test_slurm_job_is_understood(accept):
    job = next(block.text for block in CODE if block.text.startswith("#!/bin/bash\n#SBATCH"))
    assert subprocess.run(["bash", "-n"], input=job, text=True).returncode == 0
    inner = next(word for words in commands(job) for word in words if " cocomix " in word)
    accept(shlex.split(inner[inner.index("cocomix ") :]))


def test_every_block_is_run_or_declared():
    unknown = [
        f"{block.place}: {block.language or 'no language'}"
        for block in CODE
        if block.language not in ("bash", "python", "yaml") and not block.text.startswith(tuple(NO_COMMANDS))
    ]
    assert unknown == []


@pytest.mark.parametrize("part", NOT_RUN)
def test_what_is_not_run_stands_on_a_page(part):
    assert any(part in block.text for block in CODE)


@pytest.mark.parametrize("page", PAGES)
def test_verbs_named_in_a_sentence_exist(page):
    for found in re.findall(r"`cocomix ([a-z][^`]*)`", read(page)):
        verb_of(found.split())


def without_code(text: str) -> str:
    """A page's text without its blocks and pieces of code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_links_lead_somewhere(file):
    source = ROOT / file
    for target in re.findall(r"\]\(([^)\s]+)", without_code(source.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (source.parent / path).resolve() if path else source
        assert goal.is_file(), f"{file}: {target} does not exist"
        assert file == "README.md" or goal.is_relative_to(DOCS), f"{file}: {target} is not a part of the site"
        assert not anchor or anchor in anchors(goal.read_text(encoding="utf-8")), f"{file}: no heading for {target}"


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without making the Python objects that it names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def leaves(tree: object) -> Iterator[str]:
    """The pages in a navigation."""
    for entry in tree if isinstance(tree, list) else tree.values() if isinstance(tree, dict) else []:
        yield from [entry] if isinstance(entry, str) else leaves(entry)


def test_navigation_lists_exactly_the_pages():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)
    assert sorted(leaves(config["nav"])) == PAGES


def test_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="(https?:[^"]+)"', text)
        assert [address for address in loaded if "canonical" not in address] == [], page
    equations = (tmp_path / "method.html").read_text(encoding="utf-8")
    assert equations.count("<math") > 40
    assert "arithmatex" not in equations
