"""The index of corpus lines: which lines occur in the corpus, and which character would complete one."""

from __future__ import annotations

import io
from pathlib import Path

from corpus.line_index import LineIndex, begin, codes_of, extend, token_codes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

POEMS = ["甲乙丙，丁日。", "甲乙月，山？夜！", "𠴨甲：", "紅"]
LINES = ["甲乙丙", "丁日", "甲乙月", "山", "夜", "𠴨甲", "紅"]


def test_it_holds_the_lines_and_nothing_else() -> None:
    index = LineIndex.build(POEMS)
    assert len(index) == len(LINES) and all(line in index for line in LINES)
    for other in ("甲乙", "乙丙", "日丁", "甲", "甲乙丙丁", "月", "甲乙丙，丁日", "丙乙甲"):
        assert other not in index
    assert index.copied("甲乙，丁日。山甲，夜") == ["丁日", "夜"]
    assert len(LineIndex.build(POEMS * 3)) == len(LINES)


@given(st.lists(st.text("甲乙丙丁", min_size=1, max_size=4), max_size=12), st.text("甲乙丙丁", min_size=1, max_size=4))
def test_it_holds_a_line_if_and_only_if_it_was_given(lines: list[str], line: str) -> None:
    assert (line in LineIndex.build(["，".join(lines)])) == (line in lines)


@given(st.lists(st.text("甲乙丙丁", min_size=1, max_size=4), max_size=12), st.text("甲乙丙丁", max_size=3))
def test_it_forbids_what_completes_a_line(lines: list[str], beginning: str) -> None:
    tokens = ["<end>", *"甲乙丙丁戊"]
    before = begin(2)
    for code in codes_of(beginning):
        before[1:] = extend(before[1:], code)
    allowed = np.ones((2, len(tokens)), bool)
    LineIndex.build(["。".join(lines)]).forbid_endings(allowed, before, token_codes(tokens))
    for row, prefix in ((0, ""), (1, beginning)):
        assert allowed[row].tolist() == [prefix + token not in lines for token in tokens]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    LineIndex.build(POEMS).save(tmp_path / "lines.npy")
    index = LineIndex.load(tmp_path / "lines.npy")
    assert [line for line in [*LINES, "甲乙"] if line in index] == LINES
    assert (tmp_path / "lines.npy").stat().st_size < 300, "8 bytes a line, and nothing of the text"
    LineIndex.build([]).save(tmp_path / "lines.npy")
    assert "甲" not in LineIndex.load(tmp_path / "lines.npy")


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.zeros(3, np.uint64))
    return content.getvalue()


def promise(count: int) -> bytes:
    """The head of an .npy file of so many uint64, and nothing after it."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<u8", "fortran_order": False, "shape": (count,)})
    return content.getvalue()


HEADS = [promise(10**15), promise(10**30), promise(3).replace(b")", b" ")]


@pytest.mark.parametrize("content", [b"", b"nonsense", np.zeros(3).tobytes(), npz(), *HEADS])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lines.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"lines\.npy: not an index of lines"):
        LineIndex.load(tmp_path / "lines.npy")


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), np.uint64), np.array([2, 1], np.uint64)])
def test_another_array_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "lines.npy", array)
    with pytest.raises(ValueError, match="not an index of lines"):
        LineIndex.load(tmp_path / "lines.npy")
