from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.recipe.schema import (
    Recipe,
    RecipeError,
    changed_recipe,
    check_recipe,
    fingerprint,
    load_recipe,
    parse_settings,
)

from .conftest import RECIPE

RECIPES = Path(__file__).parents[2] / "recipes"


def refused(recipe, *overrides, seed=None):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe, list(overrides), seed)
    text = str(error.value)
    assert "\n" not in text
    return text


WRONG = [
    # (--set, what the line says)
    ("rl.train.stepz=3", "stages.rl.train.stepz is no setting here; remove it or mend its spelling"),
    ("rl.grpo.group_sizs=3", "stages.rl.grpo.group_sizs is no setting here"),
    ("pretrain.train.optimizer.rl=1", "stages.pretrain.train.optimizer.rl is no setting here"),
    ("speed=3", "speed is no setting here"),
    ("machine.cores=3", "machine.cores is no setting here"),
    ("rl.train.steps=0", "stages.rl.train.steps: Input should be greater than 0 (got 0)"),
    ("rl.train.steps=many", "stages.rl.train.steps: Input should be a valid integer"),
    ("pretrain.train.optimizer.kind='sgd'", "stages.pretrain.train.optimizer.kind: Input should be 'adamw' or 'muon'"),
    ("rl.grpo.group_size=1", "stages.rl.grpo.group_size: Input should be greater than or equal to 2 (got 1)"),
    ("rl.kind='ppo'", "stages.rl.kind is 'ppo'; it must be one of 'tokenizer', 'pretrain', 'sft' and 'grpo'"),
    ("rl.kind='sft'", "is no setting here"),
    ("stages.more.rows=3", "stages.more.kind is missing; add one of 'tokenizer'"),
    ("stages.more={kind='grpo', tasks={sums=1}}", "stages.more.train is missing; add it"),
    ("evaluation.tasks=['sums','legs']", "evaluation.tasks[1] names the task 'legs'; [tasks] has sums"),
    ("corpora.lessons.task='legs'", "corpora.lessons.task names the task 'legs'"),
    ("pretrain.probe=''", "stages.pretrain.probe names the task ''"),
    ("pretrain.probe='legs'", "stages.pretrain.probe names the task 'legs'"),
    ("cold_start.task='legs'", "stages.cold_start.task names the task 'legs'"),
    ("rl.tasks={sum=1}", "stages.rl.tasks.sum names the task 'sum'"),
    ("rl.tasks={}", "stages.rl: tasks names nothing to learn; give at least one task a weight above 0"),
    ("rl.tasks={sums=-1}", "stages.rl.tasks.sums: Input should be greater than or equal to 0"),
    ("tasks.sums.family='chain_sun'", "tasks.sums: tasks: unknown family 'chain_sun'; did you mean chain_sum"),
    ("tasks.sums.settings.legs=3", "tasks.sums: tasks: family chain_sum has no setting 'legs'; it has "),
    ("tasks.sums.settings.min_terms=9", "family chain_sum refuses min_terms = 9"),
    ("stages={}", "stages must begin with one of kind 'tokenizer'"),
    ("corpora={}", "corpora is empty; name at least one text to learn from"),
    ("stages.more={kind='tokenizer'}", "stages must begin with one of kind 'tokenizer'"),
    ("stages.more={kind='pretrain', train={steps=1}}", "has two of kind 'pretrain', which begins with random weights"),
    ("corpora.lessons.path='x.txt'", "corpora.lessons: give either path (files) or task"),
    ("corpora.more.path='no.txt'", "corpora.more: path: there is no file no.txt; correct it"),
    ("cold_start.path='no.jsonl'", "stages.cold_start: give either task (worked solutions) or path"),
    ("stages.more={kind='sft', path='no.jsonl', train={steps=1}}", "stages.more: path: there is no file no.jsonl"),
    ("model.preset='deepseek-v3'", "model: give one of depth (the ladder of small models), preset"),
    ("model.depth=1", "model.depth: Input should be greater than or equal to 2 (got 1)"),
    ("model.overrides.width=3", "model: overrides.width is no setting here"),
    ("model.overrides.qk_rope_head_dim=15", "qk_rope_head_dim is 15; rotary pairs need an even number"),
    ("model.overrides.num_experts_per_tok=5", "num_experts_per_tok (5) exceeds the 4 experts"),
    ("model.overrides.hidden_size=-1", "model: overrides.hidden_size: Input should be greater than 0 (got -1)"),
    ("pretrain.seq_len=257", "stages.pretrain.seq_len is 257 but the model reaches 256 tokens; lower it, or raise"),
    ("rl.grpo.max_new_tokens=300", "stages.rl.grpo.max_new_tokens is 300 but the model reaches 256 tokens"),
    ("tokenizer.vocab_size=100", "stages.tokenizer.vocab_size: Input should be greater than or equal to 275"),
    # values that are no number to train with
    ("pretrain.train.optimizer.lr=inf", "stages.pretrain.train.optimizer.lr: Input should be"),
    ("pretrain.train.optimizer.lr=50", "lr: Input should be less than or equal to 1 (got 50)"),
    ("rl.train.optimizer.lr=nan", "stages.rl.train.optimizer.lr: Input should be a finite number"),
    ("cold_start.train.optimizer.eps=inf", "stages.cold_start.train.optimizer.eps: Input should be a finite number"),
    ("pretrain.train.schedule.floor=nan", "stages.pretrain.train.schedule.floor: Input should be a finite number"),
    ("pretrain.train.spike_factor=inf", "stages.pretrain.train.spike_factor: Input should be a finite number"),
    ("pretrain.loss.mtp_weight=inf", "stages.pretrain.loss.mtp_weight: Input should be a finite number"),
    ("rl.grpo.temperature=inf", "stages.rl.grpo.temperature: Input should be a finite number"),
    ("rl.grpo.policy.kl_weight=inf", "stages.rl.grpo.policy.kl_weight: Input should be a finite number"),
    ("rl.grpo.rewards.format=inf", "stages.rl.grpo.rewards.format: Input should be a finite number"),
    ("rl.tasks={sums=inf}", "stages.rl.tasks.sums: Input should be a finite number"),
    ("corpora.lessons.weight=inf", "corpora.lessons.weight: Input should be a finite number"),
    ("corpora.lessons.kinds={facts=inf}", "corpora.lessons.kinds.facts: Input should be a finite number"),
    ("evaluation.temperature=inf", "evaluation.temperature: Input should be a finite number"),
    ("price.dollars_per_hour=inf", "price.dollars_per_hour: Input should be a finite number"),
    ("machine.train_flops_per_second=inf", "machine.train_flops_per_second: Input should be a finite number"),
    # settings that cannot work together
    ("corpora.lessons.weight=0", "corpora: every weight is 0, so there is nothing to read; give one a weight above 0"),
    ("pretrain.train.schedule.warmup_steps=6", "schedule.warmup_steps (6) leaves none of the 6 steps at the full rate"),
    ("cold_start.train.schedule.warmup_steps=3", "schedule.warmup_steps (3) leaves none of the 3 steps at the full"),
    ("pretrain.train.gate_every=6", "train.gate_every (6) leaves no step of the 6 at which the skill could be"),
    ("pretrain.first_rows=2", "first_rows and rows_warmup_steps only work together; give both, or neither"),
    ("pretrain.rows_warmup_steps=2", "first_rows and rows_warmup_steps only work together; give both, or neither"),
    ("rl.grpo.mini_batches=3", "mini_batches (3) exceeds prompts_per_step (2), so that some updates would have no"),
    ("rl.grpo.policy.temperature=0.5", "rl.grpo.policy.temperature is no setting here; remove it"),
    ("evaluation.max_new_tokens=251", "evaluation.max_new_tokens is 251 but the model reaches 256 tokens, of which a"),
    ("rl.grpo.max_new_tokens=251", "stages.rl.grpo.max_new_tokens is 251 but the model reaches 256 tokens, of which"),
    # what the tasks cannot give
    (
        "corpora.lessons.kinds={fact=1}",
        "corpora.lessons.task: family chain_sum has no lessons of kind ['fact']; it has",
    ),
    ("evaluation.split='dev'", "evaluation (sums): unknown split 'dev'; the splits are train, probe, test"),
    ("rl.train.gate_target=0.5", "stages.rl: train.gate_target works in pretraining only"),
    ("rl.grpo.overlong='soft'", "stages.rl.grpo: overlong_margin (16) exceeds max_new_tokens (8); lower it"),
    ("rl.grpo.rewards.target_language='tlh'", "target_language = 'tlh' is not known; take one of ar"),
    ("pretrain.train.schedule.cosine_until=0.1", "stages.pretrain.train.schedule: constant_until, cosine_until"),
    ("name='a/b'", "name: a name is made of letters, digits, '_', '-' and '.' (got 'a/b')"),
    ('stages."x y"={kind="sft"}', "a name is made of letters"),
    ("seed=-1", "seed: Input should be greater than or equal to 0"),
    ("rl.train.steps", "--set rl.train.steps: write it as key=value, for instance pretrain.train.steps=100"),
    ("=3", "--set =3: write it as key=value"),
    ("rl..steps=3", "--set rl..steps=3: write it as key=value"),
    ("name.first=3", "--set name.first=3: name is a value, not a table"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(recipe, override, message):
    text = refused(recipe, override)
    assert message in text
    assert text.startswith((f"{recipe}: ", "--set "))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("corpora.lessons", "corpora.lessons.task: the family base_conversion writes no lessons; give a path to files"),
        (
            "stages.pretrain.probe",
            "stages.pretrain.probe: the family base_conversion has no worked solutions to measure",
        ),
        ("stages.cold_start", "stages.cold_start.task: the family base_conversion has no worked solutions to imitate"),
    ],
)
def test_a_family_that_nobody_wrote_solutions_or_lessons_for(recipe, key, message):
    named = key if key.endswith("probe") else f"{key}.task"
    assert message in refused(recipe, "tasks.bases={family='base_conversion'}", f"{named}='bases'")


