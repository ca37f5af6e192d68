"""What chats and answers are, and how a chat is read: turns of `role` and `content`, or of `from` and `value`."""

from __future__ import annotations

from typing import Any

from gadjax.errors import UserError

Messages = list[dict[str, str]]  # a chat: each {"role": ..., "content": ...}

ROLES = ("system", "user", "assistant")

# Finish reasons of OpenAI-compatible servers: the answer stopped at a token limit.
CUT_REASONS = ("length", "max_tokens")
# Finish reasons of answers that there is nothing to learn from, whatever their text.
MARKED_REASONS = ("content_filter", "refusal", "error", "tool_calls", "function_call")

# The roles of ShareGPT's `from`.
_FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
_TOOL_ROLES = ("tool", "function", "function_call", "observation")


def read_chat(value: Any, place: str, column: str) -> Messages:
    """The turns of a chat as messages.

    A turn's content is text, or a list of parts of text, which are joined as chat templates join them: without anything
    between them.

    Args:
      value: the row's value: a list of {"role": ..., "content": ...} or of {"from": ..., "value": ...}.
      place: of the row, for messages.
      column: the value's column, for messages.

    Raises:
      UserError: the value is no chat, a role is unknown or that of a tool, or a part is not of text.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: `{column}` must be a list of messages, at least one")
    chat = []
    for turn in value:
        role = role_of(turn)
        if role in _TOOL_ROLES:
            raise UserError(
                f"{place}: a message of `{column}` has the role {role}, and calls of tools are not read; leave the row "
                "out"
            )
        content = None
        if isinstance(turn, dict):
            content = turn.get("content")
            if content is None:
                content = turn.get("value")
            if isinstance(content, list):
                content = _joined(content, place, column)
        if role not in ROLES or not isinstance(content, str):
            form = '{"role": ..., "content": TEXT} with a role of ' + ", ".join(ROLES)
            if isinstance(turn, dict) and turn.get("from") is not None:
                form = '{"from": ..., "value": TEXT} with a "from" of human, gpt or system'
            raise UserError(f"{place}: a message of `{column}` is not of the form {form}")
        chat.append({"role": role, "content": content})
    return chat


def role_of(turn: Any) -> Any:
    """The role of a turn, in gadjax's words where it is one of ShareGPT's; None if it has none."""
    if not isinstance(turn, dict):
        return None
    role = turn.get("role")
    if role is None and isinstance(role := turn.get("from"), str):
        role = _FROM.get(role, role)
    return role


def _joined(parts: list[Any], place: str, column: str) -> str | None:
    """The text of a list of parts, or None if there are none."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in (None, "text") or not isinstance(text, str):
            shown = kind if isinstance(kind, str) and kind != "text" else type(part).__name__
            raise UserError(
                f"{place}: a message of `{column}` has a part of the type {shown!r}; gadjax reads text alone, so leave "
                "the row out"
            )
        texts.append(text)
    return "".join(texts) if texts else None


def status_of(answer: str | None, finish_reason: str | None) -> str:
    """What an answer is to training: "whole", "cut" at a token limit, or "marked" (there is none to learn from).

    This is the rule of `gadjax.data.schema.Rows.cut` and `marked`, except that an answer that is both is "marked".
    """
    if finish_reason in MARKED_REASONS:
        return "marked"
    if finish_reason in CUT_REASONS:
        return "cut" if (answer or "").strip() else "marked"
    return "whole"


def encodes(text: str) -> bool:
    """Whether the text is Unicode: half of a surrogate pair, which JSON can hold, is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
