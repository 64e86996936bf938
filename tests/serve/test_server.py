"""A real model in a folder, served by the real command: the official client, kills, drains, and tokens kept."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import anthropic
import httpx2
import openai
import pytest
import torch

from ziphius.checkpoint.folder import save_model
from ziphius.cli import main
from ziphius.engine.engine import Engine
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.serve.terminal.converse import converse

MAIN = "import sys; sys.argv[0] = 'ziphius'; from ziphius.cli import main; main()"


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "whale"
    torch.manual_seed(0)
    model = Transformer(
        ladder(2, tokenizer.vocab_size, hidden_size=32, initializer_range=0.3, max_position_embeddings=512)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, path)
    tokenizer.save(path)
    return path


class Served:
    """`ziphius serve` in a process of its own."""

    def __init__(self, folder, *arguments):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-c", MAIN, "serve", str(folder), "--port", str(self.port), *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.hello = ""
        while "Ctrl-C" not in self.hello:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.hello += line
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def served(folder):
    found = Served(folder, "--price-list", "deepseek-r1", "--dollars-per-hour", "0.09")
    yield found
    found.stop()


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def stream(url, body):
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        yield from response.iter_lines()


def chat(client, **fields):
    fields = {"messages": [{"role": "user", "content": "how deep?"}], "max_tokens": 40, "seed": 1} | fields
    return client.chat.completions.create(model="whale", **fields)


def test_it_says_where_it_is(served):
    assert f"curl {served.url}/v1/chat/completions" in served.hello
    assert "whale: " in served.hello
    assert f" on {'cuda' if torch.cuda.is_available() else 'cpu'}, " in served.hello
    assert httpx2.get(f"{served.url}/health").json() == {"status": "ok"}


def test_whole_and_streamed_answers_are_the_same(client):
    whole = chat(client).choices[0]
    parts = {"content": "", "reasoning_content": ""}
    for chunk in chat(client, stream=True):
        for key in parts:
            parts[key] += getattr(chunk.choices[0].delta, key, None) or ""
    assert parts["content"] == (whole.message.content or "")
    assert parts["reasoning_content"] == (whole.message.reasoning_content or "")
    assert whole.finish_reason in ("length", "stop")


def test_anthropics_client_gets_the_same_answer(served, client):
    theirs = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    asked = [{"role": "user", "content": "how deep?"}]
    said = chat(client, temperature=0, messages=asked).choices[0].message
    fields = {"model": "whale", "max_tokens": 40, "extra_body": {"temperature": 0}, "thinking": {"type": "adaptive"}}
    message = theirs.messages.create(messages=asked, **fields)
    parts = {block.type: getattr(block, block.type) for block in message.content}
    assert (parts.get("thinking"), parts["text"]) == (said.reasoning_content, said.content)
    stop = said.content[2:4]
    stopped = theirs.messages.create(messages=asked, stop_sequences=["nowhere", stop], **fields)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert stopped.content[-1].text == said.content[: said.content.index(stop)]
    fields["thinking"] = {"type": "disabled"}
    asked = [{"role": "user", "content": "how deep does the whale dive? " * 4}]
    first = theirs.messages.create(messages=asked, **fields)
    turns = [*asked, first.to_param(), {"role": "user", "content": "and now?"}]
    before = first.usage.input_tokens + first.usage.cache_read_input_tokens
    used = theirs.messages.create(messages=turns, **fields).usage
    assert used.cache_read_input_tokens >= (before // 16 - 1) * 16  # whole blocks


def test_a_request_has_a_name(served, client):
    """Clients show it; the log has it."""
    assert re.fullmatch(r"req_[0-9a-f]{24}", chat(client)._request_id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("none")
    assert caught.value.request_id.startswith("req_")
    theirs = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    asked = {"model": "whale", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
    assert theirs.messages.create(**asked)._request_id.startswith("req_")


def test_greedy_answers_do_not_change_with_load(client):
    from concurrent.futures import ThreadPoolExecutor

    ask = lambda n: chat(client, temperature=0, messages=[{"role": "user", "content": f"{n % 3} whales"}])
    alone = [ask(n).choices[0].message for n in range(3)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda n: ask(n).choices[0].message, range(24)))
    for n, message in enumerate(together):
        assert message == alone[n % 3]


def test_a_second_turn_finds_the_first_in_the_cache(client, tokenizer):
    text_only = {str(token): -100 for token in tokenizer.added_ids}  # control tokens come back as text
    off = {"extra_body": {"thinking": {"type": "disabled"}}, "logit_bias": text_only}
    messages = [{"role": "user", "content": "how deep do many whales dive, deep as 1 + 2 = 3?"}]
    first = chat(client, messages=messages, **off)
    messages += [{"role": "assistant", "content": first.choices[0].message.content or "x"}]
    messages += [{"role": "user", "content": "and then?"}]
    second = chat(client, messages=messages, **off)
    before = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_cache_hit_tokens >= (before // 16 - 1) * 16
    assert second.usage.prompt_cache_hit_tokens > first.usage.prompt_tokens


def test_a_json_schema_binds_the_answer_and_not_the_thinking(client):
    schema = {
        "type": "object",
        "properties": {"m": {"enum": [1, 22]}},
        "required": ["m"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "depth", "schema": schema}}
    reply = chat(
        client, response_format=form, max_tokens=400, extra_body={"thinking": {"type": "enabled", "budget_tokens": 9}}
    )
    message = reply.choices[0].message
    assert json.loads(message.content)["m"] in (1, 22)
    assert message.reasoning_content
    assert reply.usage.completion_tokens_details.reasoning_tokens <= 10
    bound = chat(client, response_format={"type": "regex", "pattern": "(ab)+c"}, reasoning_effort="none")
    assert set(bound.choices[0].message.content) <= set("abc")
    with pytest.raises(openai.BadRequestError, match="regular expression"):
        chat(client, response_format={"type": "regex", "pattern": "(ab"})


def test_completions_and_the_middle(client, tokenizer):
    reply = client.completions.create(model="whale", prompt=["a whale", "1 + 2"], max_tokens=5, n=2, logprobs=2, seed=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    logs = reply.choices[0].logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) == len(logs.top_logprobs) == len(logs.text_offset) > 0
    assert max(len(top) for top in logs.top_logprobs) == 2
    assert reply.usage.prompt_tokens == sum(1 + len(tokenizer.encode(text)) for text in ("a whale", "1 + 2"))
    streamed = {0: "", 1: "", 2: "", 3: ""}
    for chunk in client.completions.create(
        model="whale", prompt=["a whale", "1 + 2"], max_tokens=5, n=2, seed=3, stream=True
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == {choice.index: choice.text for choice in reply.choices}
    echoed = client.completions.create(model="whale", prompt="a whale", max_tokens=3, echo=True, seed=3)
    assert echoed.choices[0].text.startswith("a whale")
    middle = client.completions.create(model="whale", prompt="a ", suffix=" deep", max_tokens=4)
    assert middle.usage.prompt_tokens == 4 + len(tokenizer.encode("a ")) + len(tokenizer.encode(" deep"))
    ids = client.completions.create(model="whale", prompt=tokenizer.encode("a whale"), max_tokens=3)
    assert ids.usage.prompt_tokens == len(tokenizer.encode("a whale"))


def test_metrics_are_the_engines(served, client):
    chat(client)
    text = httpx2.get(f"{served.url}/metrics").text
    values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
    assert values["ziphius_engine_generated_tokens_total"] > 0
    assert values["ziphius_engine_disk_read_bytes_total"] >= 0
    assert values["ziphius_blocks_used"] == 0
    assert values["ziphius_dollars_per_hour"] == 0.09
    assert values["ziphius_request_dollars_total"] > 0


def test_the_terminal_talks_to_a_service_and_to_a_folder(served, folder, capsys):
    for target in (served.url, str(folder)):
        converse(target, "how deep?", {"max_tokens": 30, "seed": 1}, thinking=True)
        assert re.search(r"\(cut off.*\n\d+ tokens, [\d,.]+ a second", capsys.readouterr().out)
    with pytest.raises(ValueError, match="v1/models cannot be reached"):
        converse("http://127.0.0.1:9", "x", {}, thinking=True)
    with pytest.raises(ValueError, match="answers 400: the prompt has"):
        converse(served.url, "a whale " * 600, {}, thinking=True)


def test_what_cannot_be_answered_does_not_end_the_conversation(folder, monkeypatch, capsys):
    monkeypatch.setattr("ziphius.serve.terminal.converse._remember_lines", lambda: None)
    for question, settings, says in (
        ("a whale " * 600, {}, "the model reads and writes 512 at most"),
        ("how deep?", {"temperature": 3}, "temperature: Input"),
    ):
        spoken = iter([question, question])
        monkeypatch.setattr("builtins.input", lambda _, spoken=spoken: next(spoken, ""))
        converse(str(folder), None, settings, thinking=True)
        assert capsys.readouterr().out.count(says) == 2


def test_ctrl_c_stops_the_answer_and_not_the_conversation(folder, monkeypatch, capsys):
    """The second line is asked after the first answer was stopped, and nothing of it stays in the engine."""
    from ziphius.serve.terminal import local

    engines, spoken = [], iter(["how deep?", "and wide?"])
    monkeypatch.setattr("ziphius.serve.terminal.converse._remember_lines", lambda: None)
    monkeypatch.setattr("builtins.input", lambda _: next(spoken, ""))
    monkeypatch.setattr(local, "Engine", lambda *rest: engines.append(Engine(*rest)) or engines[-1])
    push = ReplyParser.push

    def interrupted(self, token, stop=None):
        if len(engines) == 1:
            engines.append(None)
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, token, stop)

    monkeypatch.setattr(ReplyParser, "push", interrupted)
    converse(str(folder), None, {"max_tokens": 8, "seed": 1}, thinking=True)
    out = capsys.readouterr().out
    assert "(stopped)" in out
    assert "8 tokens, " in out
    assert engines[0].stats().blocks_used == engines[0].stats().running == 0


def test_sigterm_lets_an_answer_end_and_takes_no_more(folder):
    served = Served(folder, "--set", "drain_seconds=20")
    try:
        body = {"model": "whale", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 450}
        body |= {"min_tokens": 450}
        with httpx2.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            with pytest.raises(httpx2.HTTPError):
                httpx2.get(f"{served.url}/health", timeout=5)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert served.process.wait(20) == 0
    finally:
        served.stop()


def test_a_kill_in_the_middle_of_a_stream_ends_it_for_the_client(folder):
    served = Served(folder)
    try:
        body = {"model": "whale", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 450}
        lines = stream(served.url, body | {"min_tokens": 450})
        for _ in range(5):
            next(lines)
        served.process.kill()
        with pytest.raises(httpx2.TransportError):
            list(lines)
    finally:
        served.stop()


def test_mistakes_at_the_start_are_one_line(folder, tmp_path, monkeypatch, capsys):
    for arguments, says in (
        ([folder, "--host", "0.0.0.0"], "ziphius: 0.0.0.0 can be reached from other machines"),
        ([folder, "--host", "192.0.2.1", "--open-to-all"], "cannot listen at 192.0.2.1, port 0"),
        ([folder / "config.json"], "is a file; give the folder"),
        ([folder, "--set", "drain_seconds=inf"], "drain_seconds: Input should be a finite number"),
        ([tmp_path], "holds no config.json"),
        ([folder, "--keys", tmp_path / "none"], "no such file of keys"),
        ([folder, "--set", "max_whales=3"], "max_whales is no setting here"),
        ([folder, "--set", "max_rows"], "write it as key=value"),
        ([folder, "--price-list", "gpt-whale"], "gpt-whale"),
        ([folder, "--device", "gpu"], "it must be auto, cpu, cuda or cuda:NUMBER"),
    ):
        monkeypatch.setattr(sys, "argv", ["ziphius", "serve", "--port", "0", *map(str, arguments)])
        with pytest.raises(SystemExit, match="1"):
            main()
        out, said = capsys.readouterr()
        assert out == ""
        assert says in said
        assert said.count("\n") == 1
        assert len(said) < 300


def test_help_needs_neither_torch_nor_the_services_packages():
    heavy = "{'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules)"
    for verb in ("serve", "chat", "key"):
        program = f"import sys; sys.argv = ['ziphius', '{verb}', '--help']\nfrom ziphius.cli import main\n"
        program += f"try: main()\nfinally: print('imported', *{heavy}, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "imported\n")
        assert "Example" in done.stdout


def test_missing_packages_are_named_with_the_mend(folder, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    monkeypatch.setattr(sys, "argv", ["ziphius", "serve", str(folder)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == "ziphius: serving needs uvicorn: pip install 'ziphius[serve]'\n"
