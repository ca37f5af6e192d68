"""Reads a tokenizer from a Hugging Face directory, with exactly the ids that its files define, and writes it again."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

from gadjax.errors import UserError, first_line

_FAST, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_VOCABULARY_FILES = (_FAST, "tokenizer.model", "vocab.json")
_COPIED = (*_VOCABULARY_FILES, _CONFIG, "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.txt")
_PROBES = ("Hello  world", "It's 12.5 % of x_y: (naïve) 東京", "one\ntwo")


def load_backend(directory: pathlib.Path) -> Any:
    """The transformers tokenizer of a directory, in its fast form.

    Raises:
      UserError: there is no tokenizer, transformers cannot load it, or its ids cannot be reproduced.
    """
    has = {name: (directory / name).is_file() for name in _VOCABULARY_FILES}
    if not any(has.values()):
        raise UserError(f"{directory}: no tokenizer there (none of {', '.join(_VOCABULARY_FILES)})")
    _refuse_code(directory / "tokenizer_config.json")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a broken or foreign file makes transformers raise
        raise UserError(
            f"{directory}: transformers cannot load this tokenizer ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{directory}: {type(tokenizer).__name__} has no fast form; save it as tokenizer.json first")
    if has["tokenizer.model"] and not has[_FAST]:
        tokenizer = _match_sentencepiece(tokenizer, str(directory / "tokenizer.model"))
    return tokenizer


def save(tokenizer: Any, source: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes a tokenizer, with its chat template, in files that transformers reads from 4.45 on.

    transformers 5 writes a class and a field that earlier versions do not know. So the source's own files are copied
    where it has the fast form, and only the chat template is exchanged.

    Args:
      tokenizer: of `load_backend`; its chat template may be another than the source's.
      source: the directory that it was loaded from.
      directory: which exists.
    """
    tokenizer.save_pretrained(directory)
    if (source / _FAST).is_file() and (source / _CONFIG).is_file():
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
    config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # its name in all versions
    if isinstance(config.get("extra_special_tokens"), list):
        extra = config.pop("extra_special_tokens")
        config["additional_special_tokens"] = [*(config.get("additional_special_tokens") or []), *extra]
    config["chat_template"] = tokenizer.chat_template  # versions before 4.53 do not read the file of its own
    (directory / _CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_code(file: pathlib.Path) -> None:
    """Refuses a tokenizer with code of its own: transformers may ignore that code, and then give other ids."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or for transformers to refuse
        return
    if isinstance(config, dict) and config.get("auto_map"):
        raise UserError(f"{file}: auto_map asks for trust_remote_code; code from a checkpoint is never run")


def generation_eos_ids(directory: pathlib.Path) -> list[int]:
    """The EOS ids of a directory's generation_config.json; none without that file."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return []
    try:
        ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        ids = [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: `eos_token_id` cannot be read ({error})") from error
    for i in ids:
        if not 0 <= i < 2**31:
            raise UserError(f"{file}: `eos_token_id` holds {i}, which no token has; take it out")
    return ids


def _match_sentencepiece(tokenizer: Any, file: str) -> Any:
    """A tokenizer with sentencepiece's own ids, from one that transformers converted from the `tokenizer.model`.

    transformers 5 converts by the class that the config names. So it makes BPE of a unigram model under
    `LlamaTokenizer`; without a class, it leaves out the space before the first word and the model's white-space rules.
    A tokenizer with the right ids comes back as it is. Another one is rebuilt by the rules in the file.

    Raises:
      UserError: the file is no sentencepiece model, or one whose ids cannot be reproduced.
    """
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(f"{file}: install sentencepiece and protobuf to read this tokenizer") from error

    try:
        reference = SentencePieceProcessor(model_file=file)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{file}: not a sentencepiece model") from error
    wanted = [reference.encode(text) for text in _PROBES]
    if _encode(tokenizer.backend_tokenizer) == wanted:
        return tokenizer
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at run time
    with open(file, "rb") as handle:
        proto.ParseFromString(handle.read())
    backend = _rebuilt(tokenizer.backend_tokenizer, proto)
    if _encode(backend) != wanted:
        raise UserError(f"{file}: cannot be converted with the same ids; convert it to a tokenizer.json first")

    from transformers import PreTrainedTokenizerFast

    # A saved copy with the old class would be rebuilt by that class's rules when it is loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )


def _encode(backend: Any) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(list(_PROBES), add_special_tokens=False)]


def _rebuilt(backend: Any, proto: Any) -> Any:
    """A copy of `backend` with the model, normalizer and decoder that the sentencepiece `proto` describes."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    backend = Tokenizer.from_str(backend.to_str())  # from text, without the cached words of the old model
    rules, trained = proto.normalizer_spec, proto.trainer_spec
    if trained.model_type == trained.UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        backend.model = models.Unigram(pieces, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
    elif trained.model_type == trained.BPE and isinstance(backend.model, models.BPE):
        backend.model.unk_token = trained.unk_piece
        backend.model.byte_fallback = trained.byte_fallback
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend
