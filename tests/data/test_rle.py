import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from attnseg.data.readers import rle


def test_rows_are_read_first_and_counted_from_one():
    mask = rle.decode("2 3 8 1", (2, 4))
    assert mask.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


def test_runs_may_cross_rows_and_reach_the_last_pixel():
    assert rle.decode("4 5", (2, 4)).astype(int).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]


def test_empty_text_is_an_empty_mask():
    assert not rle.decode("", (3, 5)).any()
    assert rle.encode(np.zeros((3, 5), bool)) == ""


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_decoding_undoes_encoding(mask):
    assert np.array_equal(rle.decode(rle.encode(mask), mask.shape), mask)


def test_what_is_not_a_code_is_refused():
    wrong = ["1", "1 2 3", "0 3", "-1 3", "a b", "1.0 2", "1 0", "7 3", "3 2 1 1", "1 3 2 2"]
    wrong += ["1 3 3 1", "1 " + "9" * 18, "٣ 1", "1e1 2", "+1 2"]
    accepted = []
    for text in wrong:
        try:
            rle.decode(text, (2, 4))
        except ValueError as error:
            assert "run" in str(error), text
        else:
            accepted.append(text)
    assert accepted == []


@given(
    st.text(max_size=30)
    | st.lists(st.integers(-3, 40), max_size=8).map(lambda n: " ".join(map(str, n)))
)
def test_any_text_is_decoded_or_refused(text):
    try:
        mask = rle.decode(text, (4, 5))
    except ValueError:
        return
    assert rle.encode(mask) == rle.encode(rle.decode(rle.encode(mask), (4, 5)))
