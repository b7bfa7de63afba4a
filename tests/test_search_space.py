"""Search spaces: checked, laid over a spec, turned into a grid; the settings of a search."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_parts import asked_for, small_search

from petlbench.harness.experiment import ExperimentError
from petlbench.harness.search import space as spaces
from petlbench.harness.search.question import ask
from petlbench.harness.search.settings import DEFAULT_TRIALS, SearchConfig
from petlbench.methods import registry
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.base import Domain, MethodError
from petlbench.methods.lora import Lora

CHOICE = Domain("choice", (8, 16, 32))
LR = Domain("loguniform", (1e-4, 1e-2))


def with_space(space):
    return type("Searched", (Lora,), {"name": "lora", "space": space})


def test_every_built_in_space_is_sound_and_whoever_trains_searches_its_learning_rate():
    for name, source in registry.discover().items():
        cls = registry.load(source)
        space = spaces.checked_space(cls)
        assert ("train.lr" in space) == cls.trains, name
        for preset in cls.presets.values():
            if "lr" in preset.train and name != "full_finetune":
                assert isinstance(preset.train["lr"], float)


def test_every_choice_of_a_built_in_space_fits_the_shipped_backbones():
    shipped = [load_backbone("tiny-clip"), load_backbone("tiny-vilt")]
    for name, source in registry.discover().items():
        cls = registry.load(source)
        towers = [backbone for backbone in shipped if backbone.provenance.kind in cls.kinds]
        assert towers, name
        choices = {key: domain.values for key, domain in cls.space.items() if domain.kind == "choice"}
        for values in itertools.product(*choices.values()):
            config = dict(zip(choices, values, strict=True))
            options, _ = spaces.applied(config, cls, cls.Config().model_dump(mode="json"), {})
            method = cls(cls.Config.model_validate(options))
            assert all(method.refuse(backbone) is None for backbone in towers), (name, config)


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("rank", CHOICE, r"space of lora: key `rank` must begin with `method\.` or `train\.`"),
        ("method.rnak", CHOICE, "key `method.rnak` is unknown; did you mean `rank`"),
        ("train.lrr", LR, "key `train.lrr` is unknown; did you mean `lr`"),
        ("train.lr", Domain("loguniform", (1e-2, 1e-4)), "needs two numbers, the lower one first"),
        ("train.lr", Domain("loguniform", (0.0, 1e-4)), "loguniform needs positive ends"),
        ("train.lr", Domain("uniform", (math.nan, 1.0)), "needs two numbers"),
        ("method.rank", Domain("choice", (8, 8)), "each of them once"),
        ("method.rank", Domain("choice", ()), "a choice needs values"),
        ("method.rank", Domain("choice", ((8, 8),)), "made of numbers, texts, booleans and None"),
        ("method.rank", Domain("randint", (1.5, 4)), "randint needs two integers"),
    ],
)
def test_a_wrong_space_is_refused_by_name(key, domain, message):
    with pytest.raises(MethodError, match=message):
        spaces.checked_space(with_space({key: domain}))


def test_a_configuration_is_laid_over_options_and_recipe_nested_keys_too():
    options = Lora.Config().model_dump(mode="json")
    train = {"lr": 1e-3, "epochs": 3, "loss": {"name": "hinge", "margin": 0.2}}
    config = {"method.rank": 4, "train.lr": 5e-4, "train.loss.margin": 0.3}
    new_options, new_train = spaces.applied(config, Lora, options, train)
    assert (new_options["rank"], new_options["alpha"]) == (4, options["alpha"])
    assert (new_train["lr"], new_train["epochs"], new_train["loss"]["margin"]) == (5e-4, 3, 0.3)
    assert train["loss"]["margin"] == 0.2 and options["rank"] == 8, "what it is laid over stays"


def test_a_combination_that_the_method_refuses_is_named():
    options = {**Lora.Config().model_dump(mode="json"), "joint": True}
    with pytest.raises(MethodError, match=r"method lora with method.projections=qv: .*joint"):
        spaces.applied({"method.projections": "qv"}, Lora, options, {})


def test_grid_values_hold_both_ends_and_are_even_in_the_logarithm():
    values = spaces.grid_values(LR, 5)
    assert (values[0], values[-1]) == (1e-4, 1e-2)
    assert values == pytest.approx([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2], rel=1e-4)
    assert spaces.grid_values(Domain("uniform", (0.0, 1.0)), 3) == [0.0, 0.5, 1.0]
    assert spaces.grid_values(Domain("randint", (2, 5)), 10) == [2, 3, 4]
    assert spaces.grid_values(Domain("randint", (0, 101)), 3) == [0, 50, 100]
    assert spaces.grid_values(CHOICE, 2) == [8, 16, 32], "a choice is taken whole"


@given(
    st.sampled_from(["uniform", "loguniform", "randint"]),
    st.integers(1, 50),
    st.integers(2, 1000),
    st.integers(2, 9),
)
def test_every_grid_point_lies_in_its_space(kind, low, width, points):
    domain = Domain(kind, (low, low + width))
    for value in spaces.grid_values(domain, points):
        assert spaces.contains({"train.x": domain}, {"train.x": value})


def test_a_grid_has_every_combination_once_in_an_order_of_its_seed():
    space = {"method.rank": CHOICE, "train.lr": LR}
    first, again, other = (spaces.grid(space, 4, seed) for seed in (0, 0, 1))
    assert first == again != other
    pairs = {(point["method.rank"], point["train.lr"]) for point in first}
    assert len(first) == len(pairs) == 12


def test_a_space_contains_what_could_be_drawn_and_nothing_else():
    space = {"method.rank": CHOICE, "train.lr": LR}
    assert spaces.contains(space, {"method.rank": 8.0, "train.lr": 1e-2})
    for config in ({"method.rank": 9, "train.lr": 1e-3}, {"method.rank": 8, "train.lr": 0.1}, {"method.rank": 8}):
        assert not spaces.contains(space, config)
    assert not spaces.contains({"method.joint": Domain("choice", (1, 2))}, {"method.joint": True})


def test_optuna_gets_the_same_space_with_the_upper_end_of_randint_left_out():
    found = spaces.distributions({"a": CHOICE, "b": LR, "c": Domain("randint", (1, 4)), "d": Domain("uniform", (0, 1))})
    assert found["a"].choices == (8, 16, 32)
    assert (found["b"].low, found["b"].high, found["b"].log) == (1e-4, 1e-2, True)
    assert (found["c"].low, found["c"].high) == (1, 3)
    assert not found["d"].log


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45", 45), (12.5, 12.5)]
)
def test_a_time_is_read_with_its_unit(given, seconds):
    settings = SearchConfig.model_validate({"time": given})
    assert settings.time == seconds and settings.trials is None


def test_without_a_budget_there_is_the_default_one():
    assert SearchConfig().trials == DEFAULT_TRIALS


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("search.time=soon", "expected a time such as 90s, 30m, 2h or 1h30m"),
        ("search={scheduler: pbt, time: 1h}", "expected trials of at least 4 .*found only a time"),
        ("search.scheduler=median", "search.scheduler"),
        ("search.trials=0", "search.trials"),
        ("search.trails=3", "did you mean `trials`"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key(assignment, message, tmp_path):
    with pytest.raises(ExperimentError, match=message):
        small_search(tmp_path, assignment)


def test_a_search_never_selects_on_test(tmp_path):
    with pytest.raises(ExperimentError, match="a search never opens the test split"):
        ask(small_search(tmp_path, "protocol.selection=test_max"))


def test_the_question_is_the_same_whatever_the_budget_and_another_for_anything_that_moves_scores(tmp_path):
    asked = asked_for(tmp_path, "search.trials=3").question
    assert asked.study_id == asked_for(tmp_path, "search.trials=30").question.study_id
    assert asked.study_id == asked_for(tmp_path / "elsewhere", "search.time=2h").question.study_id
    others = ["train.epochs=4", "search.seed=7", "search.searcher=random", "search.scheduler=fifo", "search.grace=2"]
    assert asked.study_id not in {asked_for(tmp_path, other).question.study_id for other in others}


def test_a_searched_spec_does_not_name_the_test_split(tmp_path):
    asked = asked_for(tmp_path)
    assert set(asked.question.base.dataset.options["splits"]) == {"train", "val"}
    assert asked.question.base.seed == 1000
    trial = asked.trial({"method.ratio": 0.4}, str(tmp_path))
    assert trial.spec.method.options["ratio"] == 0.4 and trial.spec.spec_id != asked.question.base.spec_id


def test_every_method_is_asked_with_the_same_budget_and_one_trial_where_nothing_can_be_chosen(tmp_path):
    asked, _ = ask(small_search(tmp_path, "search.trials=7", method="all-methods"))
    assert len(asked) >= 25
    assert {one.question.base.method.name: one.trials for one in asked}.pop("zero_shot") == 1
    assert {one.trials for one in asked if one.space} == {7}
