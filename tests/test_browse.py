"""The pages of ``cocu browse``: what they show, who may ask, and that nothing in the data can break them."""

from __future__ import annotations

import dataclasses
import gzip
import html
import io
import re
import subprocess
import sys
import tarfile
import threading
from html.parser import HTMLParser
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import pytest
from curated import NAMES, tables
from PIL import Image
from tiny_world import COLOURS, GROUNDS, jpeg, write_tar, write_world

pytest.importorskip("starlette", reason="browse needs the extra browse")
pytest.importorskip("httpx", reason="its test client needs httpx")

from starlette.testclient import TestClient

from curation.base.errors import CocuError
from curation.run.run import open_run
from curation.tools.browse import command
from curation.tools.browse.app import HEADERS, application
from curation.tools.browse.command import listen, open_views, own_token
from curation.tools.browse.pictures import Pictures
from curation.tools.finder import Finder, image_embedding, scan
from curation.wordlists import read_concepts
from pipelines.curate import main

VOID = {"meta", "img", "br", "link", "input", "rect"}
TOKEN = "token-of-tests"
HOST = "http://127.0.0.1:8642"
EVIL = "<script>alert(1)</script> \"apple\" & 'leaf' <img src=x onerror=alert(2)> boat"
PAGES = (
    *("", "search?q=apple", "search?q=photo&by=caption", "search?q=00&by=key", "search?q=a&by=concept"),
    *(
        "concept?name=apple",
        *(f"concept?name=apple&view={view}" for view in ("doubtful", "omitted", "named", "clusters")),
    ),
    *("image/0", "image/71", "like/3", "vocabulary", "vocabulary?sort=concept&show=kept"),
    *("rejects", "rejects?kind=caption+is+empty"),
)
NOWHERE = (
    *("picture/72", "picture/-1", "picture/..%2f..%2fmanifest.json", "reject/3", "retrieved/72"),
    *("image/72", "like/99999999999", "..%2fmanifest.json", "manifest.json"),
    *("concept?name=nothing", "concept?name=apple&view=x", "concept?name=apple&companion=nothing"),
    *("concept?name=apple&page=1e3", "search?q=a&by=x", "search?q=a&page=0", "search?q=a&page=9999"),
    *("search?q=" + "a" * 201, "vocabulary?sort=x", "rejects?kind=x"),
)


def open_client(folder, cache, edits):
    views = open_views(str(folder), str(edits), str(cache))
    return TestClient(application(views, TOKEN), base_url=f"{HOST}/{TOKEN}/", follow_redirects=False), views


