import pytest

from data.errors import DataError
from search import solve
from train.errors import ConfigError


@pytest.fixture
def checkpoint(save_model):
    return str(save_model())


def test_an_untrained_model_is_wrong_both_ways(checkpoint, capsys):
    solve.main([checkpoint, "4", "5", "6", "10", "--simulations", "2"])
    out = capsys.readouterr().out
    assert "without search: wrong" in out and "with 2 simulations a move: wrong" in out
    assert "P(solved) 0." in out and "tokens" in out


def test_unusable_puzzles_are_one_clear_line(checkpoint, capsys):
    with pytest.raises(DataError, match="must have a solution; got \\(1, 1, 1, 1\\)"):
        solve.main([checkpoint, "1", "1", "1", "1"])
    for numbers in (["4", "5", "6"], ["4", "5", "6", "14"]):
        with pytest.raises(ConfigError, match="four numbers from 1 to 13"):
            solve.main([checkpoint, *numbers])
    with pytest.raises(DataError, match="does not exist"):
        solve.main([checkpoint + "x", "4", "5", "6", "10"])
    assert capsys.readouterr().out == ""