def test_an_exam_of_more_problems_than_there_are(recipe):
    few = "tasks.sums.settings={min_terms=2, max_terms=2, min_digits=1, max_digits=1}"
    text = refused(recipe, few, "evaluation.n=60")
    assert "evaluation (sums): family chain_sum with these settings has fewer than 60 distinct problems" in text
    assert "stages.pretrain.probe: family chain_sum" in refused(recipe, few, "pretrain.probe_n=60")


def test_dynamic_sampling_needs_rounds(recipe):
    text = refused(recipe, "rl.grpo.dynamic_sampling=true", "rl.grpo.max_rounds=1")
    assert "dynamic_sampling draws further problems only with max_rounds above 1; raise it" in text
    text = refused(recipe, "pretrain.first_rows=5", "pretrain.rows_warmup_steps=2")
    assert "first_rows (5) exceeds rows (4), to which it grows; lower it" in text


def test_defaults_follow_the_kind_of_stage_and_survive_a_partial_table(recipe):
    optimizers = {
        name: stage.train.optimizer
        for name, stage in load_recipe(
            recipe, [f"{name}.train.optimizer={{beta2=0.9}}" for name in ("pretrain", "cold_start", "rl")]
        ).stages.items()
        if name != "tokenizer"
    }
    assert {name: o.lr for name, o in optimizers.items()} == {"pretrain": 2e-3, "cold_start": 5e-4, "rl": 1e-4}
    assert {name: o.weight_decay for name, o in optimizers.items()} == {"pretrain": 0.1, "cold_start": 0.1, "rl": 0.0}
    assert {o.beta2 for o in optimizers.values()} == {0.9}