@pytest.fixture(scope="module")
def opened(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browse")
    return open_client(finished, folder / "cache", folder / "edited.csv")


@pytest.fixture(scope="module")
def client(opened):
    return opened[0]


@pytest.fixture(scope="module")
def views(opened):
    return opened[1]


@pytest.fixture(scope="module")
def archives(finished):
    return [row for name in NAMES for row in tables(finished, "archives")[name].to_pylist()]


def rows_of(text):
    """The rows of the images of a page, in order."""
    return [int(row) for row in re.findall(r'<li><a href="/[\w-]+/image/(\d+)">', text)]


def assert_nested(text):
    """Tags nest, ids are unique, and nothing runs that is not ours."""

    class Page(HTMLParser):
        open, ids = [], []

        def handle_starttag(self, tag, attrs):
            names = [name for name, _ in attrs]
            assert not any(name.startswith("on") or name == "style" for name in names)
            if "id" in names:
                self.ids.append(dict(attrs)["id"])
            if tag not in VOID:
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag not in VOID:
                assert self.open.pop() == tag

    page = Page()
    page.open, page.ids = [], []
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert re.findall(r"<script[^>]*>", text) == [f'<script src="/{TOKEN}/keys.js" defer>']


# --- what they show -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_and_stands_alone(path, client):
    answer = client.get(path)
    assert answer.status_code == 200
    assert_nested(answer.text)
    for address in re.findall(r'(?:href|src|action)="([^"]*)"', answer.text):
        assert address.startswith((f"/{TOKEN}/", "#", "data:,"))


def test_every_link_leads_somewhere(client):
    links = {link for path in PAGES for link in re.findall(r'(?:href|src)="(/[^"#]*)', client.get(path).text)}
    assert len(links) > 150
    for link in links:
        if "/reject/" not in link:  # has no picture where it could not be decoded
            assert client.get(HOST + html.unescape(link)).status_code in (200, 303), link


def test_a_gallery_has_the_archives_of_its_concept(client, archives):
    scores = {row: e["score"] for row, a in enumerate(archives) for e in a["concepts"] if e["concept"] == "apple"}
    best = sorted(scores, key=lambda row: (-scores[row], row))
    assert len(best) > 3
    assert rows_of(client.get("concept?name=apple").text) == best[:48]
    assert rows_of(client.get("concept?name=apple&view=doubtful").text) == best[::-1][:48]
    omitted = [row for row in best if "apple" not in archives[row]["caption"]]
    assert rows_of(client.get("concept?name=apple&view=omitted").text) == omitted[:48]
    clusters = client.get("concept?name=apple&view=clusters").text
    assert set(rows_of(clusters)) <= set(best)
    for link in re.findall(r'href="[^"]*(companion=[^"&]*)"', clusters):
        assert set(rows_of(client.get(f"concept?name=apple&{link}").text)) <= set(best)


def test_long_lists_go_over_pages(client, archives):
    said = [row for row, archive in enumerate(archives) if "photo" in archive["caption"]]
    assert len(said) == 72
    first, second = (client.get(f"search?q=photo&by=caption&page={page}").text for page in (1, 2))
    assert rows_of(first) + rows_of(second) == said
    assert 'rel="next"' in first and 'rel="next"' not in second and 'rel="prev"' in second


def test_a_search_by_looks_has_the_nearest_images(client, views, finished):
    query = views.finder.embed_words("an apple")
    texts = views.finder.embed_words("apple")
    vectors = np.concatenate([np.stack(t["embedding"].to_numpy()) for t in tables(finished, "embeddings").values()])
    cosines = vectors.astype(np.float32) @ texts[0]
    shown = rows_of(client.get("search?q=apple").text)
    assert len(shown) == 48
    assert cosines[shown[-1]] >= np.sort(cosines)[-48] - 2e-3
    assert np.all(np.diff(cosines[shown]) <= 2e-3)
    assert query.shape == texts.shape


def test_an_image_says_why_each_concept_is_there(client, archives, views):
    row = next(row for row, archive in enumerate(archives) if len(archive["concepts"]) > 2)
    text = client.get(f"image/{row}").text
    neighbours = views.evidence.neighbours(row)
    assert [n.caption for n in neighbours] == [archives[n.row]["caption"] for n in neighbours]
    items = re.findall(r"<li title=.*?</li>", text, re.DOTALL)
    assert len(items) == len(archives[row]["concepts"])
    for item, entry in zip(items, archives[row]["concepts"], strict=True):
        numbers = [int(number) for number in re.findall(r'href="#n(\d+)"', item)]
        expected = [
            n for n, neighbour in enumerate(neighbours) if re.search(rf"\b{entry['concept']}s?\b", neighbour.caption)
        ]
        assert numbers == expected
        assert len(numbers) == entry["support"]
        assert f">{entry['concept']}</a>" in item
        assert ("new</span>" in item) == (not re.search(rf"\b{entry['concept']}s?\b", archives[row]["caption"]))


def test_truth_is_marked_where_sidecars_tell(client, views, finished):
    views.pictures.prepare(threading.Event())
    text = client.get("concept?name=apple").text
    marks = re.findall(r'image/(\d+)">.*?class="tag (seen|unseen)"', text)
    assert len(marks) == len(rows_of(text))
    for row, mark in marks:
        shard, at = views.catalogue.position(int(row))
        objects = views.pictures.sidecar(shard, at, views.catalogue.key(int(row)))["objects"]
        assert (mark == "seen") == ("apple" in objects)


def test_pictures_are_those_of_the_tars(client, views, world):
    for row in (0, 30, 71):
        with tarfile.open(world.parent / f"{views.catalogue.position(row)[0]:05d}.tar") as tar:
            content = tar.extractfile(f"{views.catalogue.key(row)}.jpg").read()
        ours = Image.open(io.BytesIO(client.get(f"picture/{row}?side=1024").content))
        theirs = Image.open(io.BytesIO(content)).convert("RGB")
        assert ours.size == theirs.size
        assert np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).mean() < 12


