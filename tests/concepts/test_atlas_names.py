"""Names that people give, searches, and what a stranger may put into an atlas."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cocomix.cli import main
from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_explanations import AUTOMATIC, export_names, import_names
from cocomix.concepts.build_atlas import build_atlas
from cocomix.concepts.settings import AtlasSettings
from cocomix.errors import UserError
from cocomix.testing.databases import killed_while_changing

SPACES = "UPDATE concepts SET card = card || printf('%4000s', '')"


@pytest.fixture(scope="module")
def made(labelled: Path) -> Path:
    """An atlas, to be copied."""
    return build_atlas(AtlasSettings(labels=str(labelled))).path


@pytest.fixture
def atlas(made: Path, tmp_path: Path) -> Atlas:
    """An atlas of its own."""
    return Atlas.open(shutil.copy(made, tmp_path / "atlas.sqlite"))


def test_a_given_name_is_seen_by_readers_found_and_can_be_taken_off(atlas: Atlas) -> None:
    automatic = atlas.name(5)
    atlas.rename(5, "  zebras at dusk ", "Ada")
    entry = atlas.concept(5)
    assert (entry["name"], entry["author"], entry["automatic_name"]) == ("zebras at dusk", "Ada", automatic)
    assert [e["id"] for e in atlas.search("zebras")] == [5]
    assert atlas.search("zeb dusk")[0]["name"] == "zebras at dusk"
    atlas.rename(5, "giraffes")
    assert atlas.search("zebras") == []
    assert atlas.given()[0].name == "giraffes"
    atlas.unname(5)
    assert (atlas.name(5), atlas.given(), atlas.search("giraffes")) == (automatic, [], [])


def test_given_names_stay_when_the_atlas_is_made_again(labelled: Path, made: Path) -> None:
    with_name = Atlas.open(made)
    with_name.rename(9, "quokkas", "Ada")
    try:
        again = build_atlas(AtlasSettings(labels=str(labelled), tokens=3000))
        assert again.concept(9)["name"] == "quokkas"
        assert [e["id"] for e in again.search("quokkas")] == [9]
        assert again.given()[0].author == "Ada"
    finally:
        Atlas.open(made).unname(9)


@pytest.mark.parametrize("spoil", ["UPDATE about SET value = '1' WHERE key = 'format'", "DROP TABLE token_index"])
def test_given_names_outlive_an_atlas_that_can_no_longer_be_opened(labelled: Path, made: Path, spoil: str) -> None:
    Atlas.open(made).rename(9, "quokkas", "Ada")
    with closing(sqlite3.connect(made)) as connection:
        connection.execute(spoil)
        connection.commit()
    try:
        assert build_atlas(AtlasSettings(labels=str(labelled), tokens=3000)).concept(9)["name"] == "quokkas"
    finally:
        Atlas.open(made).unname(9)


def test_an_atlas_whose_names_cannot_be_read_is_kept_beside_the_new_one(
    labelled: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_bytes(b"no database")
    assert build_atlas(AtlasSettings(labels=str(labelled), tokens=3000)).given() == []
    kept = made.with_name(f"{made.name}.damaged")
    assert kept.read_bytes() == b"no database"
    assert f"the damaged atlas is kept as {kept}" in capsys.readouterr().err
    kept.unlink()


def test_what_a_killed_process_left_half_done_is_taken_back(atlas: Atlas) -> None:
    atlas.rename(5, "zebras")
    killed_while_changing(atlas.path, SPACES)
    again = Atlas.open(atlas.path)
    assert again.name(5) == "zebras"
    assert [again.concept(id) for id in (4, 5)] == [atlas.concept(id) for id in (4, 5)]


@pytest.mark.parametrize("deleted", [False, True])
def test_an_atlas_is_made_again_over_what_a_killed_process_left(labelled: Path, made: Path, deleted: bool) -> None:
    Atlas.open(made).rename(9, "quokkas", "Ada")
    journal = killed_while_changing(made, SPACES)
    if deleted:
        made.unlink()
    again = build_atlas(AtlasSettings(labels=str(labelled), tokens=3000))
    assert not journal.exists()
    assert again.tokens < 4000
    assert [name.name for name in again.given()] == ([] if deleted else ["quokkas"])
    again.unname(9)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("x" * 201, "has 201 characters, 200 at most"),
        ("two\nlines", r"control character '\\n' at place 3"),
        ("\x1b[31mred", "control character"),
        ("left\u202eright", "control character"),
        ("a\ud800", "control character"),
    ],
)
def test_a_name_that_cannot_be_read_is_refused(atlas: Atlas, name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        atlas.rename(3, name)
    assert atlas.given() == []
    with pytest.raises(UserError, match="no concept 64"):
        atlas.rename(64, "x")


def test_names_are_given_while_others_read(atlas: Atlas) -> None:
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        reader = Atlas.open(atlas.path)
        while not done.is_set():
            try:
                name = reader.name(1)
                assert name.startswith("name ") or "→" in name
                reader.search("name")
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(20):
        atlas.rename(1, f"name {number}")
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert atlas.name(1) == "name 19"


@pytest.mark.parametrize(
    "text", ['"', "'", "*", 'a" OR "b', "NEAR(a, b)", "text : the", "-the", "^the", "(", "\0", "\ud800", "x" * 5000, ""]
)
def test_signs_of_a_query_language_are_text(atlas: Atlas, text: str) -> None:
    assert isinstance(atlas.search(text), list)


def test_searches_find_names_then_tokens_then_contexts(atlas: Atlas) -> None:
    everywhere = {e["id"] for e in atlas.search("harb", n=64)}
    assert everywhere  # in contexts: it is cut into tokens
    unlike = next(e for e in reversed(atlas.top(64)) if e["id"] not in everywhere)
    atlas.rename(unlike["id"], "the Harbour")
    found = atlas.search("harb", n=64)
    assert found[0]["id"] == unlike["id"]
    assert {e["id"] for e in found[1:]} == everywhere
    assert [e["count"] for e in found[1:]] == sorted((e["count"] for e in found[1:]), reverse=True)
    assert [e["id"] for e in atlas.search("harb", n=1)] == [unlike["id"]]
    dots = {e["id"] for e in atlas.top(64) if "." in [t["token"] for t in (*e["labelled"], *e["promoted"])]}
    assert dots
    assert dots <= {e["id"] for e in atlas.search(".", n=64)}


def test_markup_in_a_name_is_shown_as_it_is(atlas: Atlas, capsys: pytest.CaptureFixture[str]) -> None:
    atlas.rename(5, "[bold]<b>x</b>[/bold] ")
    assert main(["concepts", "show", "5", f"labels={atlas.path}"]) == 0
    assert "[bold]<b>x</b>[/bold]" in capsys.readouterr().out


def test_names_go_out_and_come_back(atlas: Atlas, tmp_path: Path) -> None:
    atlas.rename(5, "zebras", "Ada")
    file = tmp_path / "names.json"
    written = export_names(atlas, file)
    entries = json.loads(file.read_text(encoding="utf-8"))
    assert written == len(entries) == 64 - atlas.dead
    by_id = {entry["index"]: entry for entry in entries}
    assert (by_id["5"]["description"], by_id["5"]["explanationModelName"]) == ("zebras", "Ada")
    assert by_id["6"]["typeName"] == AUTOMATIC
    assert {"modelId", "layer"} <= by_id["6"].keys()
    assert import_names(atlas, file) == 0  # nothing is new
    by_id["6"] |= {"description": "gnus", "explanationModelName": "some-model", "typeName": "t", "scores": [{"v": 1}]}
    file.write_text(json.dumps(entries))
    assert import_names(atlas, file) == 1
    assert (atlas.concept(6)["name"], atlas.concept(6)["author"]) == ("gnus", "some-model")
    assert export_names(atlas, file) == written
    assert {"index": "6", **by_id["6"]} in json.loads(file.read_text(encoding="utf-8"))


def test_an_object_a_line_is_read_too(atlas: Atlas, tmp_path: Path) -> None:
    file = tmp_path / "names.jsonl"
    file.write_text('{"index": 1, "description": "one"}\n\n{"index": "2", "description": "two"}\n')
    assert import_names(atlas, file) == 2
    assert (atlas.name(1), atlas.name(2)) == ("one", "two")


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ('{"index": "64", "description": "x"}', "line 3: there is no concept 64, ids go from 0 to 63"),
        ('{"index": "-1", "description": "x"}', "line 3: \"index\" '-1' is no concept's number"),
        ('{"index": true, "description": "x"}', "line 3: .* is no concept's number"),
        ('{"index": "3"}', 'line 3: an object with "index" and "description"'),
        ('[{"index": "3", "description": "x"}]', "line 3: an object"),
        ('{"index": "3", "description": ["x"]}', "line 3: .* must be texts"),
        ('{"index": "3", "description": "\\u001b[0m"}', "line 3: .* control character"),
        ('{"index": "3", "description": "x", "explanationModelName": "\\ud800"}', "line 3: .* half of a character"),
        ("{", "is no file of names"),
    ],
)
def test_a_wrong_entry_is_named_with_its_line_and_nothing_is_imported(
    atlas: Atlas, tmp_path: Path, bad: str, told: str
) -> None:
    file = tmp_path / "names.json"
    file.write_text('[\n{"index": "2", "description": "two"},\n' + bad + "\n]\n")
    with pytest.raises(UserError, match=told):
        import_names(atlas, file)
    assert atlas.given() == []


def test_damage_behind_the_first_page_is_told_in_one_sentence(atlas: Atlas) -> None:
    with atlas.path.open("r+b") as file:
        size = file.seek(0, 2)
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    damaged = Atlas.open(atlas.path)
    for ask in (lambda: damaged.concept(5), lambda: damaged.search("the harbour"), lambda: damaged.top(64)):
        with pytest.raises(UserError, match="is damaged .*make it again with 'cocomix concepts atlas"):
            ask()


def test_the_verb_takes_names_out_and_in(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, file = f"labels={atlas.path}", tmp_path / "names.json"
    assert main(["concepts", "names", "export", str(file), labels, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == 64 - atlas.dead
    text = file.read_text(encoding="utf-8")
    entry = {**json.loads(text)[0], "description": "herons", "layer": "9-res-jb"}
    file.write_text(json.dumps([entry]), encoding="utf-8")
    assert main(["concepts", "names", "import", str(file), labels]) == 0
    assert f"1 concepts have new names; the file's are of {entry['modelId']} 9-res-jb" in capsys.readouterr().out
    file.write_text(text.replace('"index": "7"', '"index": "700"'), encoding="utf-8")
    assert main(["concepts", "names", "import", str(file), labels]) == 2
    assert "there is no concept 700" in capsys.readouterr().err
    assert main(["concepts", "names", "import", str(tmp_path / "none.json"), labels]) == 2
    assert "does not exist" in capsys.readouterr().err
