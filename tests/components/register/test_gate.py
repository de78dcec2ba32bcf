import math

import pytest
from pydantic import ValidationError

from components.register.card import gate_card
from components.register.gate import Verdict, judge
from components.register.settings import GateSettings, RunInfo
from tests.components.register.making import champion, figures, lift, metrics

GATE = GateSettings()


def test_no_champion():
    judgement = judge(metrics(), GATE)
    assert judgement.verdict is Verdict.PROMOTED
    assert "no champion yet" in judgement.reasons[0]
    assert judgement.champion is None


def test_the_candidate_wins():
    judgement = judge(metrics(champion=champion(0.02)), GATE)
    assert judgement.verdict is Verdict.PROMOTED
    assert judgement.reasons == (
        "AUC +0.0200 against the champion on the same rows (interval +0.0100 to +0.0300): better than the champion",
    )


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.0, 0.0, 0.0), "a tie keeps the champion"),
        ((9e-6, 8e-6, 1e-5), "a tie keeps the champion"),  # the same model, run by ONNX Runtime
        ((-0.02,), "it must exceed 0"),
        ((0.005,), "the champion may be as good, and stays"),
        ((0.01, 0.0, 0.02), "the champion may be as good, and stays"),
        ((None,), "what is not defined never passes"),
        ((math.nan, math.nan, math.nan), "what is not defined never passes"),
        ((0.02, math.nan, 0.03), "the champion may be as good, and stays"),
    ],
)
def test_the_champion_stays(gain, words):
    judgement = judge(metrics(champion=champion(*gain)), GATE)
    assert judgement.verdict is Verdict.KEPT
    assert len(judgement.reasons) == 1
    assert words in judgement.reasons[0]


def test_the_interval_can_be_left_out_of_account():
    settings = GateSettings(certain_lift_over_champion=False)
    assert judge(metrics(champion=champion(0.005)), settings).verdict is Verdict.PROMOTED
    assert judge(metrics(champion=champion(0.0, 0.0, 0.0)), settings).verdict is Verdict.KEPT


def test_a_minimum_lift_must_be_exceeded():
    settings = GateSettings(min_lift_over_champion=0.02, certain_lift_over_champion=False)
    assert judge(metrics(champion=champion(0.02)), settings).verdict is Verdict.KEPT
    assert judge(metrics(champion=champion(0.021)), settings).verdict is Verdict.PROMOTED


def test_the_named_interval_counts():
    gained = champion(0.02)
    gained["lift"]["overall"]["bootstrap_users"] = {"difference": 0.02, "low": -0.01, "high": 0.05, "p": 0.3}
    assert judge(metrics(champion=gained), GATE).verdict is Verdict.PROMOTED
    assert judge(metrics(champion=gained), GateSettings(interval="bootstrap_users")).verdict is Verdict.KEPT
    gained["lift"]["overall"]["bootstrap"] = None  # no resamples were drawn
    assert judge(metrics(champion=gained), GateSettings(interval="bootstrap")).verdict is Verdict.KEPT


def test_a_comparison_with_rows_for_newcomers_is_said_and_what_gives_them():
    reason = judge(metrics(champion=champion(0.03, compared_with_new_rows=True)), GATE).reasons[0]
    assert "compared with rows for all newcomers, which `tandem materialize --rows` gives it" in reason
    assert "newcomers" not in judge(metrics(champion=champion(0.03)), GATE).reasons[0]


def test_an_incompatible_champion():
    unlike = {"name": "shop", "run_id": "a", "compatible": False, "reason": "columns are missing: job", "lift": None}
    replaced = judge(metrics(champion=unlike), GATE)
    assert replaced.verdict is Verdict.PROMOTED
    assert "columns are missing: job" in replaced.reasons[0]
    kept = judge(metrics(champion=unlike), GateSettings(incompatible_champion="keep"))
    assert kept.verdict is Verdict.KEPT
    missed = judge(metrics(figures(0.5), champion=unlike), GATE)
    assert missed.verdict is Verdict.REJECTED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auc": 0.54}, "AUC is 0.5400; asked: >= 0.55"),
        ({"auc": None}, "AUC is not defined"),
        ({"auc": math.nan}, "AUC is not defined"),
        ({"auc": math.inf}, "AUC is not defined"),
        ({"auc": True}, "AUC is not defined"),
        ({"logloss": 0.7}, "log loss is 0.7000; asked: <= 0.69"),
        ({"logloss": None}, "log loss is not defined"),
        ({"logloss": math.nan}, "log loss is not defined"),
        ({"calibration": 1.3}, "calibration is 1.3000; asked: 0.8 to 1.25"),
        ({"calibration": 0.7}, "calibration is 0.7000; asked: 0.8 to 1.25"),
        ({"calibration": math.nan}, "calibration is not defined"),
    ],
)
def test_a_missed_floor_rejects(changes, reason):
    judgement = judge(metrics(figures(**changes)), GATE)
    assert judgement.verdict is Verdict.REJECTED
    assert any(one.startswith(reason) for one in judgement.reasons), judgement.reasons


