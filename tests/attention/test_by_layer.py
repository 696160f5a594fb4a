"""The listed blocks have the other attention, and a number that no block has is refused."""

import pytest

from attnseg.attention.by_layer import choose_by_layer
from attnseg.config.cost import find_attentions
from attnseg.errors import ConfigError
from attnseg.layers.tokens import Place
from tests.contracts.test_models import make


def test_the_list_decides():
    make_default, make_other = (lambda *given, n=n: (n, given) for n in ("default", "other"))
    for block in range(5):
        place = Place(block=block)
        chosen = choose_by_layer(
            8, 2, False, 0.5, None, place, default=make_default, other=make_other, layers=[3, 0]
        )
        assert chosen == (
            "other" if block in (0, 3) else "default",
            (8, 2, False, 0.5, None, place),
        )


@pytest.mark.parametrize("model", ["setr", "missformer", "crossvit"])
def test_the_command_line_chooses_pair_and_blocks(model):
    options = ("attn@attn.default=pool", "attn@attn.other=kv", "attn.layers=[1]")
    mixers = find_attentions(make(model, "by_layer", options=options)).values()
    kinds = {
        mixer.place.block: type(mixer).__name__
        for mixer in mixers
        if type(mixer).__name__ == "Pool" or mixer.reads["k"] == "qk"
    }
    assert kinds[1] == "Attention"
    assert {kind for block, kind in kinds.items() if block != 1} == {"Pool"}


def test_a_block_that_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"^attn\.layers: the model has no block -1; give numb"):
        make("setr", "by_layer", options=("attn.layers=[0,-1]",))