def test_a_compressed_tar_has_pictures_too(finished, world, tmp_path):
    tar = tmp_path / "00000.tar"
    tar.write_bytes(gzip.compress((world.parent / "00000.tar").read_bytes()))
    run = open_run(str(finished))
    packed_run = dataclasses.replace(run, shards=(run.shards[0]._replace(path=str(tar)), *run.shards[1:]))
    plain, packed = Pictures(run, str(tmp_path / "plain")), Pictures(packed_run, str(tmp_path / "packed"))
    assert packed.thumbnail(0, 3, "000003", 160) == plain.thumbnail(0, 3, "000003", 160)
    assert packed.sidecar(0, 3, "000003") == plain.sidecar(0, 3, "000003")


def test_rejects_by_reason(client, finished):
    text = client.get("rejects").text
    for reject in tables(finished, "rejects")["00001"].to_pylist():
        assert f"<bdi>{reject['key']}</bdi>" in text
    assert "3 of 75 samples (4.00%)" in text
    assert "bad2" in client.get("rejects?kind=caption+is+empty").text
    assert [client.get(f"reject/{number}").status_code for number in range(4)].count(200) == 1  # bad2's only


def test_searches_that_lead_to_one_thing_go_there(client):
    assert client.get("search?q=Apples&by=concept").headers["location"] == f"/{TOKEN}/concept?name=Apples"
    assert client.get("concept?name=Apples").status_code == 200
    assert client.get("search?q=+").headers["location"] == f"/{TOKEN}/"
    assert "near are apple" in client.get("search?q=aple&by=concept").text


# --- the vocabulary -------------------------------------------------------------------------------------------------------


def test_an_edit_is_written_and_leads_back(finished, tmp_path):
    client, views = open_client(finished, tmp_path / "cache", tmp_path / "edited.csv")
    asked = {"name": "apple", "action": "drop", "show": "all", "sort": "count", "page": "1"}
    answer = client.post("vocabulary", data=asked)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/{TOKEN}/vocabulary?show=all&sort=count&page=1#c=apple"
    client.post("vocabulary", data={"name": "boat", "action": "rename", "to": "ship"})
    everything = [*COLOURS, *GROUNDS]
    expected = {"ship" if name == "boat" else name for name in everything if name != "apple"}
    assert set(read_concepts(str(tmp_path / "edited.csv"))) == expected
    text = client.get("vocabulary?show=edited").text
    assert "was boat" in text and text.count("<tr ") == 2
    assert client.post("vocabulary", data={"name": "boat", "action": "rename", "to": ""}).status_code == 400
    assert client.post("vocabulary", data={"name": "x" * 20_000}).status_code == 413
    assert set(read_concepts(views.table.path)) == expected


def test_the_table_of_the_run_is_never_the_one_that_is_written(finished, tmp_path):
    with pytest.raises(CocuError, match="the table of the run itself"):
        open_views(str(finished), str(finished / "vocabulary.csv"), str(tmp_path))


# --- who may ask ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/vocabulary", "/token-of-test/", "/token-of-tests2/", "//", f"/x/{TOKEN}/"])
def test_without_the_token_nothing_is_shown(path, client):
    for method in ("GET", "POST"):
        answer = client.request(method, HOST + path)
        assert answer.status_code == 403
        assert "apple" not in answer.text


@pytest.mark.parametrize("host", ["evil.example:8642", "127.0.0.1.evil.example:80", "", "evil.example"])
def test_another_name_for_this_machine_is_refused(host, client):
    assert client.get("", headers={"host": host}).status_code == 400


