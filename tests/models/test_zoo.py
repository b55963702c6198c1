"""Models by name have as many parameters as their makers counted."""

import pytest

from models import sharding, zoo
from train.errors import ConfigError

# As the model cards and `transformers` count them.
PARAMETERS = {
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "solar_10b": 10_731_524_096,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808,
    "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert zoo.num_parameters(zoo.ZOO[name]) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "billions"), [("nemotron4_15b", 15.6), ("nemotron4_340b", 341)])
def test_nemotron_is_as_large_as_its_report_says(name, billions):
    assert abs(zoo.num_parameters(zoo.ZOO[name]) / 1e9 / billions - 1) < 0.01


def test_what_it_would_take_is_shown_and_nothing_allocated(capsys):
    zoo.main(["nemotron4_340b", "--fsdp", "64", "--tensor", "8"])
    assert "parameters per device: 1." in capsys.readouterr().out
    one = zoo.bytes_per_device(zoo.ZOO["pythia_70m"], sharding.MeshConfig(data=1), "float32")
    assert one == 4 * (70_426_624 + 64 * 513)  # and the value head
    with pytest.raises(ConfigError, match="llama3_8b"):
        zoo.main(["llama_9b"])
