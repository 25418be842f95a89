"""`tokenizer_config.json` and the files beside it: special tokens by name, added tokens, chat templates.

Versions of transformers have kept them in different places. What several files say is decided as transformers 5 does:

- special tokens: special_tokens_map.json replaces what tokenizer_config.json says, unless that has an `added_tokens_decoder`;
- added tokens: `added_tokens_decoder` alone, if there is one; else added_tokens.json, then those of tokenizer.json;
- ids: those that the files give to added tokens only order them. A token of the vocabulary keeps its id, any other gets the next one;
- chat templates: chat_template.jinja and additional_chat_templates/*.jinja replace the `chat_template` of tokenizer_config.json.

Level 1: `AutoTokenizer.from_pretrained`.

    uv run python -c "from shared_data.tokenizer.tokenizer_config import *; print(added_tokens({'a': 0}, [], {'eos_token': '</s>'}, {}))"
"""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.foreign_json import ForeignJson
from shared_data.tokenizer.added_tokens import AddedToken
from shared_data.tokenizer.tokenizer_classes import special_tokens_of_class

Definition = dict[str, Any]


class _Token(ForeignJson):
    content: str


class _NamedTemplate(ForeignJson):
    name: str
    template: str


class SpecialTokensMap(ForeignJson):
    """`special_tokens_map.json`: each token a text, or an object with its options."""

    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    pad_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    mask_token: str | _Token | None = None
    additional_special_tokens: list[str | _Token] | dict[str, str | _Token] | None = None
    extra_special_tokens: list[str | _Token] | dict[str, str | _Token] | None = None


class TokenizerConfig(SpecialTokensMap):
    """`tokenizer_config.json`: the same, the class, added tokens by their ids, and the chat template or several by name."""

    tokenizer_class: str | None = None
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], _Token] | None = None
    chat_template: str | list[_NamedTemplate] | dict[str, str] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None


# The names that every tokenizer of transformers has, in the order in which it adds them.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NO_ID = -1  # of a token whose id is not known yet


def read_config(folder: Path) -> Definition:
    """The content of tokenizer_config.json, completed by special_tokens_map.json and the files of chat templates.

    `chat_template` is a text, or a dictionary of texts by name where a folder has several.
    """
    path, names = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config: Definition = read_json(path) if path.is_file() else {}
    TokenizerConfig.read(config, path)
    if names.is_file() and "added_tokens_decoder" not in config:
        named: Definition = read_json(names)
        SpecialTokensMap.read(named, names)
        for name, value in named.items():
            extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
            if name == "additional_special_tokens" and extra:
                continue
            if name == "extra_special_tokens" and isinstance(value, list) and not isinstance(extra, dict):
                value = [*(extra or []), *(token for token in value if token not in (extra or []))]
            if isinstance(value, dict) and name != "extra_special_tokens":
                value = value | {"__type": "AddedToken", "special": True}
            config[name] = value
    return config | _chat_templates(folder, config.get("chat_template"))


def _chat_templates(folder: Path, configured: Any) -> Definition:
    """The chat template of a folder under its key, or nothing where it has none."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    templates: Any = {
        name: file.read_text(encoding="utf-8", errors="replace")
        for name, file in files.items()
        if file.is_file()
    }
    if not templates and configured is None:
        return {}
    templates = templates or configured
    if isinstance(templates, list):
        templates = {template["name"]: template["template"] for template in templates}
    if isinstance(templates, dict) and set(templates) == {"default"}:
        templates = templates["default"]
    return {"chat_template": templates}


def token_text(value: Any) -> str | None:
    """The text of a special token, which a file has as a text or as an object; None where it is neither."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def added_tokens(
    vocab: dict[str, int],
    in_file: list[AddedToken],
    config: Definition,
    in_added_tokens_json: dict[str, int],
    class_name: str | None = None,
    where: Path | str = "tokenizer_config.json",
) -> list[AddedToken]:
    """The added tokens that a folder's files make together, by id.

    in_file: those of tokenizer.json. class_name: the class that the folder is built as, if its tokenizer.json is not taken as it is.
    """
    named, extra = special_tokens(config, class_name, where)
    declared = _declared(config, in_file, in_added_tokens_json, where)
    made = _Numbering(vocab)
    if class_name is None:
        made.add(in_file)
    known = {token.content for token in [*made.by_id.values(), *declared]}
    new = declared + [token for token in [*named.values(), *extra] if token.content not in known]
    names = {token.content for token in named.values()}
    made.add(replace(token, special=True) if token.content in names else token for token in new)
    if class_name == "Qwen2Tokenizer":  # adds its special tokens once more, without options
        made.add(_plain(token.content) for token in [*named.values(), *extra])
    _check_different(vocab, made.by_id, where)
    return [replace(token, special=token.content in made.special) for _, token in sorted(made.by_id.items())]


