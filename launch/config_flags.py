"""Flags made from a dataclass of settings: one per field, named by its place, ``--ppo.learning_rate``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from absl import flags

from qos_jax.errors import InputError, input_error

_Config = TypeVar("_Config")


def define_config_flags(
    default: Any, module: str, flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, flags.FlagHolder]:
    """Define a flag per field of a configuration, and of those in it; return them by dotted name.

    None has a value unless it is given, so that defaults may come from elsewhere. The help is the comment
    behind the field, and the default.

    Args:
      default: a dataclass, whose values the help tells.
      module: whose flags they are, for ``--help``.
      flag_values: where to define them.
    """
    holders: dict[str, flags.FlagHolder] = {}
    for name, (kind, value, comment) in _leaves(default).items():
        text = f"{comment} (default: {_text(value)})"
        where: dict[str, Any] = {"flag_values": flag_values, "module_name": module}
        if kind is bool:
            holders[name] = flags.DEFINE_bool(name, None, text, **where)
        else:
            holders[name] = flags.DEFINE(_Parser(kind), name, None, text, **where)
    return holders


def given(holders: Mapping[str, flags.FlagHolder]) -> dict[str, Any]:
    """Return the values of those flags that were given, by dotted name."""
    return {name: holder.value for name, holder in holders.items() if holder.present}


def replaced(config: _Config, changes: Mapping[str, Any], prefix: str = "") -> _Config:
    """Return ``config`` with the changes made, by dotted name; those of a group all at once.

    Raises:
      InputError: what the dataclass refuses, told with the name of the group.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    fields = {
        head: group[""] if "" in group else replaced(getattr(config, head), group, f"{prefix}{head}.")
        for head, group in groups.items()
    }
    group = prefix.removesuffix(".")
    try:
        # That it is a dataclass is not expressible for a TypeVar.
        return dataclasses.replace(typing.cast(Any, config), **fields)
    except InputError as error:
        raise (InputError(f"{group}, {error}") if group else error) from None
    except ValueError as error:
        raise input_error(str(error), file=group or None, remedy="see --help") from None


class _Parser(flags.ArgumentParser):
    """Reads one value of a field's type; ``none`` where the type allows it, tuples with commas."""

    def __init__(self, kind: Any) -> None:
        options = typing.get_args(kind) if _is_union(kind) else (kind,)
        self._choices: tuple[str, ...] = ()
        if typing.get_origin(kind) is typing.Literal:
            self._choices, options = typing.get_args(kind), (str,)
        self._optional = type(None) in options
        (self._kind,) = (option for option in options if option is not type(None))
        self._item, self._length = self._kind, None
        if typing.get_origin(self._kind) is tuple:
            items = typing.get_args(self._kind)
            self._item, self._length = items[0], None if items[-1] is Ellipsis else len(items)
        names = {int: "a whole number", float: "a number", str: "a string"}
        text = " or ".join(self._choices) or names[self._item]
        if self._item is not self._kind:
            kind = "names" if self._item is str else "numbers"
            text = f"{self._length or ''} {kind}, separated by commas".strip()
        self.syntactic_help = f"{text}, or none" if self._optional else text

    def parse(self, argument: str) -> Any:
        text = argument.strip()
        if self._optional and text.lower() == "none":
            return None
        if self._item is self._kind:
            return self._read(text)
        values = tuple(self._read(part) for part in text.split(",")) if text else ()
        if self._length not in (None, len(values)):
            raise ValueError(f"{text!r} is not {self.syntactic_help}")
        return values

    def flag_type(self) -> str:
        return self.syntactic_help

    def _read(self, text: str) -> Any:
        try:
            if self._choices and text not in self._choices:
                raise ValueError
            return self._item(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {self.syntactic_help}") from None


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _leaves(config: Any, prefix: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Return type, value and comment of every field that is no dataclass itself, by dotted name."""
    kinds, comments = typing.get_type_hints(type(config)), field_comments(type(config))
    found: dict[str, tuple[Any, Any, str]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = (kinds[field.name], value, comments.get(field.name, ""))
    return found


def field_comments(kind: type) -> dict[str, str]:
    """Return the comment behind each field of a dataclass, where there is one."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: by_line[node.lineno].lstrip("# ")
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.lineno in by_line
    }


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    return "none" if value is None else str(value)
