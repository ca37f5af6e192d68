"""Chats to token ids, and ids back to text.

The ids are those of transformers' `apply_chat_template`, with two differences that a training run needs:
the date that a template prints is fixed, and text inside a message never becomes a control token
(`docs/algorithm.md`, section 4). The second is done by renaming. A private copy of the tokenizer knows every control
token under a random name instead of its own text. A rendered chat has the control tokens that the template wrote
renamed and is then encoded in one piece, so that in a message "<|im_end|>" is ordinary text, and all other
ids are what they would have been.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gadjax.data.chat_template import TEMPLATE_FLAG, pin, read_template
from gadjax.data.schema import ROLES
from gadjax.data.tokenizer_files import generation_eos_ids, load_backend
from gadjax.errors import UserError
from gadjax.hub import TOKENIZER_FILES, local_directory

# "<|fim_prefix|>" and its kind are not flagged special in every tokenizer, but no text means them literally.
_MARKUP = re.compile(r"<\|[^|<>]*\|>")
_ANSWER = "gadjaxanswer"  # stands for an answer when the template is asked how it frames one


def load_tokenizer(
    path: str | os.PathLike,
    *,
    chat_template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    date: str | None = None,
) -> ChatTokenizer:
    """Loads the tokenizer of a local directory or hub id, ready for chats.

    Args:
      path: directory or hub id. Code from it is never run. A directory whose only vocabulary is a
        sentencepiece `tokenizer.model` works too.
      chat_template: a Jinja template, or the path of a file with one, instead of the tokenizer's own.
      template_args: more variables for the template, e.g. `{"enable_thinking": False}` for Qwen3.
      date: the day, "YYYY-MM-DD", that templates with a date print. Where it or an argument is not given, that
        which `save` wrote holds; else `chat_template.DEFAULT_DATE`.

    Raises:
      UserError: no tokenizer there, no chat template, no token that ends a turn, or a template that fails.
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
    return ChatTokenizer(
        tokenizer,
        source=os.fspath(path),
        generation_eos_ids=generation_eos_ids(directory),
    )


def vocabulary_fingerprint(path: str | os.PathLike) -> str:
    """`ChatTokenizer.vocabulary_fingerprint` of a directory or hub id that need not have a chat template."""
    return _hash_json(sorted(load_backend(local_directory(path, TOKENIZER_FILES)).get_vocab().items()))