def test_every_missed_floor_is_a_reason():
    bad = figures(0.5, logloss=0.8, calibration=2.0)
    judgement = judge(metrics(bad, champion=champion(-0.1)), GATE)
    assert judgement.verdict is Verdict.REJECTED
    assert [reason.split(" is ")[0] for reason in judgement.reasons[:4]] == [
        "AUC",
        "log loss",
        "calibration",
        "AUC of warm",
    ]
    assert "against the champion" in judgement.reasons[4]


def slices(**auc):
    return figures(slices={name: {"rows": rows, "auc": value} for name, (rows, value) in auc.items()})


def test_slice_floors():
    settings = GateSettings(slice_floors={"cold": 0.6})
    assert judge(metrics(slices(cold=(500, 0.61))), settings).verdict is Verdict.PROMOTED
    assert judge(metrics(slices(cold=(500, 0.59))), settings).verdict is Verdict.REJECTED
    assert judge(metrics(slices(cold=(500, None))), settings).verdict is Verdict.REJECTED


def test_a_small_slice_is_not_judged_and_says_so():
    judgement = judge(metrics(slices(cold=(199, 0.1))), GateSettings(slice_floors={"cold": 0.6}))
    assert judgement.verdict is Verdict.PROMOTED
    check = next(check for check in judgement.checks if check.name == "AUC of cold")
    assert (check.passed, check.note) == (None, "not judged: 199 rows")


def test_an_unknown_slice_is_no_slice_that_passed():
    judgement = judge(metrics(slices(warm=(500, 0.7))), GateSettings(slice_floors={"wram": 0.6}))
    assert judgement.verdict is Verdict.REJECTED
    assert judgement.reasons == ("AUC of wram: there is no such slice; one of warm",)


def test_alignment_must_earn_its_time_where_that_is_asked():
    asked = GateSettings(min_lift_of_alignment=0.01)
    assert judge(metrics(lift={"over": "collaborative", **lift(0.01)}), asked).verdict is Verdict.PROMOTED
    assert judge(metrics(lift={"over": "collaborative", **lift(0.009)}), asked).verdict is Verdict.REJECTED
    assert judge(metrics(lift={"over": "collaborative", **lift(None)}), asked).verdict is Verdict.REJECTED
    surely = GateSettings(min_lift_of_alignment=0.01, certain_lift_of_alignment=True)
    assert judge(metrics(lift={"over": "collaborative", **lift(0.015)}), surely).verdict is Verdict.REJECTED
    assert judge(metrics(lift={"over": "collaborative", **lift(-0.1)}), GATE).verdict is Verdict.PROMOTED


def test_a_run_without_alignment_is_not_asked_for_its_lift():
    plain = metrics(lift=None) | {"candidate": "collaborative"}
    judgement = judge(plain, GateSettings(min_lift_of_alignment=0.01))
    assert judgement.verdict is Verdict.PROMOTED
    check = next(check for check in judgement.checks if check.name == "lift of alignment")
    assert (check.passed, check.note) == (None, "nothing was aligned")
    assert "lift of alignment" not in [check.name for check in judge(plain, GATE).checks]


def test_a_lift_that_was_asked_for_and_not_measured_does_not_pass():
    judgement = judge(metrics(lift=None), GateSettings(min_lift_of_alignment=-1))
    assert judgement.verdict is Verdict.REJECTED
    assert judgement.reasons == ("lift of alignment: there is no collaborative-only arm to compare with",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"calibration": [1.2, 0.8]}, "low < high"),
        ({"slice_floors": {"cold": 60}}, r"slice_floors\.cold is an AUC"),
        ({"min_auc": math.nan}, "finite number"),
        ({"min_acu": 0.5}, "Extra inputs"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(ValidationError, match=words):
        GateSettings(**settings)


def test_the_card_tells_verdict_reasons_and_checks():
    run = RunInfo(run_id="r1", dataset="shop", method="ctrl", backbone="autoint", seed=1)
    content = metrics(champion=champion(0.0, 0.0, 0.0))
    card = gate_card(judge(content, GATE), content, run, "3")
    assert card.startswith("# Kept: ctrl on shop\n")
    assert "version 3" in card
    assert "- AUC +0.0000 against the champion" in card
    assert "| lift over the champion | 0.0000 | > 0, lower bound too | **failed** |" in card
    assert "| AUC of warm | 0.7000 | >= 0.52 | passed |" in card
    assert "| champion | 0.6900 |" in card
    odd = judge(metrics(), GateSettings(slice_floors={"tags=a|b\nc": 0.5}))
    assert "| AUC of tags=a\\|b c | - |" in gate_card(odd, metrics(), run, None)
    rejected = gate_card(judge(metrics(figures(None)), GATE), metrics(figures(None)), run, None)
    assert "not registered" in rejected
    assert "| AUC | - | >= 0.55 | **failed** |" in rejected
