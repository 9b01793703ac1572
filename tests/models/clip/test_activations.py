"""Which GELU: every way to ask for one, and every contradiction."""

import pytest

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.activations import resolve_quick_gelu


@pytest.mark.parametrize("in_config, asked, tag, expected", [
    (False, False, "", False), (True, False, "", True), (False, True, "", True),
    (False, False, "openai", True), (True, True, "openai", True),
    (False, False, "laion2b_s34b_b79k", False),
    (False, False, "laion400m_e32", True), (False, False, "metaclip_400m", True),
])  # fmt: skip
def test_name_flag_and_tag_decide(in_config, asked, tag, expected):
    assert resolve_quick_gelu("ViT-B-32", in_config, asked, tag) is expected


def test_a_gelu_tag_contradicts_the_flag_and_the_name():
    with pytest.raises(UserError, match="laion2b_s34b_b79k was trained with GELU; drop quick_gelu"):
        resolve_quick_gelu("ViT-B-32", False, True, "laion2b_s34b_b79k")
    with pytest.raises(UserError, match="drop -quickgelu from the name"):
        resolve_quick_gelu("ViT-B-32", True, False, "laion2b_s34b_b79k")


def test_an_unknown_tag_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="RN50 has no published weights tagged 'laion9'; its tags: openai, yfcc15m"):
        resolve_quick_gelu("RN50", False, False, "laion9")