def test_every_answer_forbids_what_is_not_needed(client):
    for path in ("", "picture/0", "keys.js", "nothing/here", "image/100000"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["content-security-policy"]


@pytest.mark.parametrize("path", NOWHERE)
def test_what_is_not_there_is_an_answer_of_one_line(path, client):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


def test_nothing_in_the_data_becomes_markup(tiny_clip, tmp_path):
    rows = [(f"{row:02d}{'<b>' if row % 2 else ''}", EVIL if row % 2 else "an apple") for row in range(12)]
    members = [
        m for key, caption in rows for m in ((f"{key}.jpg", jpeg(apple="red")), (f"{key}.txt", caption.encode()))
    ]
    write_tar(tmp_path / "00000.tar", [*members, ("x<script>.jpg", b"no"), ("x<script>.txt", EVIL.encode())])
    (tmp_path / "concepts.txt").write_text("apple\nleaf\nboat\n<i>img</i>\n")
    write_world(tmp_path / "world.yaml", tiny_clip, shards="00000.tar", max_rejects=1)
    assert (
        main(["--data", str(tmp_path / "world.yaml"), "--output", str(tmp_path / "out"), "--runner", "inprocess"]) == 0
    )

    client, _ = open_client(tmp_path / "out", tmp_path / "cache", tmp_path / "edited.csv")
    paths = [path.replace("71", "1").replace("name=apple", "name=boat") for path in PAGES[:-1]]
    for path in [
        *paths,
        f"search?q={quote(EVIL)}&by=caption",
        f"search?q={quote(EVIL)}&by=concept",
        "search?q=01<b>&by=key",
    ]:
        text = client.get(path).text
        assert_nested(text)
        assert not re.search(r"<(b|i|img src=x)>|<img src=x", text)
    assert "&lt;script&gt;alert(1)" in client.get("image/1").text


# --- the command ----------------------------------------------------------------------------------------------------------


def test_the_token_stays_the_same_and_only_its_owner_reads_it(tmp_path):
    token = own_token(str(tmp_path))
    assert own_token(str(tmp_path)) == token
    assert len(token) >= 22
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    (tmp_path / "token").write_text("short")
    assert own_token(str(tmp_path)) not in ("short", token)


def test_a_port_that_is_taken_is_one_line_or_the_next():
    first = listen(None)
    second = listen(None)
    with first, second:
        assert first.getsockname()[0] == "127.0.0.1"
        assert first.getsockname()[1] < second.getsockname()[1]
        with pytest.raises(CocuError, match="cannot be listened at"):
            listen(first.getsockname()[1])


def test_without_the_extra_it_says_what_to_install(monkeypatch, finished, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert command.main([str(finished)]) == 1
    assert "pip install 'cocu[browse]'" in capsys.readouterr().err


# --- the search beneath ---------------------------------------------------------------------------------------------------


def test_comparing_all_is_what_the_index_finds(finished):
    run = open_run(str(finished))
    query = image_embedding(run, 1, 5)
    rows, cosines = Finder(run).nearest(query, 10)
    all_rows, all_cosines = scan(run, query, 10)
    np.testing.assert_allclose(cosines, all_cosines, atol=1e-3)
    assert rows[0] == all_rows[0] == 29
    stored = pq.read_table(finished / "embeddings" / "00001.parquet")["embedding"][5].as_py()
    np.testing.assert_allclose(query[0], np.array(stored, np.float32), atol=1e-3)


def test_an_interruption_before_the_server_begins_is_quiet(finished, tmp_path):
    """Ctrl-C when uvicorn has made its coroutine, and has not awaited it."""
    code = (
        "import asyncio, signal, sys\n"
        "asyncio.Runner.run = lambda self, work, **options: signal.raise_signal(signal.SIGINT)\n"
        "from cocu.__main__ import main\n"
        "sys.exit(main())"
    )
    words = ["browse", str(finished), "--cache", str(tmp_path)]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "stopped\n")
