"""Texts as token ids in two matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmenters.text import arrange, number_of_short, tokenize


@pytest.mark.parametrize("context", [77, 8])
@pytest.mark.parametrize(
    "texts", [["a red fox", "grass", "word " * 100, "", "sky", "a red fox"], ["sky", "grass"], [""]]
)
def test_arranged_texts_are_clips_tokens_in_another_order(context, texts):
    arranged = arrange(texts, context)
    assert len(arranged.short) + len(arranged.long) == len(texts)
    assert len(arranged.matrices) == min(len({len(text.split()) for text in texts}), 2)
    padded = [torch.nn.functional.pad(matrix, (0, context - matrix.shape[1])) for matrix in arranged.matrices]
    expected = tokenize(texts, context)
    assert torch.equal(torch.cat(padded)[arranged.rows][:, : expected.shape[1]], expected)


@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=9))
@settings(deadline=None)
def test_texts_are_cut_where_the_least_padding_is_needed(lengths):
    lengths = sorted(lengths)

    def cost(short):
        return sum(len(part) * max(part) for part in (lengths[:short], lengths[short:]) if part)

    short = number_of_short(np.array(lengths))
    assert cost(short) == min(map(cost, range(len(lengths) + 1)))
    assert short == 0 or lengths[short - 1] < lengths[short]  # the same length is in one matrix only
