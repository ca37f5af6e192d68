"""python -m gadjax.chat: a conversation in the terminal."""

from __future__ import annotations

import pytest

from gadjax.rollout import chat_model

pytestmark = pytest.mark.usefixtures("one_device", "quick_compile", "shared_programs")


@pytest.fixture
def generator(finished_run):
    return finished_run.workdir / "export" / "generator"


@pytest.fixture
def talk(command, monkeypatch, generator):
    """Types lines, and returns what the command printed and the chats that the model was given.

    The reply to a line with "stop N" is "one\\ntwo", and meets Ctrl-C after N of its three parts.
    """

    def talk(lines: list[str | type[BaseException]], *flags: str, limit: str | None = "--max_response_length=6"):
        typed = iter(lines)
        asked = []
        stream = chat_model.ChatModel.stream

        def remember(self, chat, sampling, *, seed, fit):
            asked.append(([dict(message) for message in chat], sampling, seed))
            _, stops, parts = chat[-1]["content"].partition("stop ")
            if not stops:
                yield from stream(self, chat, sampling, seed=seed, fit=fit)
                return
            yield from [chat_model.Reply(text, len(text), False) for text in ("o", "one", "one\ntwo")[: int(parts)]]
            raise KeyboardInterrupt

        def read(prompt: str) -> str:
            line = next(typed)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(chat_model.ChatModel, "stream", remember)
        done = command("gadjax.chat", f"--model={generator}", *([limit] if limit else []), *flags)
        assert done.status == 0, done.err
        assert next(typed, None) is None
        return done, asked

    return talk


def roles(asked) -> list[list[str]]:
    return [[message["role"] for message in chat] for chat, _, _ in asked]


def test_a_conversation(talk, generator):
    """Each reply is that of `answer` and in the next question's chat; /reset forgets them; /quit ends."""
    done, asked = talk(["What is one", "and two", "", "/reset", "three", "/quit"], "--system=Be brief", "--seed=4")
    assert roles(asked) == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert [chat[-1]["content"] for chat, _, _ in asked] == ["What is one", "and two", "three"]
    assert asked[0][0][0]["content"] == "Be brief"
    assert [seed for _, _, seed in asked] == [4, 5, 6]
    assert asked[0][1].max_response_length == 6
    model = chat_model.chat_model(chat_model.load_network(str(generator), "lm"), batch_size=1)
    replies = [model.answer([chat], sampling, seed=seed)[0].text for chat, sampling, seed in asked]
    assert done.out == "".join(f"{reply}\n" for reply in replies)
    assert asked[1][0][2]["content"] == replies[0]
    assert done.err.startswith(f"loading {generator}\nThe first reply takes longer")


def test_the_default_limit_is_what_fits(talk):
    """The model has 128 positions; the default asks for 256 tokens."""
    done, asked = talk(["two", "two " * 130, EOFError], limit=None)
    assert asked[0][1].max_response_length == 256
    last = done.err.splitlines()[-1]
    assert last.endswith("; shorten the prompt; /reset starts again") and "max_position_embeddings is 128" in last


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/quit"])
def test_ends(talk, end):
    done, asked = talk([end])
    assert (done.out, asked) == ("", [])


def test_a_conversation_that_outgrows_the_model(talk):
    """The question is dropped, and the conversation goes on."""
    done, asked = talk(["two " * 130, "two", EOFError])
    assert "max_position_embeddings is 128" in done.err and "/reset starts" not in done.err
    assert roles(asked) == [["user"], ["user"]]
    assert asked[1][0] == [{"role": "user", "content": "two"}]


def test_a_stopped_reply_is_remembered(talk):
    done, asked = talk(["one stop 3", "two", EOFError])
    reply = {"role": "assistant", "content": "one\ntwo"}
    assert asked[1][0] == [{"role": "user", "content": "one stop 3"}, reply, {"role": "user", "content": "two"}]
    assert done.out.startswith("one\ntwo\n")
    assert "(stopped)\n" in done.err
    assert asked[1][2] == asked[0][2] + 1


def test_a_reply_that_is_stopped_before_it_begins(talk):
    done, asked = talk(["one stop 0", "two", EOFError])
    assert "your message is forgotten" in done.err
    assert [chat for chat, _, _ in asked][1] == [{"role": "user", "content": "two"}]
    assert asked[1][2] == asked[0][2]


def test_commands(talk):
    """They are not sent."""
    lines = ["one", "/system Be kind", "two", "/system", "three", "/rest", "/help", EOFError]
    done, asked = talk(lines)
    assert roles(asked) == [
        ["user"],
        ["system", *["user", "assistant"] * 1, "user"],
        ["user", "assistant"] * 2 + ["user"],
    ]
    assert asked[1][0][0]["content"] == "Be kind"
    assert "there is no command /rest; did you mean /reset? /help lists the commands\n" in done.err
    assert all(f"\n{name}" in done.err for name in ("/help", "/reset", "/system TEXT", "/quit"))
    assert len(done.out.splitlines()) >= 3 and "/help" not in done.out


def test_a_template_without_system_messages(talk, command, generator, monkeypatch):
    """--system is refused before weights are read, and /system leaves the chat as it was."""
    from gadjax.data.tokenizer import ChatTokenizer
    from gadjax.errors import UserError

    render = ChatTokenizer._render

    def refuse(self, messages, generation_prompt):
        if messages[0]["role"] == "system":
            raise UserError("the chat template of it refused a chat: no system")
        return render(self, messages, generation_prompt)

    monkeypatch.setattr(ChatTokenizer, "_render", refuse)
    done, asked = talk(["/system Be kind", "two", EOFError])
    assert "refused a chat: no system\n" in done.err and roles(asked) == [["user"]]
    monkeypatch.setattr(chat_model.CheckedNetwork, "load", lambda *_, **__: pytest.fail("weights were read"))
    done = command("gadjax.chat", f"--model={generator}", "--system=Be kind")
    assert done.status == 2 and done.err.endswith("error: the chat template of it refused a chat: no system\n")
