"""Tokenizers whose only vocabulary is a sentencepiece `tokenizer.model`."""

from __future__ import annotations

from typing import Any

from gadjax.errors import UserError

_PROBES = ("Hello  world", "It's 12.5 % of x_y: (naïve) 東京", "one\ntwo")


def match_sentencepiece(tokenizer: Any, file: str) -> Any:
    """A tokenizer that gives sentencepiece's own ids, from one that transformers converted from `file`.

    transformers 5 converts by the class that the config names: a unigram model under `LlamaTokenizer`
    becomes BPE, and without a class the space before the first word and the model's white-space rules are
    left out. A tokenizer whose ids are sentencepiece's comes back as it is; another is rebuilt by the rules
    in the file.

    Raises:
      UserError: not a sentencepiece model, or one of a kind whose ids cannot be reproduced.
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
    proto = sentencepiece_model_pb2.ModelProto()
    with open(file, "rb") as handle:
        proto.ParseFromString(handle.read())
    backend = _rebuilt(tokenizer.backend_tokenizer, proto)
    if _encode(backend) != wanted:
        raise UserError(f"{file}: cannot be converted with the same ids; convert it to a tokenizer.json first")

    from transformers import PreTrainedTokenizerFast

    # Under its old class a saved copy would be rebuilt by that class's rules when it is loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )


def _encode(backend: Any) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(list(_PROBES), add_special_tokens=False)]


def _rebuilt(backend: Any, proto: Any) -> Any:
    """`backend` with the model, normalizer and decoder that the sentencepiece `proto` describes."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers

    backend = Tokenizer.from_str(backend.to_str())  # a copy without the words that the old model has cached
    rules, trained = proto.normalizer_spec, proto.trainer_spec
    if trained.model_type == trained.UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        backend.model = models.Unigram(pieces, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
    elif trained.model_type == trained.BPE and isinstance(backend.model, models.BPE):
        backend.model.unk_token = trained.unk_piece
        backend.model.byte_fallback = trained.byte_fallback
    steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend
