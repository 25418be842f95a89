"""Jinja for chat templates, which come from strangers: no files, no modules, none of Python's own attributes.

The same functions and filters as in transformers, which templates are written for: `tojson`, `raise_exception`, `strftime_now`, `namespace`,
`{% break %}`, and `{% generation %}` around what the assistant says.

    uv run python -c "from shared_data.tokenizer.jinja_sandbox import sandbox; print(sandbox().from_string('{{ [1, 2] | tojson }}').render())"
"""

import json
from datetime import datetime
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Marks around what the assistant says: halves of characters, which no text can hold.
GENERATION = ("\ud800", "\ud801")


def sandbox() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes HTML
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: marks around what stands between."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{GENERATION[0]}{caller()}{GENERATION[1]}"


def is_generation(node: jinja2.nodes.CallBlock) -> bool:
    """Whether a parsed block is `{% generation %}`."""
    function = node.call.node
    return (
        isinstance(function, jinja2.nodes.ExtensionAttribute)
        and function.identifier == _Generation.identifier
    )


class _Dict:
    """`dict(…)` in a template, without what else hangs on Python's own."""

    def __call__(self, *args: Any, **entries: Any) -> dict[Any, Any]:
        return dict(*args, **entries)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(…)` in a template; names that begin with an underscore belong to Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.TemplateError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)
