"""Focal modulation of prefix tokens and its refusals; its outputs are tested in `tests/golden`."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from attnseg.attention.focal import FocalModulation

C, GRID, WINDOWS = 4, (3, 4), (3, 5)


def by_definition(mixer, x, prefix, postln, normalize):
    """What focal modulation makes of tokens `[N, C]`, with plain loops over places and windows."""
    projected = mixer.project(x)
    q, z, gates = projected[:, :C], projected[:, C : 2 * C], projected[:, 2 * C :]
    rows, columns = GRID
    level = {(r, c): z[prefix + r * columns + c] for r in range(rows) for c in range(columns)}
    total = torch.zeros_like(z)
    for number, side in enumerate(WINDOWS):
        weight, reach, wider = mixer.contexts[number].weight[:, 0], side // 2, {}
        for r, c in level:
            around = torch.zeros(C, dtype=x.dtype)
            for dr in range(-reach, reach + 1):
                for dc in range(-reach, reach + 1):
                    if (r + dr, c + dc) in level:
                        around += weight[:, reach + dr, reach + dc] * level[r + dr, c + dc]
            wider[r, c] = gelu(around)
            token = prefix + r * columns + c
            total[token] += gates[token, number] * wider[r, c]
        level = wider
    everything = [*level.values(), *(gelu(z[i]) for i in range(prefix))]
    total += gates[:, -1:] * gelu(sum(everything) / len(everything))
    mixed = q * mixer.modulate(total / (3 if normalize else 1))
    return mixer.out(layer_norm(mixed, (C,)) if postln else mixed)


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(("postln", "normalize"), [(False, False), (True, True)])
def test_equals_the_definition_place_by_place(prefix, postln, normalize):
    torch.manual_seed(0)
    mixer = FocalModulation(C, 1, postln=postln, normalize=normalize).double()
    x = torch.randn(1, prefix + 12, C, dtype=torch.double)
    with torch.no_grad():
        wanted = by_definition(mixer, x[0], prefix, postln, normalize)
        assert (mixer(x, GRID)[0] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [({"levels": 0}, "levels 0"), ({"window": 4}, "window 4 must be odd"), ({"window": -1}, "-1")],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FocalModulation(C, 1, **options)


def test_a_context_is_refused():
    with pytest.raises(ValueError, match="focal takes no context"):
        FocalModulation(C, 1)(torch.randn(1, 12, C), GRID, torch.randn(1, 6, C))
