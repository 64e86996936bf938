"""A whole run in miniature: every kind of stage, a second start, changed settings, stops, the verbs on its result."""

import json
import os
import re
import shutil
import signal
import socket
import time

import pytest
import torch

import ziphius as face
from ziphius.checkpoint import load_model
from ziphius.cost.ledger import read_abandoned, read_rows
from ziphius.ledger.clock import time_spent
from ziphius.ledger.folder import evaluations, present_stages
from ziphius.recipe.lock import Lock
from ziphius.recipe.run import run_recipe
from ziphius.recipe.schema import load_recipe
from ziphius.text.corpora import open_source
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.metrics import read_metrics
from ziphius.train.state import find_state

from .conftest import RECIPE, read

STAGES = ["01-tokenizer", "02-pretrain", "03-cold_start", "04-rl"]
TIMES = ("seconds", "tokens_per_second", "mfu", "rollout_seconds")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run with its control, made by one process; do not change it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    torch.set_num_threads(1)
    run_recipe(load_recipe(recipe), run, control=True)
    return run


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def stamps(run):
    """When each stage of a run was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in sorted(run.glob("stages/*/stage.json"))}


def metrics(run, stage):
    rows = read_metrics(run / "stages" / stage)
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def again(recipe, run, *overrides, **options):
    """Run once more in this process; which stages were made anew."""
    before = stamps(run)
    summary = run_recipe(load_recipe(recipe, list(overrides)), run, **options)
    after = stamps(run)
    return [name for name in after if after[name] != before.get(name)], summary


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_summary(finished):
    summary = read(finished / "summary.json")
    assert (summary["name"], summary["seed"], summary["machine"]["processes"]) == ("mini", 3, 1)
    model = load_model(finished / "stages" / "04-rl")
    assert summary["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert 0 < summary["parameters"]["active"] < summary["parameters"]["total"]
    assert [(stage["name"], stage["kind"]) for stage in summary["stages"]] == [
        ("tokenizer", "tokenizer"),
        ("pretrain", "pretrain"),
        ("data of pretrain", "data"),
        ("cold_start", "sft"),
        ("data of cold_start", "data"),
        ("evaluate cold_start", "evaluation"),
        ("rl", "grpo"),
        ("evaluate rl", "evaluation"),
        ("start-up and waiting", "startup"),
    ]
    assert "abandoned" not in summary
    assert summary["total_seconds"] == pytest.approx(sum(stage["seconds"] for stage in summary["stages"]))
    for stage in summary["stages"]:
        assert stage["seconds"] > 0
        assert stage["device_hours"] == pytest.approx(stage["seconds"] / 3600)
        assert stage["dollars"] == pytest.approx(stage["device_hours"] * 0.36)
        assert (stage["tokens"] > 0) == (stage["kind"] in ("pretrain", "sft", "grpo"))
        assert (stage["mfu"] is not None) == (stage["tokens"] > 0)
    assert summary["stages"][1]["tokens"] == read_metrics(finished / "stages" / "02-pretrain")[-1]["tokens"]
    assert summary["stages"][1]["gate"] == 0.0
    assert 0 <= summary["mismatch"] < 0.1
    assert summary["load_violation"] >= 0
    assert summary["price"] == {"dollars_per_hour": 0.36, "what": "a test"}


@pytest.mark.parametrize("control", [False, True])
def test_evaluations(finished, control):
    summary = read(finished / "summary.json")
    part = summary["control"] if control else summary
    assert [entry["after"] for entry in part["evaluations"]] == ["cold_start", "rl"]
    for entry in part["evaluations"]:
        assert (entry["task"], entry["family"], entry["split"], entry["n"]) == ("sums", "chain_sum", "test", 4)
        low, high = entry["ci95"]
        assert 0 <= low <= entry["pass_at_1"] <= high <= 1
        assert 0 <= entry["greedy"] <= 1
        assert "examples" not in entry
    if control:
        names = [stage["name"] for stage in part["stages"]]
        assert names[:5] == ["cold_start", "data of cold_start", "evaluate cold_start", "rl", "evaluate rl"]
        (found,) = evaluations(finished / "control" / "stages" / "04-rl")
        examples = found["examples"]
        assert len(examples) == 4


def test_files_of_the_stages(finished):
    assert [path.name for path in sorted((finished / "stages").iterdir())] == STAGES
    for stage in STAGES[1:]:
        folder = finished / "stages" / stage
        for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl",
                     "ledger.jsonl", "stage.json"):  # fmt: skip
            assert (folder / name).is_file(), (stage, name)
        assert 1 <= len(list((folder / "state").glob("step-*.pt"))) <= 2
    data = read(finished / "stages" / "02-pretrain" / "data.json")
    assert data["documents"]["lessons"] > 0
    assert (finished / "report.html").read_text().startswith("<!")
    assert read(finished / "recipe.json")["name"] == "mini"
    assert not list(finished.rglob("*.tmp"))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_transformers_opens_the_stages(finished, stage):
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    folder = finished / "stages" / stage
    theirs, its = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    ours, tokenizer = load_model(folder), Tokenizer.load(folder)
    messages = [{"role": "user", "content": "1 + 2 ="}]
    ids = its.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.prompt_ids("1 + 2 =")
    with torch.no_grad():
        difference = theirs(torch.tensor([ids])).logits - ours(torch.tensor([ids])).logits
    assert difference.abs().max() < 1e-4


def test_the_public_face_on_a_stage(finished):
    folder = finished / "stages" / "04-rl"
    model, tokenizer = face.load_model(folder, dtype=torch.float32), face.Tokenizer.load(folder)
    (text,) = face.generate(model, ["1 + 2 ="], tokenizer, max_new_tokens=5, temperature=1.0, seed=1)
    assert isinstance(text, str)


# --- second starts ---------------------------------------------------------------------------------------------------


def test_a_second_start_repeats_nothing(recipe, copy, capfd):
    before = (copy / "summary.json").read_text()
    made, summary = again(recipe, copy)
    assert made == []
    assert capfd.readouterr().err.count("done before") == 4
    assert read(copy / "summary.json") == summary
    anew = {"machine": 0, "total_seconds": 0}  # its speed is measured each time, and looking takes its time
    old = json.loads(before)
    assert old["stages"].pop() != summary["stages"].pop()  # the time of starting up
    assert summary | anew == old | anew


def contents(run):
    """Every file that training wrote, with its bytes."""
    return {path: path.read_bytes() for path in run.glob("stages/*/*") if path.is_file()}


def test_a_changed_stage_begins_beside_the_old_one(recipe, copy, capfd):
    before = contents(copy)
    made, _ = again(recipe, copy, "rl.train.optimizer.lr=2e-4")
    (beside,) = made
    assert beside.startswith("04-rl-")
    said = capfd.readouterr().err
    assert f"rl: train.optimizer.lr 0.0001 → 0.0002; begins in {beside}, and 04-rl stays as it is" in said
    assert {path: path.read_bytes() for path in before} == before
    assert present_stages(copy)[-1].name == beside
    assert [row.name for row in read_abandoned(copy)] == ["rl (other settings)", "evaluate rl (other settings)"]
    assert again(recipe, copy, "rl.train.optimizer.lr=2e-4")[0] == []
    assert again(recipe, copy)[0] == []  # and back
    assert present_stages(copy)[-1].name == "04-rl"


@pytest.mark.parametrize(
    "override",
    [
        "rl.train.save_every=2", "rl.train.recompute=selective", "evaluation.show=1", "evaluation.n=3",
        "price.dollars_per_hour=9.0",
        'tasks.unused={family="gcd"}', 'corpora.none={task="sums",weight=0}', "name=other",
    ],
)  # fmt: skip
def test_what_a_result_does_not_depend_on_repeats_nothing(recipe, copy, override):
    before = contents(copy)
    made, summary = again(recipe, copy, override)
    assert made == []
    trained = {path: data for path, data in before.items() if path.name != "evaluation.json"}
    assert {path: path.read_bytes() for path in trained} == trained
    assert len(summary["evaluations"]) == 2


def test_a_changed_evaluation_is_asked_again_and_the_old_one_kept(recipe, copy, capfd):
    old = [evaluations(folder) for folder in present_stages(copy)]
    again(recipe, copy, "evaluation.samples=1")
    assert "rl: asking 4 held-out problems again (evaluation.samples 2 → 1)" in capfd.readouterr().err
    assert evaluations(copy / "stages" / "04-rl")[0]["samples"] == 1
    again(recipe, copy)
    assert "asking" not in capfd.readouterr().err
    assert [evaluations(folder) for folder in present_stages(copy)] == old


def test_until_runs_no_more_and_forgets_nothing(recipe, copy):
    made, summary = again(recipe, copy, until="tokenizer")
    assert made == []
    assert [stage["name"] for stage in summary["stages"]][-2:] == ["evaluate rl", "start-up and waiting"]
    made, summary = again(recipe, copy, "pretrain.train.steps=5", until="pretrain")
    assert [name[:11] for name in made] == ["02-pretrain"]
    assert [stage["name"] for stage in summary["stages"]][:2] == ["tokenizer", "pretrain"]
    assert {row["name"] for row in summary["abandoned"]} >= {
        "pretrain (other settings)",
        "evaluate rl (other settings)",
    }
    assert (copy / "report.html").exists()


def test_bills_and_the_clock_agree(finished, copy, recipe):
    again(recipe, copy, "rl.train.steps=2")
    for run in (finished, copy):
        billed = sum(row.seconds for row in read_rows(run) + read_abandoned(run))
        assert billed == pytest.approx(sum(time_spent(run).values()), abs=1.0)


def test_clean_shows_and_only_then_deletes(recipe, copy, ziphius):
    again(recipe, copy, "rl.train.steps=2")
    paid = sum(row.seconds for row in read_abandoned(copy))
    code, out, _ = ziphius("clean", copy)
    assert code == 0
    assert "stages/04-rl " in out
    assert "finished; train.steps 3 → 2 now" in out
    assert "Nothing was deleted" in out
    assert (copy / "stages" / "04-rl" / "model.safetensors").exists()
    assert ziphius("clean", copy, "--yes")[0] == 0
    assert not (copy / "stages" / "04-rl").exists()
    assert sum(row.seconds for row in read_abandoned(copy)) == pytest.approx(paid, abs=0.2)  # what it cost stays billed
    assert "nothing to clean" in ziphius("clean", copy)[1]
    assert again(recipe, copy, "rl.train.steps=2")[0] == []


def test_damaged_weights_are_refused_and_written_anew(recipe, copy):
    stage = copy / "stages" / "02-pretrain"
    whole = (stage / "model.safetensors").read_bytes()
    damaged = bytearray(whole)
    damaged[-20] ^= 1
    (stage / "model.safetensors").write_bytes(damaged)
    assert again(recipe, copy)[0] == []  # nothing is built on it
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*; remove .*02-pretrain/stage.json, and the"):
        run_recipe(load_recipe(recipe, ["cold_start.examples=20"]), copy)
    (stage / "stage.json").unlink()
    assert "02-pretrain" in again(recipe, copy, "cold_start.examples=20")[0]
    assert (stage / "model.safetensors").read_bytes() == whole


def test_more_processes_than_memory_holds_are_refused_at_once(recipe, tmp_path, ziphius):
    code, _, said = ziphius("run", recipe, "--out", tmp_path / "run", "--set", "machine.processes=9999")
    assert code == 1
    assert "9999 processes are too many here: this run needs about" in said
    assert said.count("\n") == 1


def test_one_run_at_a_time(recipe, copy, ziphius):
    lock = Lock(copy)
    assert lock.take() is None
    for arguments in (["run", recipe, "--out", copy], ["clean", copy, "--yes"]):
        code, _, said = ziphius(*arguments)
        assert code == 1
        assert said == (
            f"ziphius: {copy} is in use by process {os.getpid()} on {socket.gethostname()}; wait for it, stop it, or "
            "give this run another folder with --name or --out\n"
        )
    lock.release()
    (copy / "lock.json").write_text('{"pid": 1, "host": "gone"}')  # what a killed owner leaves
    assert again(recipe, copy)[0] == []


def test_another_name_is_another_folder(recipe, ziphius, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ziphius("run", recipe, "--name", "longer", "--until", "tokenizer")[0] == 0
    assert read(tmp_path / "runs" / "longer-seed3" / "summary.json")["name"] == "longer"


def test_until_the_tokenizer_has_a_summary_too(recipe, tmp_path):
    summary = run_recipe(load_recipe(recipe), tmp_path / "run", until="tokenizer")
    assert "parameters" not in summary
    assert [stage["name"] for stage in summary["stages"]] == ["tokenizer", "start-up and waiting"]


def test_the_same_seed_gives_the_same_run(recipe, finished, tmp_path):
    run_recipe(load_recipe(recipe), tmp_path / "run", until="cold_start")
    for stage in STAGES[1:3]:
        assert metrics(tmp_path / "run", stage) == metrics(finished, stage)
        name = f"stages/{stage}/model.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_replaced_files_are_read_again(tmp_path, capfd):
    text = tmp_path / "text.txt"
    text.write_text("Whales dive.\n\n" * 30)
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "Who?", "response": "<think>\\nWhales.\\n</think>\\n\\nA whale."}\n' * 6)
    path = tmp_path / "r.toml"
    path.write_text(
        RECIPE.replace(
            '[corpora.lessons]\ntask = "sums"', f'[corpora.lessons]\npath = "{text}"\ndocuments = "paragraph"'
        ).replace('kind = "sft"\ntask = "sums"', f'kind = "sft"\npath = "{chats}"')
    )
    run = tmp_path / "run"
    run_recipe(load_recipe(path), run, until="cold_start")
    assert again(path, run, until="cold_start")[0] == []
    chats.write_text(chats.read_text() + '{"prompt": "Where?", "response": "Deep."}\n')
    assert [name[:13] for name in again(path, run, until="cold_start")[0]] == ["03-cold_start"]
    capfd.readouterr()
    again(path, run, "evaluation.n=6", until="cold_start")
    assert (
        "cold_start: 2 of the questions are others than 02-pretrain's text was kept free of" in capfd.readouterr().err
    )
    os.utime(text, (1, 1))  # another time of change is no other text
    assert again(path, run, until="cold_start")[0] == []
    text.write_text("Whales dive deep.\n\n" * 30)
    made = again(path, run, until="cold_start")[0]
    assert sorted(re.sub("-[0-9a-f]{6}$", "", name) for name in made) == STAGES[:3]


def test_a_line_mended_where_it_was_not_read_yet_repeats_nothing(tmp_path, capfd):
    text = tmp_path / "text.txt"
    lines = [f"Whale number {number} dives {number % 7} times a day.\n" for number in range(150_000)]  # 6 MB
    text.write_text("".join(lines))
    path = tmp_path / "r.toml"
    corpus = f'[corpora.lessons]\npath = "{text}"\ndocuments = "line"'
    path.write_text(
        RECIPE.replace('[corpora.lessons]\ntask = "sums"', corpus)
        .replace("documents = 60", "sample_bytes = 65536")
        .replace('probe = "sums"\nprobe_n = 4', "")
        .replace("gate_every = 3, gate_target = 1.0, ", "")
    )
    run = tmp_path / "run"
    run_recipe(load_recipe(path), run, until="pretrain")
    mixture = find_state(run / "stages" / STAGES[1] / "state").state["source"]["mixture"]
    lessons = mixture["sources"]["lessons"]["source"]["source"]  # below what filters and what shuffles it
    parts = open_source(text, "line", seed=3).files
    unread = max({*range(len(parts))} - {*map(int, lessons["read"]), lessons["file"]})
    number = int(next(parts[unread][1](text, 0))[0].split()[2])
    lines[number] = lines[number].replace("dives", "sings")
    text.write_text("".join(lines))
    made, _ = again(path, run, until="pretrain")
    assert "02-pretrain" not in made
    assert "pretrain: text.txt changed, but not up to where this stage has read it: it stays" in capfd.readouterr().err
    lines[0] = "Whale number 0 sings.\n"
    text.write_text("".join(lines))
    made, _ = again(path, run, until="pretrain")
    assert made[-1].startswith("02-pretrain-")
    assert "pretrain: what it is built on changed; begins in" in capfd.readouterr().err


# --- processes -------------------------------------------------------------------------------------------------------


def test_two_processes_and_a_stop(recipe, finished, start, tmp_path):
    """Stopped twice by SIGTERM and killed once, a run with two processes ends as one that was let alone."""
    run = tmp_path / "run"
    command = ["run", recipe, "--out", run, "--set", "machine.processes=2"]

    def when(stage, lines):
        process = start(*command)
        log = run / "stages" / stage / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= lines):
            time.sleep(0.01)
        return process

    stopped = when("02-pretrain", 2)
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert re.search(r"ziphius: pretrain stopped at step \d; its state is saved; the same command goes on", said)
    assert said.count("ziphius:") == 1
    assert "Traceback" not in said
    killed = when("04-rl", 1)
    killed.kill()
    killed.communicate()
    time.sleep(0.5)  # its workers die with it
    last = start(*command)
    out, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert "pretrain: done before" in said
    assert "mini, seed 3: 4 held-out problems of sums" in out
    assert f"ziphius chat {run}/stages/04-rl" in out
    summary = read(run / "summary.json")
    assert summary["machine"]["processes"] == 2
    assert read(run / "machine.json")["processes"] == 2
    rows = read_rows(run)
    assert {row.name for row in rows if row.kind == "lost"} <= {"lost in pretrain", "lost in rl"}
    assert sum(row.seconds for row in rows) == pytest.approx(sum(time_spent(run).values()), abs=1.0)
    one, two = metrics(finished, "02-pretrain"), metrics(run, "02-pretrain")
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=0.02)


def test_mistakes_found_on_the_way_are_one_line(start, tmp_path):
    """Two processes meet it and one says so; how many there shall be was tried out before, and is remembered."""
    path, run = tmp_path / "r.toml", tmp_path / "run"
    path.write_text(RECIPE)
    options = ["--set", "machine.processes=0", "--set", "evaluation.max_new_tokens=245"]
    process = start("run", path, "--out", run, *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line]
    assert line.startswith("ziphius: evaluation.max_new_tokens is 245 and prompts of tasks.sums take up to ")
    assert re.search(r"but the model reaches 256; lower it to 2\d\d, or raise model.overrides.max_position", line)
    machine = read(run / "machine.json")
    assert machine["processes"] * machine["threads_per_process"] <= machine["cores"]


# --- the verbs on a finished run -------------------------------------------------------------------------------------


def test_eval(finished, ziphius):
    options = ["--task", "chain_sum", "--set", "max_digits=1", "--set", "min_digits=1", "--set", "max_terms=3",
               "--n", 3, "--samples", 2, "--max-new-tokens", 6]  # fmt: skip
    code, out, _ = ziphius("eval", finished / "stages" / "04-rl", *options)
    assert code == 0
    assert "chain_sum, split test: 3 problems, 2 samples each" in out
    assert re.search(r"pass@1 +\d", out)
    code, out, _ = ziphius("eval", finished, *options, "--json")  # of a run: its last stage
    assert code == 0
    assert json.loads(out)["n"] == 3
    code, _, said = ziphius("eval", finished, *options, "--device", "cuda:63")
    assert code == 1
    assert said.startswith("ziphius: device is 'cuda:63', but torch sees ")


def test_chat(finished, ziphius):
    def ask(folder):
        code, out, _ = ziphius("chat", folder, "1 + 2 =", "--max-new-tokens", 6, "--seed", 0)
        assert code == 0
        return re.sub(r"[\d.,]+ a second", "", out)

    assert ask(finished).strip()
    assert ask(finished / "stages" / "04-rl") == ask(finished)
    code, _, _ = ziphius("chat", finished, "1 + 2 =", "--max-new-tokens", 6, "--no-thinking")
    assert code == 0


def test_doctor(finished, ziphius):
    code, out, _ = ziphius("doctor", finished)
    assert code == 0
    assert "04-rl" in out


def test_cost(finished, ziphius):
    code, out, _ = ziphius("cost", finished)
    assert code == 0
    assert "Training costs of run" in out
    assert "evaluate rl" in out
    assert "At $0.36/h (a test)." in out
    assert "it leaves out data, evaluation, start-up." in out
    assert "÷ planned" in out
    code, out, _ = ziphius("cost", finished, "--json")
    found = json.loads(out)
    assert [row["name"] for row in found["stages"]] == [row.name for row in read_rows(finished)]
    table = found["table"]
    assert list(table) == [
        "pre-training", "fine-tuning", "reinforcement", "data", "evaluation", "start-up",
        "lost or redone", "total",
    ]  # fmt: skip
    assert table["total"]["dollars"] == pytest.approx(sum(row["dollars"] for row in found["stages"]))
    assert table["pre-training"]["ratio"] == pytest.approx(
        table["pre-training"]["device_hours"] / table["pre-training"]["planned_device_hours"]
    )
    assert 0 < found["share_left_out"] < 1
    dearer = json.loads(ziphius("cost", finished, "--json", "--rate", 3.6)[1])
    assert dearer["table"]["total"]["dollars"] == pytest.approx(10 * table["total"]["dollars"])
    assert [row["name"] for row in found["control"]] == [row.name for row in read_rows(finished / "control")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost", "."], "no run folder (it has no stages/)"),
        (["chat", "nowhere", "hi"], "nowhere"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", ".", "--task", "leg_countin"], "unknown family 'leg_countin'; did you mean leg_counting"),
        (["eval", ".", "--n", "0"], "n: Input should be greater than 0 (got 0)"),
        (["doctor", "nowhere"], "nowhere has no stages/ folder"),
    ],
)
def test_wrong_folders_and_options_are_one_line(ziphius, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, said = ziphius(*arguments)
    assert (code, out) == (1, "")
    assert said.startswith("ziphius: ")
    assert message in said
    assert said.count("\n") == 1
    assert "Error" not in said


def test_doctor_of_a_run_without_rl(finished, ziphius, tmp_path):
    shutil.copytree(finished / "stages" / "01-tokenizer", tmp_path / "stages" / "01-tokenizer")
    code, out, _ = ziphius("doctor", tmp_path)
    assert (code, "no stage has trained yet" in out) == (0, True)
    shutil.copytree(finished / "stages" / "02-pretrain", tmp_path / "stages" / "02-pretrain")
    code, out, _ = ziphius("doctor", tmp_path)
    assert (code, "02-pretrain: healthy: no illness found" in out) == (0, True)


def test_debug_shows_the_traceback(start):
    _, said = start("--debug", "cost", "nowhere").communicate()
    assert "Traceback" in said
    assert "ValueError: nowhere: no run folder" in said
