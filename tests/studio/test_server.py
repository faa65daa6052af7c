"""The server as programs meet it."""

from __future__ import annotations

import html
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from gradio_client import Client

from cocomix.studio.app import launch
from cocomix.studio.service import Sampling, Studio
from cocomix.studio.settings import StudioSettings
from cocomix.studio.sliders import rows_of

PROMPT = "The country exports"


@pytest.fixture(scope="module")
def server(studio):
    app = launch(studio)
    yield app
    app.close(verbose=False)


def asked(prompt: Any, edits: list[str], seed: Any, new: Any = 6, temperature: Any = 0.8) -> list[Any]:
    """The values of the Steer page's fields."""
    rows, more = rows_of(edits, "u")
    return [prompt, more, new, temperature, seed, *(field for row in rows for field in row)]


def shown(page: str) -> list[str]:
    """The texts that a page shows, prompt included."""
    found = re.findall(r"<p>(.*?)</p></section>", page, re.DOTALL)
    return [html.unescape(re.sub(r"</?span[^>]*>", "", text)) for text in found]


def test_fifty_requests_at_once_each_get_their_own_answer_and_none_fails(server, studio) -> None:
    ids = [mixed.id for mixed in studio.read(PROMPT).tokens[-1].concepts[:2]]
    kinds = [[], [f"{ids[0]}=set:10u"], [f"{ids[1]}=-8u", "5=x3"], ["5=set:30"], [f"{ids[0]}=off"]]
    due = {}
    for n in range(10):
        for made in studio.stream(PROMPT, kinds[n % 5], Sampling(4, 0.8, n)):
            due[n] = [PROMPT + text for text in made if text is not None]
    client = Client(server.local_url, verbose=False)
    jobs = [client.submit(*asked(PROMPT, kinds[n % 5], n % 10, new=4), api_name="/write") for n in range(50)]
    for n, job in enumerate(jobs):
        page, *_, message = job.result(timeout=120)
        assert message == ""
        assert shown(page) == due[n % 10]
    assert [thread for thread in threading.enumerate() if thread.name == "generation"] == []


def test_whoever_waits_for_a_place_is_told_so(run) -> None:
    here = Studio(StudioSettings(model=str(run), port=0, generations=1))
    app, has_begun, may_go_on = launch(here), threading.Event(), threading.Event()
    here.model.register_forward_pre_hook(lambda *_: has_begun.set() or (may_go_on.wait(20) and None))
    client = Client(app.local_url, verbose=False)
    try:
        first = client.submit(*asked(PROMPT, [], 0, new=2), api_name="/write")
        assert has_begun.wait(20)
        second, due = client.submit(*asked(PROMPT, [], 1, new=2), api_name="/write"), time.monotonic() + 10
        while not second.outputs() and time.monotonic() < due:
            time.sleep(0.01)
        assert "waiting …" in second.outputs()[-1][0]
        may_go_on.set()
        assert "done" in first.result(timeout=20)[0]
        assert "done" in second.result(timeout=20)[0]
    finally:
        may_go_on.set()
        app.close(verbose=False)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (asked("x" * 1_000_000, [], 0), "more than the model's 64 positions can hold"),
        (asked(PROMPT, ["5=set:nan"], 0), "is no finite number"),
        (asked(PROMPT, ["9999=off"], 0), "concept 9999 is outside the dictionary"),
        (asked(PROMPT, ["<script>alert(1)</script>"], 0), "is no edit"),
        (asked(PROMPT, [], 0, new=62), "shorten one of them"),
        (asked(PROMPT, [], 0, new=10**9), "new tokens: 1000000000 is no number from 1 to 200"),
        (asked(PROMPT, [], -5), "seed: -5 is no number from 0"),
        (asked(PROMPT, [], "seven"), "seed: seven is no number"),
        (asked(PROMPT, [], 0, temperature=None), "temperature: None is no number"),
        ([*asked(PROMPT, [], 0)[:5], "3", "boost", 1] + ["", "set", 2] * 3, "is none of set, add, scale, ablate"),
        ([*asked(PROMPT, [], 0)[:5], "3", ["set"], 1] + ["", "set", 2] * 3, "is none of set, add, scale, ablate"),
        ([*asked(PROMPT, [], 0)[:5], "3", "set", "lots"] + ["", "set", 2] * 3, "is no number"),
    ],
)
def test_what_is_wrong_is_told_on_the_page_as_text(server, values, sentence: str, capfd) -> None:
    client = Client(server.local_url, verbose=False)
    *_, message = client.predict(*values, api_name="/write")
    assert sentence in html.unescape(message)
    assert "<script" not in message
    assert message.startswith('<p class="alert" role="alert">')
    assert "Traceback" not in "".join(capfd.readouterr())


def test_it_listens_at_this_machine_alone(server) -> None:
    assert server.local_url.startswith("http://127.0.0.1:")
    assert server.share_url is None
    assert StudioSettings(model="x").host == "127.0.0.1"


def test_nothing_of_the_page_is_fetched_from_elsewhere(server) -> None:
    page = urllib.request.urlopen(server.local_url).read().decode()
    config = json.loads(urllib.request.urlopen(server.local_url + "config").read())
    assert re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?://[^"]+', page) == []
    assert not config["analytics_enabled"]
    assert "fonts.googleapis" not in urllib.request.urlopen(server.local_url + "theme.css").read().decode()


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../pyproject.toml",
        "static/..%2f..%2fapp.py",
        "file/etc/passwd",
    ],
)
def test_no_file_is_served(server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.local_url + path)
    assert refused.value.code in (403, 404)


def test_nothing_is_taken_up(server) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n' + b"a" * 100 + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(
        server.local_url + "gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413


def test_who_has_no_password_sees_nothing(studio, run) -> None:
    app = launch(Studio(StudioSettings(model=str(run), port=0)), auth=[("ada", "lovelace")])
    try:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(app.local_url + "config")
        assert refused.value.code == 401
        client = Client(app.local_url, auth=("ada", "lovelace"), verbose=False)
        assert shown(client.predict(*asked(PROMPT, [], 0), api_name="/write")[0])
    finally:
        app.close(verbose=False)


def test_a_port_that_is_taken_is_one_sentence(run, cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, out, err = cli("studio", run, f"port={taken.getsockname()[1]}")
    assert (code, out) == (2, "")
    assert "is not to be had" in err.splitlines()[-1]
    assert "give another port, or port=0" in err.splitlines()[-1]


@pytest.mark.parametrize("given", ["ada", ":secret", "ada:", "@nowhere.txt"])
def test_a_login_that_is_none_is_refused_and_its_password_not_shown(run, cli, given: str) -> None:
    code, _, err = cli("studio", run, "--auth", given)
    assert code == 2
    assert "secret" not in err


def test_a_model_may_be_written_as_a_setting(trained, cli) -> None:
    nowhere = f"model={trained / 'nowhere'}"
    assert cli("studio", nowhere, "port=0")[2] == cli("studio", trained / "nowhere", "port=0")[2]


def test_a_model_without_concepts_is_refused(trained, cli) -> None:
    code, _, err = cli("studio", trained / "runs" / "ntp", "port=0")
    assert code == 2
    assert "predicts no concepts" in err.splitlines()[-1]
