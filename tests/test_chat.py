"""python -m gadjax.chat: a conversation in the terminal."""

from __future__ import annotations

import pytest

from gadjax.rollout import chat_model

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile")


@pytest.fixture
def talk(command, monkeypatch, finished_run):
    """Types lines, and returns what the command printed and the chats that the model was given."""

    def talk(lines: list[str | type[BaseException]], *flags: str, limit: str | None = "--max_response_length=6"):
        typed = iter(lines)
        asked = []
        answer = chat_model.ChatModel.answer

        def remember(self, chats, sampling, *, seed, fit):
            asked.append(([dict(message) for message in chats[0]], sampling, seed))
            return answer(self, chats, sampling, seed=seed, fit=fit)

        def read(prompt: str) -> str:
            line = next(typed)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(chat_model.ChatModel, "answer", remember)
        model = finished_run.workdir / "export" / "generator"
        done = command("gadjax.chat", f"--model={model}", *([limit] if limit else []), *flags)
        assert done.status == 0, done.err
        return done.out.splitlines(), asked

    return talk


def test_a_conversation(talk):
    """Each answer is in the next question's chat; /new forgets it; an empty line ends."""
    out, asked = talk(["What is one", "and two", "/new", "three", "", "never read"], "--system=Be brief")
    roles = [[message["role"] for message in chat] for chat, _, _ in asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert [chat[-1]["content"] for chat, _, _ in asked] == ["What is one", "and two", "three"]
    assert asked[0][0][0]["content"] == "Be brief"
    assert "\n".join(out).startswith(asked[1][0][2]["content"].rstrip("\n"))  # what was answered first
    assert len({seed for _, _, seed in asked}) == 3
    assert asked[0][1].max_response_length == 6


def test_the_default_limit_is_what_fits(talk):
    """The model has 128 positions; the default asks for 256 tokens."""
    out, asked = talk(["two", "two " * 130, EOFError], limit=None)
    assert asked[0][1].max_response_length == 256
    assert out[-1].endswith("; shorten the prompt; /new starts again") and "max_position_embeddings is 128" in out[-1]


def test_end_of_input(talk):
    out, asked = talk([EOFError])
    assert (out, asked) == ([], [])


def test_a_conversation_that_outgrows_the_model(talk):
    """The question is dropped, and the conversation goes on."""
    out, asked = talk(["two " * 130, "two", EOFError])
    assert "max_position_embeddings is 128" in out[0] and out[0].endswith("; /new starts again")
    assert [len(chat) for chat, _, _ in asked] == [1, 1]
    assert asked[1][0] == [{"role": "user", "content": "two"}]