def test_one_change_of_a_checked_recipe(recipe):
    raw = load_recipe(recipe).model_dump(mode="json")
    assert changed_recipe(raw, "rl.grpo.temperature=0.7").stages["rl"].grpo.temperature == 0.7
    assert raw["stages"]["rl"]["grpo"]["temperature"] == 1.0
    with pytest.raises(RecipeError, match=r"^--set rl.train.steps=0: stages.rl.train.steps: Input should be greater"):
        changed_recipe(raw, "rl.train.steps=0")


def test_the_recipe_of_the_readme_resolves_as_it_always_has():
    """What r1-cpu trains with: published figures rest on it, so a new default must not reach it unseen."""
    stages = load_recipe(RECIPES / "r1-cpu.toml").stages
    common = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "momentum": 0.95, "clip": 1.0}
    assert stages["pretrain"].train.optimizer.model_dump() == common | {
        "kind": "muon", "lr": 4e-3, "weight_decay": 0.1,
    }  # fmt: skip
    assert stages["cold_start"].train.optimizer.model_dump() == common | {
        "kind": "adamw", "lr": 1e-3, "weight_decay": 0.1,
    }  # fmt: skip
    assert stages["rl"].train.optimizer.model_dump() == common | {"kind": "adamw", "lr": 4e-4, "weight_decay": 0.0}
    schedules = {name: stages[name].train.schedule for name in ("pretrain", "cold_start", "rl")}
    assert {name: (s.kind, s.warmup_steps, s.floor, s.decay) for name, s in schedules.items()} == {
        "pretrain": ("wsd", 30, 0.05, 0.25),
        "cold_start": ("cosine", 10, 0.1, 0.2),
        "rl": ("wsd", 5, 0.1, 0.8),
    }
    for name, steps, save_every in (("pretrain", 1400, 100), ("cold_start", 400, 100), ("rl", 90, 10)):
        train = stages[name].train
        assert (train.steps, train.save_every, train.precision, train.spike_factor) == (steps, save_every, "bf16", 10.0)
        assert (train.bias_update_speed, train.bias_mean_centred) == (1e-3, False)
    assert (stages["cold_start"].epochs, stages["cold_start"].rows, stages["cold_start"].examples) == (4, 6, 600)
    assert {name: stages[name].loss.mtp_weight for name in schedules} == {"pretrain": 0.3, "cold_start": 0.3, "rl": 0.1}


