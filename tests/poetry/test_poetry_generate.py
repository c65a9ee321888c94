"""generate.py as a user runs it, with a model of random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from common import cli
from corpus.vocabulary import END, PAD, UNKNOWN, Vocabulary
from model import save_model

import pytest
from poetry_helpers import CHARACTERS, PROGRAMS, VOCABULARY, Outcome, refused, run_program, small_model

import minidl

REPORTS = Vocabulary([END, UNKNOWN, PAD, *CHARACTERS, "，", "。"])
SIMPLIFIED = Vocabulary([*VOCABULARY.tokens, "红"])


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file in the folder that the test works in."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.safetensors", small_model(), VOCABULARY, max_length=12)
    return tmp_path / "m.safetensors"


def generate(*arguments: object) -> Outcome:
    return run_program("generate", "--model", "m.safetensors", *arguments)


def poems(*arguments: object) -> list[str]:
    outcome = generate(*arguments)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert outcome.out.endswith("\n")
    return outcome.out[:-1].split("\n")


def test_one_poem_by_default_within_the_length_trained_on() -> None:
    (poem,) = poems("--seed", 0)
    assert len(poem) <= 12 and set(poem) <= {*CHARACTERS, "，", "。"}


def test_count_and_start() -> None:
    written = poems("--start", "月", "--count", 9, "--seed", 1)
    assert len(written) == 9 and len(set(written)) > 4
    assert all(poem[0] == "月" and len(poem) <= 12 for poem in written)
    assert poems("--start", "月 山日\n", "--seed", 1) == poems("--start", "月山日", "--seed", 1)


def test_the_same_seed_writes_the_same_and_no_seed_does_not() -> None:
    first, again, other = (poems("--count", 6, "--seed", seed) for seed in (5, 5, 6))
    assert first == again != other
    assert poems("--count", 6) != poems("--count", 6)


def test_argmax_writes_one_poem_whatever_the_seed() -> None:
    written = poems("--argmax", "--count", 3, "--start", "山", "--seed", 1)
    assert len(set(written)) == 1 and written == poems("--argmax", "--count", 3, "--start", "山", "--seed", 2)
    for option, value in (("--top-k", 1), ("--top-p", 1e-9), ("--temperature", 1e-6)):
        assert poems(option, value, "--count", 3, "--start", "山") == written


def test_options_reach_the_sampler() -> None:
    plain = poems("--count", 8, "--seed", 1)
    assert poems("--count", 8, "--seed", 1, "--top-k", 2) != plain
    assert poems("--count", 8, "--seed", 1, "--top-p", 0.3) != plain
    assert poems("--count", 8, "--seed", 1, "--temperature", 3) != plain
    assert poems("--count", 8, "--seed", 1, "--top-k", 1000, "--top-p", 1) == plain


def test_max_length() -> None:
    short, long = (poems("--max-length", length, "--count", 60, "--seed", 0) for length in (3, 60))
    assert max(map(len, short)) == 3 and 12 < max(map(len, long)) <= 60
    assert poems("--max-length", 1, "--start", "月山") == ["月山"], "what was asked for is kept"


def test_simplified_characters_find_traditional_ones() -> None:
    assert poems("--start", "红", "--seed", 2) == poems("--start", "紅", "--seed", 2)
    assert poems("--start", "红", "--seed", 2)[0].startswith("紅")
    assert poems("--start", "月红日，", "--max-length", 4) == ["月紅日，"]


def test_a_model_that_knows_the_simplified_character_is_given_it(model: Path) -> None:
    save_model(model, small_model(SIMPLIFIED), SIMPLIFIED, max_length=12)
    assert poems("--start", "红", "--seed", 2)[0].startswith("红")
    assert poems("--start", "紅", "--seed", 2)[0].startswith("紅")
    more = Vocabulary([*SIMPLIFIED.tokens, "龍"])
    save_model(model, small_model(more), more, max_length=12)
    assert poems("--start", "红龙", "--seed", 2)[0].startswith("红龍"), "only what is missing is converted"


@pytest.mark.parametrize(
    ("start", "named"),
    [
        ("龘", "龘"),
        ("月龘日", "龘"),
        ("a月", "a"),
        ("龙", "龍"),
        ("<end>", "<"),
        ("🀄", "🀄"),
        ("龘龜", "龘、龜"),
    ],
)
def test_a_character_that_the_model_never_met_is_named(start: str, named: str) -> None:
    message = refused(generate("--start", start), named, "--start")
    assert "月" not in message


def test_a_start_that_is_not_utf_8_is_reported_in_one_line() -> None:
    refused(generate("--start", os.fsdecode(b"\xff")), "--start")


# Which model


def test_without_a_model_the_newest_under_runs_is_taken_and_named(tmp_path: Path) -> None:
    for place, (name, vocabulary) in enumerate({"2": VOCABULARY, "1": SIMPLIFIED, "x": VOCABULARY}.items()):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        path = folder / "model.safetensors"
        save_model(path, small_model(vocabulary, seed=place), vocabulary, max_length=5)
        age = {"2": 300, "1": 100, "x": 200}[name]
        os.utime(path, (1e9 - age, 1e9 - age))
    outcome = run_program("generate", "--start", "红", "--seed", 0)
    assert outcome.code == 0 and outcome.out.startswith("红"), "the newest is the one that knows 红"
    assert outcome.err == f"the model is {Path('runs', '1', 'model.safetensors')}\n"


def test_without_any_model_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "PRETRAINED", tmp_path / "model.safetensors")
    refused(run_program("generate"), str(tmp_path / "runs"), "train.py", "--model")


def test_a_model_without_a_begin_mark_needs_a_start(model: Path) -> None:
    save_model(model, small_model(REPORTS), REPORTS, max_length=12)
    refused(generate(), "first character", "--start")
    assert all(poem.startswith("月") for poem in poems("--start", "月", "--count", 3))
    assert poems("--start", "红", "--max-length", 1) == ["紅"]


def test_a_model_that_was_saved_without_a_length_can_write(model: Path) -> None:
    save_model(model, small_model(), VOCABULARY)
    outcome = generate("--seed", 0)
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err


def test_what_is_no_model_is_reported_in_one_line(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    refused(run_program("generate", "--model", "none.safetensors"), "none.safetensors", "cannot be read")
    refused(run_program("generate", "--model", tmp_path), str(tmp_path))
    model.write_text("甲乙丙丁", encoding="utf-8")
    refused(generate(), "m.safetensors", "not a safetensors file")
    model.write_bytes(b"")
    refused(generate(), "m.safetensors", "not a safetensors file")
    for cut in (9, len(data) // 2, len(data) - 1):
        model.write_bytes(data[:cut])
        refused(generate(), "m.safetensors", "damaged")
    flipped = bytearray(data)
    flipped[-3] ^= 1
    model.write_bytes(flipped)
    refused(generate(), "m.safetensors", "damaged")
    minidl.save(model, minidl.Linear(2, 2, rng=0).state_dict(), {"kind": "something else"})
    refused(generate(), "m.safetensors", "not a poem model")


# In processes of their own


def test_poems_are_utf_8_and_starts_are_understood_whatever_the_locale(model: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    for start, code in (("月", 0), ("龘", 2)):
        command = [
            sys.executable,
            PROGRAMS / "generate.py",
            "--model",
            model,
            "--start",
            start,
            "--count",
            "2",
        ]
        done = subprocess.run(command, capture_output=True, timeout=60, env=environment, check=False)
        out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        assert done.returncode == code, err
        if code == 0:
            assert [line[0] for line in out.splitlines()] == ["月", "月"] and err == ""
        else:
            assert out == "" and "龘" in err and len(err.splitlines()) == 1


HEAVY = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"matplotlib", "tqdm", "corpus.tang", "corpus.download", "platformdirs", "opencc", "cupy", "urllib.request"}
    print(*sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


def test_it_imports_neither_matplotlib_nor_tqdm_nor_the_corpus(model: Path) -> None:
    program = [PROGRAMS, PROGRAMS / "generate.py", "--model", model, "--start", "月"]
    command = [sys.executable, "-c", HEAVY, *program]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr.decode("utf-8").split() == [], "loaded for nothing"


def buffered() -> dict[str, str]:
    """The environment of a user: Python keeps what it prints until it is worth writing."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is told in another way there")
