"""Settings are read strictly: what is wrong is named, and what would be right."""

from __future__ import annotations

from typing import Literal

import pytest
from msgspec import Struct

from node.errors import ConfigError
from node.strict import from_toml


class _Inner(Struct, frozen=True, forbid_unknown_fields=True):
    rule: Literal["mean", "median"] = "mean"
    count: int = 0
    kinds: tuple[Literal["one", "two"], ...] = ()
    maybe: Literal["some"] | None = None
    times: tuple[float, ...] = ()


class _Outer(Struct, frozen=True, forbid_unknown_fields=True):
    inner: _Inner = _Inner()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('inner = { rule = "meen" }', "t: key 'inner.rule': unknown value 'meen'; did you mean"),
        ('inner = { rule = "x" }', "unknown value 'x'; valid are mean, median"),
        ('inner = { kinds = ["one", "tow"] }', "unknown value 'tow'; did you mean 'two'"),
        ('inner = { maybe = "sone" }', "key 'inner.maybe': unknown value 'sone'; did you mean"),
        ("inner = { rule = 3 }", "expected `str`, got `int`, found 3"),
        ('inner = { count = "x" }', "expected `int`, got `str`, found 'x'"),
        ('inner = { ruel = "mean" }', "unknown key 'inner.ruel'; did you mean 'rule'"),
        ("inner = { times = [1.5, inf] }", "t: key 'inner.times[1]': found inf, expected a finite"),
        ("inner = { times = [-inf] }", "key 'inner.times[0]': found -inf, expected a finite"),
        ("inner = { times = [nan] }", "key 'inner.times[0]': found nan, expected a finite"),
        ("inner = ", "t: not valid TOML"),
    ],
)
def test_the_error_names_key_found_and_right(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_toml(text, _Outer, source="t")
    assert said in str(error.value)
