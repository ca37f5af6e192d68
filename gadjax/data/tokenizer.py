"""Turns chats into token ids, and ids back into text.

The ids are those of transformers' `apply_chat_template`, with two differences. The date that a template prints is
fixed, so that every run and export sees the same prompts. And text inside a message never becomes a control token, so
that no user can write one.

The second is done by renaming. A private copy of the tokenizer knows every control token by a random name instead of
its text. In a rendered chat, the control tokens that the template wrote get these names before the chat is encoded in
one piece. So "<|im_end|>" inside a message is ordinary text, and all other ids stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gadjax.data.chat_template import TEMPLATE_FLAG, pin, read_template
from gadjax.data.chats import ROLES, encodes
from gadjax.data.tokenizer_files import generation_eos_ids, load_backend, save
from gadjax.errors import UserError
from gadjax.hub import TOKENIZER_FILES, local_directory

# Some tokenizers do not flag "<|fim_prefix|>" and the like as special, but no text means them literally.
_MARKUP = re.compile(r"<\|[^|<>]*\|>")
_ANSWER = "gadjaxanswer"  # an answer that shows how the template frames one


def load_tokenizer(
    path: str | os.PathLike,
    *,
    chat_template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> ChatTokenizer:
    """Loads the tokenizer of a local directory or hub id, ready for chats.

    Args:
      path: directory or hub id, whose code is never run. A sentencepiece `tokenizer.model` alone is enough.
      chat_template: a Jinja template, or the path of a file with one, that replaces the tokenizer's own.
      template_args: more variables for the template, e.g. `{"enable_thinking": False}` for Qwen3.
      date: "YYYY-MM-DD", the day that templates with a date print. The default for the date and for each argument is
        what `save` wrote, then `chat_template.DEFAULT_DATE`.

    Raises:
      UserError: there is no tokenizer, no chat template or no token that ends a turn, or the template fails.
    """
    directory = local_directory(path, TOKENIZER_FILES)
    tokenizer = load_backend(directory)
    if chat_template:
        tokenizer.chat_template = read_template(chat_template)
    elif isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        raise UserError(
            f"{path}: the tokenizer has no chat template (a base model?); put one beside it as chat_template.jinja, or "
            f"train with {TEMPLATE_FLAG}"
        )
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(f"{path}: the tokenizer's chat_template is {tokenizer.chat_template!r}; expected Jinja text")
    tokenizer.chat_template = pin(tokenizer.chat_template, template_args or {}, date)
    eos_ids = generation_eos_ids(directory)
    return ChatTokenizer(tokenizer, source=os.fspath(path), directory=directory, generation_eos_ids=eos_ids)


def vocabulary_fingerprint(path: str | os.PathLike) -> str:
    """`ChatTokenizer.vocabulary_fingerprint` of a directory or hub id, which needs no chat template."""
    return _hash_json(sorted(load_backend(local_directory(path, TOKENIZER_FILES)).get_vocab().items()))


class ChatTokenizer:
    """A tokenizer with one fixed chat template; made by `load_tokenizer`.

    Attributes:
      turn_end_id: id with which the chat template closes an assistant turn, and so the end of every complete answer.
      eos_ids: ids that end a sampled response: `turn_end_id`, then those of `generation_config.json`, then the
        tokenizer's own.
      pad_id: id at padded positions. It may be an EOS id, so lengths say where padding begins, not ids.
      vocab_size: number of ids that the tokenizer knows; a model's embedding may have more rows.
      control_ids: ids that only the template can write. Text cannot, except that a tokenizer with an unknown token
        writes that one for text outside its vocabulary.
    """

    def __init__(self, tokenizer: Any, *, source: str, directory: pathlib.Path, generation_eos_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._source, self._directory = source, directory

        # Find the token that ends an answer: the first added token behind one in a rendered chat.
        framed = self._render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}], False)
        before, shown, after = framed.rpartition(_ANSWER)
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        closing = _any_of(added).search(after) if shown else None
        self.turn_end_id = added[closing[0]] if closing else tokenizer.eos_token_id
        if self.turn_end_id is None:
            raise UserError(
                f"{source}: the chat template ends an answer with no special token and the tokenizer has no "
                f"EOS token; set `eos_token` in tokenizer_config.json, or train with {TEMPLATE_FLAG}"
            )
        ends = dict.fromkeys([self.turn_end_id, *generation_eos_ids, tokenizer.eos_token_id])
        self.eos_ids: tuple[int, ...] = tuple(int(i) for i in ends if i is not None)
        self.pad_id: int = self.turn_end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.vocab_size: int = len(tokenizer)

        # Find the control tokens.
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= {*self.eos_ids, self.pad_id}
        control = {text: i for text, i in added.items() if i in special or _MARKUP.fullmatch(text)}
        self.control_ids = frozenset(control.values())

        # Give each a name, and a disguise that stands for its text inside messages while the template renders. They
        # are random, so that no message can contain them. Ids do not depend on them.
        nonce = secrets.token_hex(16)
        self._names = {text: f"<{nonce}n{i}>" for text, i in control.items()}
        self._disguises = {text: f"<{nonce}d{i}>" for text, i in control.items()}
        self._control = _any_of(control)
        self._renaming = {**self._names, **{disguise: text for text, disguise in self._disguises.items()}}
        self._renamed = re.compile(f"<{nonce}d[0-9]+>|{self._control.pattern}")
        self._encoder = _renamed_backend(tokenizer, self._names)
        self._answer_context = self._find_answer_context(before)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """The rendered chat, with the generation prompt at its end, as token ids: int32 [prompt].

        There is one BOS if the template writes it, and none if it does not.

        Raises:
          UserError: the chat is empty, has an unknown role or text that is not Unicode, or the template refuses it.
        """
        return self.prompt_ids_batch([messages])[0]

    def prompt_ids_batch(self, chats: Iterable[Sequence[Mapping[str, str]]]) -> list[np.ndarray]:
        """`prompt_ids` of many chats, in parallel on several cores."""
        return self._encode([self._prompt_text(messages) for messages in chats])

    def response_ids(self, text: str, ended: bool) -> np.ndarray:
        """An answer's text as token ids, then `turn_end_id` if it `ended`: int32 [response]; text must be Unicode."""
        return self.response_ids_batch([text], [ended])[0]

    def response_ids_batch(self, texts: Sequence[str], ended: Sequence[bool] | np.ndarray) -> list[np.ndarray]:
        """`response_ids` of many answers, in parallel on several cores."""
        for text in texts:
            _check_text(text)
        end = np.array([self.turn_end_id], np.int32)
        answers = self._encode_answers(list(texts))
        return [np.concatenate([ids, end]) if e else ids for ids, e in zip(answers, ended, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text of `ids`, by default without control tokens."""
        ids = np.asarray(ids).tolist()
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.control_ids]
        # Clean-up, which Llama 3.1's config asks for, would turn " ." into ".".
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer with its fixed chat template, so that transformers renders the same prompts.

        The files are the student's own where it has them, since every version of transformers that read those reads
        their copies (`tokenizer_files.save`).
        """
        save(self._tokenizer, self._directory, pathlib.Path(directory))

    def fingerprint(self) -> str:
        """Hash of all that turns text into ids: vocabulary, template with its arguments and date, EOS ids."""
        return _hash_json([self.vocabulary_fingerprint(), self._tokenizer.chat_template, self.eos_ids])

    def vocabulary_fingerprint(self) -> str:
        """Hash of the vocabulary; equal for models that can read each other's ids."""
        return _hash_json(sorted(self._tokenizer.get_vocab().items()))

    def _prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The rendered chat, with the template's control tokens under their names."""
        if not messages:
            raise UserError("the chat is empty")
        disguised = []
        for message in messages:
            role, content = message["role"], message["content"]
            if role not in ROLES:
                raise UserError(f"unknown role {role!r} in a chat; expected one of {', '.join(ROLES)}")
            _check_text(content)
            content = self._control.sub(lambda match: self._disguises[match[0]], content)
            disguised.append({"role": role, "content": content})
        return self._rename(self._render(disguised, True))

    def _rename(self, rendered: str) -> str:
        """Control tokens become their names, and disguises the text of messages again."""
        return self._renamed.sub(lambda match: self._renaming[match[0]], rendered)

    def _render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=generation_prompt, tokenize=False
            )
        except Exception as error:  # the template is the user's program and may fail in any way
            raise UserError(f"the chat template of {self._source} refused a chat: {error}") from error

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _encode_answers(self, texts: list[str]) -> list[np.ndarray]:
        if not self._answer_context:
            return self._encode(texts)
        skip = self._encode([self._answer_context])[0]
        answers = self._encode([self._answer_context + text for text in texts])
        # If a text's beginning merges with the end of the context, the text is encoded alone.
        apart = [not np.array_equal(ids[: len(skip)], skip) for ids in answers]
        alone = iter(self._encode([text for text, is_apart in zip(texts, apart, strict=True) if is_apart]))
        return [next(alone) if is_apart else ids[len(skip) :] for ids, is_apart in zip(answers, apart, strict=True)]

    def _find_answer_context(self, before: str) -> str:
        """Text to encode before an answer, so that it starts as a sampled one does; "" for most tokenizers.

        Sentencepiece tokenizers put a space before a text's first word. A model writes that space after "[/INST] ", but
        not after "<|assistant|>\\n", where the discriminator would tell the teacher by its first token.
        """
        word, newline, line = self._encode(["a", "\n", "\na"])
        splits = np.array_equal(line[: len(newline)], newline)
        adds_space = splits and not np.array_equal(line[len(newline) :], word)
        if not adds_space or not before or before.endswith(" "):
            return ""
        before = self._rename(before)
        return next((name for name in self._names.values() if before.endswith(name)), "\n")


def _renamed_backend(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """A `tokenizers.Tokenizer` with the same ids, in which the tokens of `names` have their new names only."""
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec |= {"truncation": None, "padding": None, "post_processor": None}
    added, model = spec["added_tokens"], spec["model"]
    ids = {token["content"]: token["id"] for token in added}
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    backend = Tokenizer.from_str(json.dumps(spec))
    moved = [text for text, name in names.items() if backend.token_to_id(name) != ids[text]]
    if moved:
        raise UserError(f"the tokenizer's added tokens do not keep their ids when it is reloaded: {', '.join(moved)}")
    return backend


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of `texts`, the longest first; nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"expected text, got {type(text).__name__}")
    if not encodes(text):
        raise UserError(f"text with a lone surrogate, which is not Unicode: {text[:60]!r}")


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
