from attnseg.training.module import parameter_groups
from tests.contracts.test_models import make


def test_weight_decay_spares_biases_norms_and_positions():
    model = make("setr", "kv_pos")
    decayed, spared = (group["params"] for group in parameter_groups(model))
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in decayed:
        assert names[id(parameter)].endswith("weight")
        assert parameter.ndim >= 2
    assert {"embed.pos_embed", "embed.cls_token"} <= {names[id(p)] for p in spared}
    assert parameter_groups(model)[1]["weight_decay"] == 0
