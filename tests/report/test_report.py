"""The page of a run: complete, correct, safe, and whole with parts missing."""

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ziphius.report import page, write_report
from ziphius.report.drawing import AT_MOST, Dot, Line, Picture, compact, thinned, ticks

_SPEC = importlib.util.spec_from_file_location("fake_run", Path(__file__).with_name("fake_run.py"))
fake_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fake_run)

VOID = {"meta", "br", "link", "img", "input"}


class Reader(HTMLParser):
    """The page's text, its tags with their attributes, and whether every tag was closed."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tags, self.open = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


def read(folder) -> Reader:
    reader = Reader(write_report(folder).read_text())
    assert reader.open == []
    return reader


@pytest.fixture
def run(tmp_path):
    fake_run.write_fake_run(tmp_path)
    return tmp_path


def test_shows_the_numbers_of_the_folder(run):
    reader = read(run)
    for shown in (
        "r1-cpu",
        "seed 7",
        "1.42M parameters, of which 912k work on each token",
        "3.0 min",
        "at $0.0425 an hour",
        "half of a spot machine",
        "97.2% (95.7% to 98.7%)",  # pass@1 after RL
        "43.0% (41.5% to 44.5%)",
        "sft, without thinking",
        "2: 98.2%, 4: 99.1%",
        "AMD EPYC 9B45",
        "fp32 150G, bf16 620G",
        "clip_high = 0.28",
        "04-rl : healthy: no illness found .",
    ):
        assert shown in reader.text


def test_the_ledger_adds_up(run):
    summary = json.loads((run / "summary.json").read_text())
    text = read(run).text
    seconds = sum(stage["seconds"] for stage in summary["stages"])
    assert f"total {seconds:.1f} {sum(stage['tokens'] for stage in summary['stages']):,} {seconds / 3600:.4f}" in text
    assert "rl reinforcement learning 41.3 61,440 0.0115 23.2% 0.0005 21.3%" in text


def test_has_every_picture_with_words_for_those_who_cannot_see_it(run):
    reader = read(run)
    labels = [attrs["aria-label"] for tag, attrs in reader.tags if tag == "svg" and "aria-label" in attrs]
    assert len(labels) == sum(tag == "figcaption" for tag, _ in reader.tags) == 10
    (accuracy,) = (label for label in labels if label.startswith("Right answers"))
    assert "held-out, sampled 97% at 60" in accuracy
    assert "held-out, greedy (no thinking) 12% at 60" in accuracy


def test_answers_stand_side_by_side(run):
    reader = read(run)
    assert reader.text.count("After sft:") == reader.text.count("After rl:") == 6
    assert reader.text.count("✗ wrong") == 4
    assert "3 cows +12 =12 3 ants +18 =32" in reader.text
    assert sum(attrs.get("class") == "thinking" for _, attrs in reader.tags) == 12


def test_needs_nothing_from_elsewhere(run):
    path = write_report(run)
    html = path.read_text()
    assert "://" not in html
    assert not re.search(r"@import|url\(", html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in Reader(html).tags}
    assert path.stat().st_size < 3_000_000


def test_escapes_what_a_model_says(tmp_path):
    evil = "<script>alert(1)</script>\n</think>\n<img src=x onerror=alert(2)>"
    fake_run.write_fake_run(tmp_path, response=evil)
    reader = read(tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in reader.tags}
    assert "<script>alert(1)</script>" in reader.text
    assert "<img src=x onerror=alert(2)>" in reader.text


def test_an_answer_without_an_end_to_its_thinking(tmp_path):
    fake_run.write_fake_run(tmp_path, response="and on and on")
    assert "and on and on (no answer)" in read(tmp_path).text


def test_without_a_control(tmp_path):
    fake_run.write_fake_run(tmp_path, control=False)
    text = read(tmp_path).text
    assert "thinking)" not in text
    assert "trained without thinking" not in text


def test_without_reinforcement_learning(tmp_path):
    fake_run.write_fake_run(tmp_path, rl=False, control=False)
    reader = read(tmp_path)
    assert sum(tag == "figure" for tag, _ in reader.tags) == 5
    assert "02-pretrain : healthy: no illness found . 03-sft : healthy: no illness found ." in reader.text
    assert reader.text.count("After sft:") == 6
    assert "After rl" not in reader.text


def test_of_a_run_that_only_made_a_tokenizer(tmp_path):
    fake_run.write_fake_run(tmp_path, rl=False, control=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary |= {"stages": summary["stages"][:1], "evaluations": []}
    del summary["parameters"]
    fake_run.write(tmp_path / "summary.json", summary)
    for stage in ("02-pretrain", "03-sft"):
        (tmp_path / "stages" / stage / "stage.json").unlink()
    reader = read(tmp_path)
    assert not {"figure", "article"} & {tag for tag, _ in reader.tags}
    assert "What it cost" in reader.text


def test_what_the_doctor_finds_is_told(tmp_path):
    rows = [
        {"step": step, "reward": 1.0, "tokens_per_second": 9.0, "seconds": step, "truncated": 0.7}
        for step in range(1, 10)
    ]
    fake_run.write_fake_run(tmp_path, rl_rows=rows)
    text = read(tmp_path).text
    assert "04-rl : ill: 1 illness, 0 warning(s) ." in text
    assert "answers cut off (ill, step 9): 70% of the answers were cut off by the limit. Raise max_new_tokens" in text


def test_updates_that_were_left_out_are_told_and_drawn(run):
    assert "Updates left out" not in read(run).text
    path = run / "stages" / "02-pretrain" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["skipped"] = number // 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = read(run).text
    assert f"pretrain : {rows[-1]['skipped']} of {len(rows)} updates were skipped, as spikes or not finite." in text
    assert "Updates left out" in text
    assert "02-pretrain : ill: 1 illness" in text


def test_what_was_left_out_of_the_data_is_told(run):
    assert "left out of the data" not in read(run).text
    for stage, data in (
        ("02-pretrain", {"dropped": {"books": 1200, "lessons": 1}}),
        ("03-sft", {"contaminated": 3, "empty": 0, "too_long": 0, "cut": 2}),
    ):
        (run / "stages" / stage / "data.json").write_text(json.dumps(data))
    text = read(run).text
    assert "pretrain : 1,201 documents that hold a question of the evaluation." in text
    assert "3 conversations that hold a question of the evaluation, the ends of 2 samples that are longer" in text


def test_a_loss_that_is_not_a_number_leaves_a_gap(run):
    path = run / "stages" / "03-sft" / "metrics.jsonl"
    path.write_text(re.sub(r'"loss": [-.0-9]+', '"loss": NaN', path.read_text(), count=3))
    assert "nan" not in " ".join(attrs.get("points", "") for _, attrs in read(run).tags)


def test_a_writer_that_fails_leaves_the_old_page(run, monkeypatch):
    before = write_report(run).read_text()
    summary = json.loads((run / "summary.json").read_text())
    fake_run.write(run / "summary.json", summary | {"seed": 8})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(run)
    assert (run / "report.html").read_text() == before
    monkeypatch.undo()
    assert "seed 8" in write_report(run).read_text()


def test_the_same_folder_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_folder_without_a_summary_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no summary\.json.*ziphius run"):
        write_report(tmp_path)


def test_the_template_knows_every_kind_of_stage():
    from ziphius.recipe.schema import GRPOStage, PretrainStage, SFTStage, TokenizerStage

    for stage in (TokenizerStage, PretrainStage, SFTStage, GRPOStage):
        assert stage.model_fields["kind"].annotation.__args__[0] in page.KINDS


# --- drawing ----------------------------------------------------------------------------------------------------


def test_a_picture_stays_within_its_frame():
    line = Line("gauge", [(step, -3.0 + step % 7) for step in range(1000)])
    picture = Picture("Gauge", "", [line], [Dot("point", 500, 2.0, (-4.0, 9.0))])
    ((_, path),) = picture.paths
    for pair in path.split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 360
        assert 0 <= y <= 222
    ((_, _, y, low, high),) = picture.placed_dots
    assert low > y > high  # SVG counts downwards
    assert [item.label for item in picture.legend] == ["gauge", "point"]


def test_a_flat_line_and_a_single_point_can_be_drawn():
    for points in ([(1.0, 0.0)], [(1.0, 2.0), (2.0, 2.0)]):
        picture = Picture("Flat", "", [Line("gauge", points)])
        assert "nan" not in picture.paths[0][1]
        assert picture.y_ticks


def test_thinning_keeps_the_mean_and_the_number_of_points():
    points = [(float(x), float(x % 2)) for x in range(10 * AT_MOST)]
    few = thinned(points)
    assert len(few) == AT_MOST
    assert {y for _, y in few} == {0.5}
    assert thinned(points[:AT_MOST]) == points[:AT_MOST]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 60, [0, 20, 40, 60]), (-3, 3, [-2, 0, 2]), (2, 2, [2])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0081, "0.0081"), (1.25, "1.25"), (340, "340"), (5000, "5,000"), (12_000, "12k"), (1.5e11, "150G"), (0, "0")],
)
def test_numbers_are_short(value, text):
    assert compact(value) == text


def test_undecided_answers_are_told_apart(run):
    """How many, what a share is if all of them are right, and which of the shown answers they are."""
    assert "not decided" not in read(run).text.lower()
    found = {"undecided": 20, "greedy_undecided": 3, "pass_at_1_bounds": [0.972, 0.982], "greedy_bounds": [0.9, 0.906]}
    summary = json.loads((run / "summary.json").read_text())
    summary["evaluations"][-1] |= found
    fake_run.write(run / "summary.json", summary)
    (path,) = run.glob("stages/*-rl/evaluation.json")
    (entry,) = json.loads(path.read_text())["results"]
    entry["examples"][0]["correct"] = None
    fake_run.write(path, {"results": [entry]})
    text = read(run).text
    assert "(95.7% to 98.7%) up to 98.2%: 20 not decided" in text
    assert "up to 90.6%: 3 not decided" in text
    assert "Not decided : the checker failed on an answer." in text
    assert text.count("? not decided") == 1