def _check_different(vocab: dict[str, int], added: dict[int, AddedToken], where: Path | str) -> None:
    """A vocabulary with holes has less tokens than its largest id says, and the next id is taken."""
    for token, id in vocab.items():
        if id in added and added[id].content != token:
            raise UserError(
                f"{where} adds the token {added[id].content!r:.40}, whose id {id} is that of {token!r:.40}; number the vocabulary from 0"
            )


def special_tokens(
    config: Definition, class_name: str | None, where: Path | str
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """The special tokens that a configuration names (`eos_token` …), and those that it lists without names."""
    defaults = special_tokens_of_class(class_name) if class_name else {}
    values = {name: config.get(name, defaults.get(name)) for name in NAMED}
    values |= {
        name: value
        for name, value in config.items()
        if name.endswith("_token") and name not in NAMED and isinstance(value, str | dict)
    }
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(listed, dict):  # names of a model's own, such as {"image_token": "<image>"}
        values, listed = values | listed, []
    named = {name: _token(value, where) for name, value in values.items() if value is not None}
    return named, [_token(value, where) for value in listed]


def _declared(
    config: Definition, in_file: list[AddedToken], in_json: dict[str, int], where: Path | str
) -> list[AddedToken]:
    """The tokens that the files declare with an id, in the order of these ids."""
    declared: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        listed = config["added_tokens_decoder"] or {}
        declared = {int(id): _token(token, where) for id, token in listed.items()}
    else:
        named, extra = special_tokens(config, None, where)
        special = {token.content for token in [*named.values(), *extra]}
        for token, id in in_json.items():
            declared[id] = AddedToken(
                _NO_ID, token, normalized=token not in special, special=token in special
            )
        declared |= {token.id: replace(token, id=_NO_ID) for token in in_file}
    return [declared[id] for id in sorted(declared)]


def _plain(content: str) -> AddedToken:
    return AddedToken(_NO_ID, content, normalized=False, special=True)


def _token(value: Any, where: Path | str) -> AddedToken:
    """A token as a configuration has it, a text or the fields of an added token; its id is not known yet."""
    if isinstance(value, str):
        return _plain(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise UserError(f"{where} has the special token {value!r}, which is no text; correct it")
    flags = {
        field.name: bool(value[field.name])
        for field in fields(AddedToken)
        if field.name in value and field.name not in ("id", "content")
    }
    special = flags.get("special", False)
    return AddedToken(_NO_ID, value["content"], **{"normalized": not special, "special": False} | flags)


class _Numbering:
    """Gives ids to added tokens as `tokenizers` does, in the order in which they come."""

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab
        self._ids: dict[str, int] = {}
        self.by_id: dict[int, AddedToken] = {}
        self.special: set[str] = set()  # once special, always special

    def add(self, tokens: Iterable[AddedToken]) -> None:
        """Number new tokens; one that is there already takes the options that it has now."""
        for token in tokens:
            if not token.content:
                continue
            if token.special:
                self.special.add(token.content)
            id = self._ids.get(token.content, self._vocab.get(token.content))
            if id is None:
                id = max(len(self._vocab), max(self._ids.values(), default=-1) + 1)
            self._ids[token.content] = id
            self.by_id[id] = replace(token, id=id)
