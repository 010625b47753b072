"""The presets of language models have the sizes that they are named by, counted without holding them."""

import pytest
import torch

from titans_ts.models.backbone import Backbone
from titans_ts.models.config import LANGUAGE, VARIANTS, VOCABULARY, language_preset

# Millions of parameters of the blocks: lmm, mac, mag, mal.
BLOCKS = {
    "170m": (145.5, 188.0, 182.1, 175.0),
    "340m": (308.2, 459.3, 437.3, 412.1),
    "760m": (711.3, 1051.1, 999.2, 942.5),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_preset_has_the_parameters_that_its_name_says(name):
    found = {}
    for variant in VARIANTS:
        with torch.device("meta"):
            backbone = Backbone(language_preset(name, variant))
        found[variant] = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    assert [round(found[variant], 1) for variant in VARIANTS] == list(BLOCKS[name])
    embedding = VOCABULARY * LANGUAGE[name]["dim"] / 1e6
    assert found["lmm"] + embedding == pytest.approx(float(name[:-1]), rel=0.01)


def test_fields_of_a_preset_may_be_replaced():
    assert language_preset("170m", "mag", window=64).window == 64


def test_an_unknown_preset_is_said():
    with pytest.raises(ValueError, match="preset '1b' does not exist: there are 170m, 340m, 760m"):
        language_preset("1b")
