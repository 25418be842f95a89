"""The tokenizer: text to ids and back.

    text ── added tokens cut out ── normalized ── cut into pre-tokens ── bytes or characters ── merges ── ids ── decoded ── text

Everything it is comes from one `tokenizer.json` (ours or another's) and it gives the ids that `tokenizers` gives for it. It is
fast although it is Python, because natural text repeats its words: a dictionary remembers the ids of each pre-token
as packed bytes, so a known text costs one regular expression, one look-up a word and one `join`, all of them in C.

The merges themselves are the levels' own (`data_pipeline/tokenizer/bpe_encode.py`): level 2 merges new words one by one, level 3
all of them together as arrays. Level 1 uses `tokenizers`.

    uv run python -c "from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe; t = train_bpe(['a cat, a hat'], 260); print(t.encode('a rat'))"
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Int64, UInt32

from shared_data.errors import UserError
from shared_data.tokenizer.added_tokens import AddedTokens, Piece
from shared_data.tokenizer.alignment import lengths_in
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE, ChatTemplate, marked, split_marked, template_of
from shared_data.tokenizer.decoder import Decoder
from shared_data.tokenizer.normalizer import Normalizer
from shared_data.tokenizer.pre_tokenizer import PreTokenizer
from shared_data.tokenizer.split_patterns import cut_long_text
from shared_data.tokenizer.tokenizer_config import token_text
from shared_data.tokenizer.tokenizer_file import (
    Definition,
    added_tokens_of,
    merges_of,
    read_tokenizer,
    surrounding_ids,
    write_tokenizer,
)
from shared_data.tokenizer.word_encoder import MergeWords, WordEncoder, ends_before_spaces

END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>")
NO_TEMPLATE = "the model has no chat template: it continues text and was not tuned to answer; use `generate`, or tune it with `sft`"


class Tokenizer:
    """A BPE tokenizer. A level names its way to merge; build it with `train_bpe` or `Tokenizer.load`."""

    bpe: ClassVar[tuple[type, MergeWords]]  # `Merges` and `merge_words` of the level's `bpe_encode.py`

    def __init__(self, definition: Definition, config: Definition | None = None) -> None:
        """From the content of `tokenizer.json` and `tokenizer_config.json`."""
        self.definition = definition
        self.config = config or {}
        model = definition["model"]
        added, merges = added_tokens_of(definition), merges_of(definition)
        self._pre_tokenizer = PreTokenizer(definition.get("pre_tokenizer"))
        normalize = Normalizer(definition.get("normalizer"))
        if self._pre_tokenizer.first_only and normalize.may_remove_start:
            raise UserError(
                "its normalizer may remove the beginning of a text before which its pre-tokenizer puts a space, which is not"
                " supported; set prepend_scheme to always or never"
            )
        self._added = AddedTokens(added, normalize)
        self._before, self._after = surrounding_ids(definition)
        self._words = _WordMemory(
            WordEncoder(
                *self.bpe,
                model["vocab"],
                merges,
                bool(model.get("ignore_merges")),
                model.get("unk_token") or None,
                bool(model.get("fuse_unk")),
                self._pre_tokenizer.is_byte_level,
                bool(model.get("byte_fallback")),
            )
        )
        if not self._pre_tokenizer.is_byte_level and ends_before_spaces(model, merges):
            self._pre_tokenizer.cut_at_spaces()
        self._decoder = Decoder(
            definition.get("decoder"), self._pre_tokenizer.is_byte_level, bool(model.get("byte_fallback"))
        )
        self._ids: dict[str, int] = model["vocab"] | {token.content: token.id for token in added}
        self._tokens = {id: token for token, id in model["vocab"].items()}
        # Like the library: what is looked for in normalized text is also written normalized.
        self._tokens |= {
            token.id: normalize(token.content) if token.normalized else token.content for token in added
        }
        self._bytes = {id: self._decoder.bytes_of(token) for id, token in self._tokens.items()}
        self.special_tokens: dict[str, int] = {token.content: token.id for token in added if token.special}
        self._skipped = {id for id, token in self._tokens.items() if token in self.special_tokens}

    @property
    def vocab_size(self) -> int:
        """The number of ids a model needs: the largest id, and one more."""
        return max(self._tokens) + 1

    @cached_property
    def byte_lengths(self) -> Int64[np.ndarray, " V"]:
        """How many bytes of a text each id stands for; 0 for an id that the tokenizer does not know.

        A `▁` is a space and `<0x0A>` one byte. Where a tokenizer changes a text (accents composed, a space put before its first
        word), no number for each id can be right; `byte_lengths_in` has those of one text.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for id, token in self._bytes.items():
            lengths[id] = len(token)
        return lengths

    @property
    def end_of_text_id(self) -> int:
        """The id that ends a document; raises `UserError` for a tokenizer that has none."""
        for token in (*END_OF_TEXT_NAMES, token_text(self.config.get("eos_token")), *self.special_tokens):
            if token is not None and token in self.special_tokens:
                return self.special_tokens[token]
        raise UserError("the tokenizer has no special token to end a document; train it with <|endoftext|>")

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the file writes it (`Ġthe`), or None."""
        return self._ids.get(token)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id as the file writes it, or None."""
        return self._tokens.get(id)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that tokenizer_config.json names as the end of a text (of a chat model, of a turn); None without one."""
        token = token_text(self.config.get("eos_token"))
        return None if token is None else self._ids.get(token)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """How the model writes a conversation; None for one that has not been tuned to."""
        return template_of(self.config)

    def get_chat_template(self, with_tools: bool = False) -> ChatTemplate:
        """The same, or that for conversations with tools; raises `UserError` where there is none."""
        template = template_of(self.config, with_tools) if with_tools else self.chat_template
        if template is None:
            raise UserError(NO_TEMPLATE)
        return template

    def ensure_chat_template(self) -> None:
        """Take our own template where the files have none, if the tokenizer has its tokens."""
        if self.chat_template is None and {"<|im_start|>", "<|im_end|>"} <= set(self.special_tokens):
            self.config["chat_template"] = CHAT_TEMPLATE
            del self.chat_template

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = False,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """The text of a conversation in the model's own template, or its ids: arguments and result as in transformers.

        sanitize_control_tokens: control tokens inside of messages are text.  return_dict: the library's default; here there are ids only.
        Raises `UserError` where there is no template, and for a conversation that it refuses.
        """
        assert not return_dict, "pass return_dict=False: a list of ids"
        template = self.get_chat_template(with_tools=tools is not None)
        control = self._control_tokens(template) if sanitize_control_tokens else []
        messages, tools, variables = (marked(part, control) for part in (messages, tools, variables))
        text = template.render(messages, add_generation_prompt, tools, **variables)
        if not tokenize:
            return text
        ids: list[int] = []
        for piece, typed in split_marked(text, control):
            encode = self._encode_after_text if ids else self.encode
            piece_ids = encode(piece, allow_added=not typed)
            if typed and self._ids.get(piece) in piece_ids:
                raise UserError(
                    f"{piece} cannot be written as text with this tokenizer; remove it from the message"
                )
            ids += piece_ids
        return ids

    def _control_tokens(self, template: ChatTemplate) -> list[str]:
        """What users may not type: the special tokens, and added ones that the files name or the template writes."""
        added, named = self._added.by_content.values(), self.config.get("chat_control_tokens")
        if named is None:
            literals = template.literals
            named = [
                token.content for token in added if token.content in literals and not token.content.isspace()
            ]
        return [token.content for token in added if token.special or token.content in named]

    def _encode_after_text(self, text: str, allow_added: bool) -> list[int]:
        """The ids of a text in the middle of another: after a line break, which is taken away again, no tokenizer puts a space before it."""
        line = self.encode("\n")
        ids = self.encode(f"\n{text}", allow_added=allow_added)
        return ids[len(line) :] if ids[: len(line)] == line else self.encode(text, allow_added=allow_added)

    def encode(
        self,
        text: str,
        allow_special: bool = True,
        add_special_tokens: bool = False,
        *,
        allow_added: bool = True,
    ) -> list[int]:
        """The ids of a text.

        With `allow_special=False` a special token typed in the text is text like any other; with `allow_added=False`, every added
        one. `add_special_tokens` adds what the file puts around each text (nothing in ours; `<|begin_of_text|>` in Llama-3's).
        Raises `UserError` for a text that is no Unicode text (lone surrogates).
        """
        ids = np.frombuffer(self._encode_packed(text, allow_special, allow_added), np.uint32).tolist()
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def encode_batch(
        self, texts: Iterable[str], allow_special: bool = True, add_special_tokens: bool = False
    ) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text, allow_special, add_special_tokens) for text in texts]

    def encode_to_array(
        self, texts: Iterable[str], end_of_text: bool = False, allow_special: bool = False
    ) -> UInt32[np.ndarray, " T"]:
        """The ids of all texts in one array, for token files; each text followed by `end_of_text_id` with `end_of_text`.

        Special tokens written in a document are text by default: only the end of a document ends it.
        """
        before, after = _pack(self._before), _pack(self._after)
        after += _pack([self.end_of_text_id]) if end_of_text else b""
        packed = (before + self._encode_packed(text, allow_special) + after for text in texts)
        return np.frombuffer(b"".join(packed), np.uint32)

    def _encode_packed(self, text: str, allow_special: bool, allow_added: bool = True) -> bytes:
        """The ids as 32-bit numbers in a row."""
        pre_tokenizer = self._pre_tokenizer
        pieces: Sequence[Piece] = self._added.split(text, allow_special, allow_added)
        packed, split = [], pre_tokenizer.split_first
        try:
            for piece in pieces:
                if isinstance(piece, int):
                    packed.append(piece.to_bytes(4, sys.byteorder))
                else:
                    parts = cut_long_text(piece) if pre_tokenizer.cuts_at_words else (piece,)
                    packed += [self._words.join(split(part)) for part in parts]
                split = pre_tokenizer.split
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text holds the lone surrogate {error.object[error.start]!r}, which is half a"
                " character and no Unicode text; read the text with the right encoding, or remove it"
            ) from error
        return b"".join(packed)

    def byte_lengths_in(self, text: str, ids: Sequence[int]) -> Int64[np.ndarray, " T"]:
        """How many bytes of `text` each of its ids stands for; they add up to the bytes of the text.

        A space that only the tokenizer put before a word has no byte. Raises `UserError` where the tokens do not spell the text.
        """
        return lengths_in(text.encode("utf-8"), [self._bytes.get(id, b"") for id in ids])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of all tokens; ids that the tokenizer does not know are left out."""
        known = self._bytes
        return b"".join([known[id] for id in ids if id in known])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 (half a character) become U+FFFD, as in `tokenizers`."""
        if skip_special_tokens:
            ids = [id for id in ids if id not in self._skipped]
        if self._decoder.is_byte_level:
            return self.decode_bytes(ids).decode("utf-8", errors="replace")
        return self._decoder.text([self._tokens[id] for id in ids if id in self._tokens])

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer.from_pretrained` loads."""
        write_tokenizer(folder, self.definition, self.config)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """From a folder, a `tokenizer.json`, or a `vocab.json` beside its `merges.txt`.

        Raises `UserError` where it is missing, damaged or no BPE that we apply exactly.
        """
        definition, config = read_tokenizer(path)
        try:
            return cls(definition, config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{path} is no valid tokenizer.json ({error!r}); it is damaged: copy or train it again"
            ) from error


def _pack(ids: Sequence[int]) -> bytes:
    """Ids as 32-bit numbers in a row."""
    return np.asarray(ids, np.uint32).tobytes()


class _WordMemory(dict[str, bytes]):
    """The packed ids of each pre-token seen so far."""

    LARGEST = 1 << 18  # words remembered, so that memory stays bounded however long the corpus (about 40 MB)
    LONGEST = 256  # characters of a word worth remembering
    CHARACTERS = 1 << 23  # of all of them together: without a pre-tokenizer, a word is a whole text

    def __init__(self, encoder: WordEncoder) -> None:
        super().__init__()
        self._encoder = encoder
        self._characters = 0

    def join(self, words: list[str]) -> bytes:
        """The packed ids of a text's words, in a row; words that are new are encoded together."""
        try:
            return b"".join(map(self.__getitem__, words))
        except KeyError:
            new = list({word: None for word in words if word not in self})
        encoded = {word: _pack(ids) for word, ids in zip(new, self._encoder.encode(new), strict=True)}
        packed = b"".join([encoded[word] if word in encoded else self[word] for word in words])
        if self._characters < self.CHARACTERS:
            short = [word for word in new if len(word) <= self.LONGEST][: self.LARGEST - len(self)]
            self.update((word, encoded[word]) for word in short)
            self._characters += sum(map(len, short))
        return packed
