"""Text as it grows: whatever the pieces, their sum is the answer."""

from hypothesis import given
from hypothesis import strategies as st
from nvila_model.generation.detokenize import TextStream


def decode(ids) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def run(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stop)
    pieces = [stream.push(byte) for byte in text]
    return [*pieces, stream.finish()], stream


@given(st.text())
def test_pieces_join_to_the_stripped_text(text: str):
    pieces, _ = run(text.encode())
    assert "".join(pieces) == text.strip()


@given(st.text(alphabet="ab \n"), st.lists(st.text(alphabet="ab ", min_size=1, max_size=3), max_size=3))
def test_nothing_is_said_after_a_stop_string(text: str, stop: list[str]):
    pieces, stream = run(text.encode(), tuple(stop))
    places = [text.find(word) for word in stop if word in text]
    if places:
        assert stream.stopped
        first = min(text.find(word) + len(word) for word in stop if word in text)
        assert "".join(pieces) in {text[:place].strip() for place in range(first + 1)}
    else:
        assert "".join(pieces) == text.strip()


def test_a_character_of_several_tokens_comes_whole():
    pieces, _ = run("aé".encode())
    assert pieces == ["a", "", "é", ""]


def test_a_stop_string_over_several_tokens_is_held_back():
    pieces, stream = run(b"yes END no", ("END",))
    assert "".join(pieces) == "yes"
    assert stream.stopped


def test_the_beginning_of_a_stop_string_is_let_go_when_it_does_not_come():
    assert "".join(run(b"an EN", ("END",))[0]) == "an EN"
