import pytest
import torch
import torch.nn.functional as F

from attnseg.losses.ce import CrossEntropy
from attnseg.losses.dice import Dice
from attnseg.losses.dice_ce import DiceCE
from attnseg.losses.tversky import Tversky


def plain_dice(p, g):
    """The published form: squares, sums over the whole batch, mean over classes."""
    axes = (0, 2, 3)
    value = (2 * (p * g).sum(axes) + 1e-5) / ((p * p).sum(axes) + (g * g).sum(axes) + 1e-5)
    return (1 - value).mean()


@pytest.fixture
def exclusive():
    torch.manual_seed(0)
    return torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 6, 6))


@pytest.fixture
def overlapping():
    torch.manual_seed(0)
    return torch.randn(2, 3, 6, 6), torch.randint(0, 2, (2, 3, 6, 6), dtype=torch.uint8)


def test_exclusive_classes_by_the_published_formula(exclusive):
    logits, target = exclusive
    one_hot = F.one_hot(target, 4).permute(0, 3, 1, 2).float()
    dice = plain_dice(logits.softmax(1), one_hot)
    ce = F.cross_entropy(logits, target)
    assert DiceCE(False)(logits, target).item() == pytest.approx(
        (0.6 * dice + 0.4 * ce).item(), 1e-5
    )


def test_overlapping_classes_take_sigmoid_and_binary_cross_entropy(overlapping):
    logits, target = overlapping
    dice = plain_dice(logits.sigmoid(), target.float())
    ce = F.binary_cross_entropy_with_logits(logits, target.float())
    assert DiceCE(True)(logits, target).item() == pytest.approx(
        (0.6 * dice + 0.4 * ce).item(), 1e-5
    )
    assert DiceCE(True, 1, 0)(logits, target).item() == pytest.approx(dice.item(), 1e-5)
    assert DiceCE(True, 0, 2)(logits, target).item() == pytest.approx(2 * ce.item(), 1e-5)


def test_dice_by_hand():
    """One pixel of two right, one missed: p = (1, 0), g = (1, 1), so Dice is 2 / 3."""
    logits = torch.tensor([[[[50.0, -50.0]]]])
    target = torch.ones(1, 1, 1, 2)
    assert Dice(True)(logits, target).item() == pytest.approx(1 / 3, 1e-4)


def test_per_image_form_differs_from_the_batch_form(overlapping):
    logits, target = overlapping
    each = torch.stack([Dice(True)(a[None], b[None]) for a, b in zip(logits, target, strict=True)])
    assert Dice(True, batch=False)(logits, target).item() == pytest.approx(each.mean().item(), 1e-5)
    assert Dice(True)(logits, target).item() != pytest.approx(each.mean().item(), 1e-5)


def test_background_can_be_left_out(exclusive):
    logits, target = exclusive
    one_hot = F.one_hot(target, 4).permute(0, 3, 1, 2).float()
    wanted = plain_dice(logits.softmax(1)[:, 1:], one_hot[:, 1:])
    assert Dice(False, include_background=False)(logits, target).item() == pytest.approx(
        wanted.item(), 1e-5
    )


def test_class_weights(exclusive, overlapping):
    logits, target = exclusive
    weights = (0.0, 1.0, 2.0, 3.0)
    wanted = F.cross_entropy(logits, target, torch.tensor(weights))
    assert CrossEntropy(False, weights)(logits, target).item() == pytest.approx(wanted.item())
    logits, target = overlapping
    each = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(
        (0, 2, 3)
    )
    wanted = (each * torch.tensor((1.0, 0.0, 5.0))).mean()
    assert CrossEntropy(True, (1.0, 0.0, 5.0))(logits, target).item() == pytest.approx(
        wanted.item(), 1e-5
    )
    with pytest.raises(ValueError, match="class_weights has 2 values"):
        CrossEntropy(True, (1.0, 1.0))(logits, target)


def test_tversky_prices_misses_higher_than_false_alarms():
    """Three of four pixels right: one missed against one too many."""
    target = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    missed = torch.tensor([[[[50.0, -50.0, -50.0, -50.0]]]])
    spurious = torch.tensor([[[[50.0, 50.0, 50.0, -50.0]]]])
    loss = Tversky(True)
    assert loss(missed, target).item() == pytest.approx(1 - 1 / 1.7, 1e-4)
    assert loss(spurious, target).item() == pytest.approx(1 - 2 / 2.3, 1e-4)


def test_impossible_weights():
    with pytest.raises(ValueError, match="not both 0"):
        DiceCE(True, 0, 0)
    with pytest.raises(ValueError, match="0 or more"):
        DiceCE(True, -1, 1)