def test_orders_of_stages(tmp_path):
    path = tmp_path / "r.toml"
    before, tokenizer, rest = RECIPE.partition("[stages.tokenizer]")
    path.write_text(before + rest.partition("[stages.pretrain]")[1] + rest.partition("[stages.pretrain]")[2])
    assert "stages must begin with one of kind 'tokenizer'" in refused(path)
    head, sft, tail = RECIPE.partition("[stages.cold_start]")
    path.write_text(head.partition("[stages.pretrain]")[0] + sft + tail)
    assert "the stage after the tokenizer is 'sft'; a model begins with 'pretrain'" in refused(path)
    assert tokenizer


def test_a_gate_needs_a_probe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.replace('probe = "sums"', ""))
    assert "stages.pretrain: train.gate_target needs a probe that measures the skill; name a task" in refused(path)


def test_files_that_cannot_be_read(tmp_path):
    assert (
        refused(tmp_path / "no.toml")
        == f"{tmp_path}/no.toml: no such recipe; `ls recipes` shows those that come with Ziphius"
    )
    assert f"{tmp_path}: not readable as TOML" in refused(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = 'x'\nseed = = 3\n")
    assert "not readable as TOML: Invalid value (at line 2, column 8)" in refused(broken)
    broken.write_bytes(b"\xff\xfe")
    assert "not readable as TOML" in refused(broken)
    broken.write_text("seed = 3")
    assert refused(broken) == f"{broken}: name is missing; add it"


def test_set(recipe):
    made = load_recipe(
        recipe,
        ["rl.train.steps=7", "stages.rl.grpo.normalise=false", "pretrain.train.optimizer.lr=1e-3", "name=other",
         "rl.grpo.policy.importance_cap=1.5", "model.overrides.hidden_size=64", "evaluation.tasks=[]", "seed=4"],
        seed=9,
    )  # fmt: skip
    assert made.stages["rl"].train.steps == 7
    assert made.stages["rl"].grpo.normalise is False
    assert made.stages["rl"].grpo.policy.importance_cap == 1.5
    assert made.stages["pretrain"].train.optimizer.lr == 1e-3
    assert (made.name, made.seed, made.evaluation.tasks) == ("other", 9, [])
    assert made.model.config(320).hidden_size == 64
    assert made.model.config(320).vocab_size == 320
    assert parse_settings(["max_animals=5", "words=a b"]) == {"max_animals": 5, "words": "a b"}


def test_a_checked_recipe_survives_json(recipe):
    made = load_recipe(recipe)
    assert check_recipe(made.model_dump(mode="json"), "again") == made


def test_published_shapes(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        RECIPE.replace("depth = 2\n", 'preset = "deepseek-v2-lite"\n').replace("n_routed_experts = 4, ", "")
    )
    config = load_recipe(path).model.config(320)
    assert (config.model_type, config.vocab_size, config.hidden_size) == ("deepseek_v2", 320, 32)
    assert "no preset called 'v9'; there are " in refused(path, "model.preset='v9'")


def test_fingerprints(recipe):
    one, same = load_recipe(recipe), load_recipe(recipe)
    other = load_recipe(recipe, ["rl.train.steps=4"])
    print_of = lambda made, name: fingerprint(made.stages[name], made.model, made.tasks, made.seed, ["x", 1], "before")
    assert print_of(one, "rl") == print_of(same, "rl")
    assert print_of(one, "rl") != print_of(other, "rl")
    assert print_of(one, "pretrain") == print_of(other, "pretrain")
    assert fingerprint("a") != fingerprint("b")


@given(
    value=st.recursive(st.integers() | st.text() | st.booleans(), lambda x: st.dictionaries(st.text(), x) | st.lists(x))
)
def test_fingerprints_do_not_depend_on_the_order_of_keys(value):
    turned = dict(reversed(value.items())) if isinstance(value, dict) else value
    assert fingerprint(value) == fingerprint(turned)


def test_recipes_that_come_with_the_package_are_in_order():
    found = sorted(RECIPES.glob("*.toml"))
    assert found
    assert all(isinstance(load_recipe(path), Recipe) for path in found)
