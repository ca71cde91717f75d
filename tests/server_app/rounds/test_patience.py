"""A run in which nothing is learned any more ends, says why, and can be gone on with."""

from dataclasses import replace

import pytest
from in_process import InProcessGrid
from playing import (
    GLOBAL,
    PERSONAL,
    Scripted,
    ScriptedGD,
    files,
    lines_of,
    play,
    raises,
    replaced_delta,
    settings_for,
    start,
    strategy_for,
)

from common.config import load_config
from common.errors import UserError
from server_app import checkpoint
from server_app.app import serve

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing")


def all_fail(kind=PERSONAL, rounds=range(1, 100), special=raises, clients="0123"):
    return {(key, kind, server_round): special for key in clients for server_round in rounds}


def test_after_three_rounds_without_one_good_update_the_run_ends_and_names_the_reasons(small):
    endless = replaced_delta(lambda delta: delta * float("inf"))
    special = all_fail() | {("3", PERSONAL, number): endless for number in (3, 4, 5)}
    special = {place: spoil for place, spoil in special.items() if place[2] > 2}
    with pytest.raises(UserError) as error:
        play(small, Scripted(special), num_rounds=9, checkpoint_every=100)
    assert str(error.value) == (
        "The run gives up after round 5: 3 rounds in a row (give-up-after) brought not one good training update "
        "(client-raised 9 times, not-finite 3 times). The lines above name each; mend that and go on with "
        "resume=latest."
    )


def test_what_was_complete_is_saved_and_the_run_goes_on_from_there(small):
    settings = small | {"num-rounds": 6, "checkpoint-every": 100}
    folder = play(small, Scripted(), num_rounds=1, run_name="other").folder.parent / "run"
    with pytest.raises(UserError, match="gives up after round 4"):
        play(settings, Scripted(all_fail(rounds=(2, 3, 4, 5))))
    assert files(folder) == ["round-000004.pt"]
    assert checkpoint.load(folder).server_round == 4
    serve(InProcessGrid(Scripted(), 4), load_config(settings | {"resume": "latest"}), simulated=False)
    assert [line["clients"] for line in lines_of(folder)] == [4, 0, 0, 0, 4, 4]


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_only_rounds_in_a_row_count_and_how_many_a_key_says(small, patience):
    for_so_long = [*range(2, 2 + patience - 1), *range(8, 99)]
    with pytest.raises(UserError, match=rf"gives up after round {7 + patience}: {patience} rounds in a row"):
        play(small, Scripted(all_fail(rounds=for_so_long)), num_rounds=20, give_up_after=patience)


def test_one_good_update_in_any_training_exchange_is_enough(small):
    gd = small | {"method": "mh-pfedhn-gd", "global-model": "mlp"}
    failing = all_fail(clients="012")
    assert len(play(gd, ScriptedGD(failing), num_clients=3, num_rounds=5).lines) == 5
    with pytest.raises(UserError, match="gives up after round 3"):
        play(gd, ScriptedGD(failing | all_fail(GLOBAL, clients="012")), num_clients=3, num_rounds=5, run_name="none")


def test_a_method_whose_clients_send_no_arrays_learns_as_well(small):
    assert len(play(small, Scripted(), method="local", num_rounds=5).lines) == 5


def test_that_nobody_brought_a_good_update_is_said_once_a_round_whatever_the_schedule(small, caplog):
    failing = all_fail(rounds=(2,)) | all_fail(rounds=(3,), clients="012")
    play(small, Scripted(failing), schedule="sequential", num_rounds=4)
    said = [record.getMessage() for record in caplog.records if "no client" in record.getMessage()]
    assert said == ["Round 2: exchange personal: no client brought a good update; nothing changes."]


def test_rounds_that_nobody_is_asked_to_train_in_do_not_count(small):
    """A method may do without training at clients."""
    config = load_config(settings_for(small, num_rounds=5))
    strategy = strategy_for(config)
    exchanges = strategy.method.round

    def without_losses(cohort):
        playing = exchanges(cohort)
        exchange, replies = next(playing), None
        while exchange is not None:
            replies = yield replace(exchange, losses="")
            try:
                exchange = playing.send(replies)
            except StopIteration:
                exchange = None

    strategy.method.round = without_losses
    assert len(start(config, InProcessGrid(Scripted(all_fail(rounds=range(2, 9))), 4), strategy).lines) == 5