def test_a_reader_that_goes_away_is_no_error(model: Path) -> None:
    command = [sys.executable, PROGRAMS / "generate.py", "--model", model, "--count", "3000", "--start", "月"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=buffered()) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().decode("utf-8").startswith("月")
        process.stdout.close()  # most of it is still to come: a pipe holds 64 kB
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) in (0, -13)


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is told in another way there")
def test_a_reader_that_was_never_there_is_no_error(model: Path) -> None:
    command = [sys.executable, PROGRAMS / "generate.py", "--model", model, "--start", "月"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered(), check=False)
    finally:
        os.close(writer)
    assert (done.stderr, done.returncode in (0, -13)) == (b"", True), "nor when the rest is flushed at exit"


def test_a_space_that_the_model_knows_stays_in_the_start(tmp_path: Path) -> None:
    english = Vocabulary([*VOCABULARY.tokens[:3], *"the ca"])
    save_model(tmp_path / "m.safetensors", small_model(english), english, max_length=20)
    assert poems("--start", "the cat", "--seed", 0)[0].startswith("the cat")


def test_many_poems_are_written_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    from verse import poets, writing

    import generate as program

    monkeypatch.setattr(poets, "GROUP", 4)
    sizes: list[int] = []
    monkeypatch.setattr(writing, "write_poems", lambda *a, **k: sizes.append(len(a[2])) or ["月"] * len(a[2]))
    monkeypatch.setattr("sys.argv", ["generate.py", "--model", "m.safetensors", "--count", "10"])
    program.main()
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("facts", [{"max_length": "x"}, {"max_length": None}, {"max_length": -3}])
def test_a_model_file_with_senseless_facts_is_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    save_model(tmp_path / "m.safetensors", small_model(), VOCABULARY, **facts)
    refused(generate(), "m.safetensors", "max_length")
