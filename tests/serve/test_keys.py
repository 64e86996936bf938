"""Keys: a file that several change and one reads, what each key may use, and whose pages may bring one."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.scripted import ScriptedEngine
from tests.serve.test_limits import body, error_of, until
from ziphius.cli import main
from ziphius.disk.write import write_text
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.price import Rate
from ziphius.serve.key_file import delete_key, list_keys, new_key
from ziphius.serve.wire.allowances import Allowances
from ziphius.serve.wire.keys import Allowance, Key, Keys, WatchedKeys
from ziphius.serve.wire.settings import ServeSettings

NOON = 20_000 * 86_400 + 43_200.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def engine(tokenizer):
    return ScriptedEngine(lambda _: tokenizer.encode("whales dive deep"))


def name_of(keys, **headers):
    found = keys.find(headers.get("bearer"), headers.get("x"))
    return found and found.name


# The file


def test_keys_are_hashed_and_checked(path, serve, engine):
    key, other = new_key(path, "ada"), new_key(path, "bo")
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    keys = Keys.load(path)
    assert name_of(keys, bearer=f"Bearer {key}") == name_of(keys, x=key) == "ada"
    assert name_of(keys, bearer=f"bearer {other}") == name_of(keys, bearer="Bearer none", x=other) == "bo"
    for wrong in (None, "", key, f"Basic {key}", f"Bearer {key}x", "Bearer ", "Bearer \udc80"):
        assert name_of(keys, bearer=wrong) is None
        assert name_of(keys, x=wrong and f"Bearer {wrong}") is None
    server = serve(engine, keys=keys)
    assert error_of(server.ask(max_tokens=3), 401)["code"] == "invalid_api_key"
    for closed in ("/metrics", "/v1/models", "/nowhere", "/tokenize"):
        assert error_of(server.http.get(closed), 401)
    for opened in ("/health", "/", "/page/page.css", "/openapi.json"):
        assert server.http.get(opened).status_code in (200, 404)
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-Api-Key": key}):
        assert server.http.post("/v1/chat/completions", json=body(3), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# none\n", "holds no key"),
        ("\nada sha256:12\n", r"keys:2: a line is `name sha256:`, 64 hex digits"),
        (f"ada sha256:{'0' * 64} whales=3\n", r"keys:1: 'whales=3' is not an allowance; they are requests_per_minute"),
        (f"ada sha256:{'0' * 64} tokens_per_day=-1\n", r"keys:1: 'tokens_per_day=-1': a positive number"),
        (f"ada sha256:{'0' * 64} dollars_per_day=nan\n", "a positive number"),
        (f"ada sha256:{'0' * 64}\n" * 2, r"keys:2: there are two keys called 'ada'"),
    ],
)
def test_a_wrong_file_of_keys_names_the_line(path, text, says):
    with pytest.raises(ValueError, match="no such file of keys"):
        Keys.load(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        Keys.load(path)


def test_the_command_makes_lists_and_deletes(path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["ziphius", "key", str(path), *words])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        return (code, *capsys.readouterr())

    assert run("ada", "--tokens-per-day", "1000", "--dollars-per-day", "0.5")[1].startswith("zk-")
    path.write_text("# ours\n" + path.read_text() + "\n")
    assert run("bo")[0] == 0
    assert run()[1] == "ada tokens_per_day=1000 dollars_per_day=0.5\nbo\n"
    assert run("bo", "--delete")[:2] == (0, "")
    assert path.read_text().startswith("# ours\nada sha256:")
    for words, says in (
        (("ada",), "has a key called 'ada' already"),
        (("bo", "--delete"), "has no key called 'bo'"),
        (("--delete",), "needs the name"),
        (("--tokens-per-day", "3"), "say its name"),
        (("a b",), "use one word"),
        (("x" * 65,), "use one word"),
    ):
        code, out, said = run(*words)
        assert (code, out, said.count("\n")) == (1, "", 1)
        assert says in said
    assert list_keys(path) == ["ada tokens_per_day=1000 dollars_per_day=0.5"]


def test_six_at_once_lose_no_key(path):
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: new_key(path, f"k{n}"), range(24)))
    keys = Keys.load(path)
    assert [name_of(keys, x=key) for key in made] == [f"k{n}" for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: delete_key(path, f"k{n}"), range(23)))
    assert list_keys(path) == ["k23"]


def test_a_running_service_follows_the_file(path, serve, engine, caplog):
    ada, bo = new_key(path, "ada"), new_key(path, "bo")
    server = serve(engine, keys=WatchedKeys(path))
    status = lambda key: server.http.get("/v1/models", headers={"X-Api-Key": key}).status_code
    assert (status(ada), status(bo)) == (200, 200)
    delete_key(path, "bo")
    assert (status(ada), status(bo)) == (200, 401)
    new = new_key(path, "cy")
    assert status(new) == 200
    good = path.read_text()
    path.write_text(good + "damaged\n")
    assert (status(ada), status(new), status(bo)) == (200, 200, 401)
    assert "stay in force" in caplog.text
    for lock_out in (path.unlink, lambda: path.write_text("")):
        lock_out()
        assert (status(ada), status(new), status("")) == (401, 401, 401)
        assert server.http.get("/v1/models").status_code == 401
        assert "nobody is let in" in caplog.text
        caplog.clear()
        write_text(path, good)
        assert (status(ada), status(bo)) == (200, 401)


def test_keys_that_the_system_would_not_read_are_read_once_it_does(path, monkeypatch, caplog):
    ada, bo = new_key(path, "ada"), new_key(path, "bo")
    keys = WatchedKeys(path)
    delete_key(path, "bo")
    refusing = lambda path: (_ for _ in ()).throw(OSError(24, "Too many open files"))
    with monkeypatch.context() as patch:
        patch.setattr("ziphius.serve.wire.keys.read_keys", refusing)
        for _ in range(3):
            assert name_of(keys, x=bo) == "bo"
    assert caplog.text.count("Too many open files") == 1
    assert name_of(keys, x=bo) is None
    assert name_of(keys, x=ada) == "ada"


# What a key may use


@pytest.mark.parametrize(
    ("allowance", "code", "wait"),
    [
        ({"requests_per_minute": 3}, "requests_per_minute_exceeded", 60),
        ({"requests_per_day": 3}, "requests_per_day_exceeded", 86_400),
        ({"tokens_per_day": 25}, "tokens_per_day_exceeded", 86_400),
        ({"dollars_per_day": 1e-9}, "dollars_per_day_exceeded", 86_400),
    ],
)
def test_beyond_its_allowance_a_key_is_told_when_to_come_back(path, serve, engine, allowance, code, wait):
    key, free = new_key(path, "ada", Allowance(**allowance)), new_key(path, "bo")
    server = serve(engine, keys=WatchedKeys(path), rate=Rate(3600.0))
    server.service.allowances._now = lambda: NOON + 1
    ask = lambda key: server.http.post("/v1/chat/completions", json=body(4, stream=False), headers={"X-Api-Key": key})
    answers = [ask(key) for _ in range(5)]
    served = [answer.status_code for answer in answers].index(429)
    assert 1 <= served <= 3
    assert error_of(answers[served], 429)["code"] == code
    assert 0 < int(answers[served].headers["Retry-After"]) <= wait
    assert ask(free).status_code == 200
    assert server.http.get("/v1/models", headers={"X-Api-Key": key}).status_code == 200
    used = server.service.allowances.used
    tokens = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
    assert (used["ada"].requests, used["ada"].tokens) == (served, tokens)
    server.service.allowances._now = lambda: NOON + 86_400
    assert ask(key).status_code == 200
    text = server.http.get("/metrics", headers={"X-Api-Key": free}).text
    assert 'ziphius_owner_requests_total{owner="ada"} 6.0' in text
    assert 'ziphius_owner_tokens_total{kind="written",owner="bo"} 4.0' in text
    assert 'ziphius_owner_dollars_total{owner="ada"}' in text


def test_the_wait_ends_with_the_day():
    now = [NOON]
    allowances = Allowances(now=lambda: now[0])
    key = Key("ada", "0" * 64, Allowance(requests_per_day=1, requests_per_minute=9))
    allowances.enter(key)
    with pytest.raises(ApiError) as told:
        allowances.enter(key)
    assert told.value.wait == 43_200
    now[0] += told.value.wait - 0.5
    with pytest.raises(ApiError):
        allowances.enter(key)
    now[0] += 0.5
    allowances.enter(key)


def test_what_was_used_outlives_the_service(tmp_path, caplog):
    kept, key = tmp_path / "keys.used.json", Key("ada", "0" * 64, Allowance(tokens_per_day=10))
    first = Allowances(kept, now=lambda: NOON)
    first.enter(key)
    first.count("ada", 10, 0.5)
    first.save()
    again = Allowances(kept, now=lambda: NOON + 5)
    assert again.used == first.used
    with pytest.raises(ApiError, match="may use 10 tokens a day"):
        again.enter(key)
    Allowances(kept, now=lambda: NOON + 86_400).enter(key)
    for damaged in ("{", "[]", '{"day": 20000, "used": {"ada": {"x": 1}}}'):
        kept.write_text(damaged)
        Allowances(kept, now=lambda: NOON).enter(key)
        assert "begin this day anew" in caplog.messages[-1]
    lost = Allowances(tmp_path / "file" / "x", now=lambda: NOON)
    (tmp_path / "file").write_text("")
    lost.enter(key)
    lost.save()
    assert "could not be written" in caplog.messages[-1]


def test_the_counts_are_saved_while_the_service_runs(path, tmp_path, serve, engine, monkeypatch):
    monkeypatch.setattr("ziphius.serve.wire.allowances._SAVE_EACH", 0.05)
    key = new_key(path, "ada")
    server = serve(engine, keys=WatchedKeys(path), allowances=Allowances(tmp_path / "used.json"))
    asked = server.http.post("/v1/chat/completions", json=body(2), headers={"X-Api-Key": key})
    assert asked.status_code == 200
    until((tmp_path / "used.json").exists)
    saved = json.loads((tmp_path / "used.json").read_text())
    assert saved["used"]["ada"]["requests"] == 1


# Pages of other sites


def test_a_page_of_another_site_needs_leave(serve, engine, path):
    key = new_key(path, "ada")
    ours = "https://chat.example"
    asks = {"Origin": ours, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    closed = serve(engine, keys=Keys.load(path))
    assert closed.http.options("/v1/chat/completions", headers=asks).status_code in (401, 405)
    assert "access-control-allow-origin" not in closed.http.get("/health", headers={"Origin": ours}).headers
    server = serve(engine, keys=Keys.load(path), cors=(ours, "http://localhost:3000"))
    leave = server.http.options("/v1/chat/completions", headers=asks)
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == ours
    assert "authorization" in leave.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in leave.headers
    stranger = server.http.options("/v1/chat/completions", headers=asks | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    refused = server.http.post("/v1/chat/completions", json=body(1), headers={"Origin": ours})
    assert error_of(refused, 401)
    assert refused.headers["access-control-allow-origin"] == ours
    got = server.http.post("/v1/chat/completions", json=body(1), headers={"Origin": ours, "X-Api-Key": key})
    assert (got.status_code, got.headers["access-control-allow-origin"]) == (200, ours)
    assert "X-Ignored-Fields" in got.headers["access-control-expose-headers"]
    anyone = serve(engine, cors=("*",))
    assert anyone.http.get("/health", headers={"Origin": ours}).headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["chat.example", "https://a.example/", "https://u@a.example", "null", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin):
    with pytest.raises(ValueError, match="an origin is a scheme and a host"):
        ServeSettings(cors=(origin,))