class ChatTokenizer:
    """A tokenizer with one pinned chat template and one way to end an answer. Made by `load_tokenizer`.

    Attributes:
      turn_end_id: the id that the chat template closes an assistant turn with; ends every complete answer.
      eos_ids: ids that end a sampled response: `turn_end_id` first, then those of `generation_config.json`
        and the tokenizer's own.
      pad_id: filler for padded positions; may equal an EOS id, so lengths and not ids say where padding
        begins.
      vocab_size: number of ids the tokenizer knows (a model's embedding may have more rows).
      control_ids: ids that no text can produce (text outside the vocabulary, where one has an unknown
        token, aside); only the template writes them, and `turn_end_id` follows an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        source: str,
        generation_eos_ids: Sequence[int] = (),
    ):
        self._tokenizer = tokenizer
        self._source = source

        framed = self._render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}], False)
        before, shown, after = framed.rpartition(_ANSWER)
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        closing = _alternation(added).search(after) if shown else None
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

        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        control = {
            text: i
            for text, i in added.items()
            if i in special or i in self.eos_ids or i == self.pad_id or _MARKUP.fullmatch(text)
        }
        self.control_ids = frozenset(control.values())
        # Random, so that no message can contain it; ids do not depend on it.
        nonce = secrets.token_hex(16)
        self._names = {text: f"<{nonce}n{i}>" for text, i in control.items()}
        self._disguises = {text: f"<{nonce}d{i}>" for text, i in control.items()}
        self._control = _alternation(control)
        self._renaming = {**self._names, **{disguise: text for text, disguise in self._disguises.items()}}
        self._renamed = re.compile(f"<{nonce}d[0-9]+>|{self._control.pattern}")
        self._encoder = _renamed_backend(tokenizer, self._names)
        self._answer_context = self._find_answer_context(before)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """The chat under the template, with the generation prompt at its end: int32 [prompt].

        A BOS stands there once if the template writes one, and not at all if it does not.

        Raises:
          UserError: an empty chat, an unknown role, text that is not Unicode, or a chat that the template
            refuses.
        """
        return self.prompt_ids_batch([messages])[0]

    def prompt_ids_batch(self, chats: Iterable[Sequence[Mapping[str, str]]]) -> list[np.ndarray]:
        """`prompt_ids` of many chats, in parallel where there are cores."""
        return self._encode([self._prompt_text(messages) for messages in chats])

    def response_ids(self, text: str, ended: bool) -> np.ndarray:
        """An answer's text without special tokens, then `turn_end_id` if it `ended`: int32 [response].

        Raises:
          UserError: text that is not Unicode.
        """
        return self.response_ids_batch([text], [ended])[0]

    def response_ids_batch(self, texts: Sequence[str], ended: Sequence[bool]) -> list[np.ndarray]:
        """`response_ids` of many answers, in parallel where there are cores."""
        for text in texts:
            _check_text(text)
        answers = self._encode_answers(list(texts))
        end = np.array([self.turn_end_id], np.int32)
        return [np.concatenate([ids, end]) if e else ids for ids, e in zip(answers, ended, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; without the control tokens unless told otherwise."""
        ids = np.asarray(ids).tolist()
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.control_ids]
        # Clean-up (on in Llama 3.1's config; transformers 5 ignores it for BPE) would rewrite " ." to ".".
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer, its chat template pinned, for transformers to load and render the same prompts."""
        self._tokenizer.save_pretrained(directory)

    def fingerprint(self) -> str:
        """Hash of what turns text into ids: vocabulary, template with its arguments and date, EOS ids."""
        return _hash_json([self.vocabulary_fingerprint(), self._tokenizer.chat_template, self.eos_ids])

    def vocabulary_fingerprint(self) -> str:
        """Hash of which id means which token: equal for models that can read each other's ids."""
        return _hash_json(sorted(self._tokenizer.get_vocab().items()))

    def _prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The rendered chat, in which control tokens of the template have their private names."""
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
        # A text whose beginning merges with the context's end is encoded alone.
        apart = [not np.array_equal(ids[: len(skip)], skip) for ids in answers]
        alone = iter(self._encode([text for text, is_apart in zip(texts, apart, strict=True) if is_apart]))
        return [next(alone) if is_apart else ids[len(skip) :] for ids, is_apart in zip(answers, apart, strict=True)]

    def _find_answer_context(self, before: str) -> str:
        """What an answer must be encoded behind, to start as a sampled one does; "" for most tokenizers.

        Sentencepiece tokenizers put a space before a text's first word. After "[/INST] " that is what the
        model writes; after "<|assistant|>\\n" it is not, and the discriminator would know the teacher by
        its first token.
        """
        word, newline, line = self._encode(["a", "\n", "\na"])
        splits = np.array_equal(line[: len(newline)], newline)
        adds_space = splits and not np.array_equal(line[len(newline) :], word)
        if not adds_space or not before or before.endswith(" "):
            return ""
        before = self._rename(before)
        return next((name for name in self._names.values() if before.endswith(name)), "\n")


def _renamed_backend(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """A `tokenizers.Tokenizer` with the same ids that knows the tokens in `names` by their new names only."""
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec |= {"truncation": None, "padding": None, "post_processor": None}
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
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


def _alternation(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `texts`, the longest first; nothing at all if there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"expected text, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"text with a lone surrogate, which is not Unicode: {text[:60]!r}") from error


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
