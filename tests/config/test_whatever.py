"""Whatever is written: a configuration that the balancer takes, or a refusal in words. Never anything else."""

from __future__ import annotations

import random
from typing import Any, get_origin

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unjam.config import Config, ConfigError, parse
from unjam.config.keys import model_of
from unjam.config.services import Service
from unjam.core.balancer import Balancer

#: One of them fits nearly every key.
WORDS = """0 1 8 -1 0.5 75% 101% 1s 60s 1h 60 10k 2M 1GiB off true memory redis://h:6379 /a /a/b /healthz a b v1 us
basic session tenant x-session-id h *.h 127.0.0.1:1 0.0.0.0:2 10.0.0.0/8 unix:/a http://h:1 https://h http://h/p random openai
body json stdout ${A} ${B} sha256:0 * 503 0123456789abcdef"""
ODD = ["", "\n", "\x1b[0m", "ü", "1\r\nx: y", "sha256:" + "0" * 64]
SCALARS = st.sampled_from([*WORDS.split(), *ODD])
SERVICE = {"versions": {"v1": {"endpoints": ["http://h:1"]}}}


def value_of(info: FieldInfo) -> st.SearchStrategy[Any]:
    """Mostly of the shape that belongs there."""
    inner = model_of(info.annotation)
    value = SCALARS if inner is None else st.deferred(lambda: mapping_of(inner))
    if get_origin(info.annotation) is dict:
        value = st.dictionaries(st.sampled_from(["a", "b", "v1", "us", "x y"]), value, min_size=1, max_size=2)
    elif inner is None or get_origin(info.annotation) is tuple:
        value = st.one_of(value, st.lists(value, max_size=2))
    return st.one_of(value, value, value, SCALARS)


def mapping_of(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """A few keys of one model, those it needs among them."""
    fields = {name: value_of(info) for name, info in model.model_fields.items()}
    required = {name: fields[name] for name, info in model.model_fields.items() if info.is_required()}
    few = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    return few.flatmap(lambda names: st.fixed_dictionaries({**required, **{name: fields[name] for name in names}}))


def judge(data: Any) -> None:
    try:
        config = parse(yaml.safe_dump(data, allow_unicode=True), {"A": "1"})
    except ConfigError as error:
        problems = error.problems
    else:
        Balancer(random.Random(0)).apply(config.topology(), 0.0)
        problems = list(config.warnings)
    for problem in problems:
        assert problem.message
        assert problem.line >= 1
        assert str(problem).isprintable()


@settings(max_examples=200, deadline=None)
@given(mapping_of(Config))
def test_whatever_is_written(data: Any) -> None:
    judge(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_one_key_is(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(set(Config.model_fields) - {"services"})))
    judge({key: data.draw(value_of(Config.model_fields[key])), "services": {"a": SERVICE}})


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_whatever_one_key_of_a_service_is(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(Service.model_fields)))
    judge({"services": {"a": {**SERVICE, key: data.draw(value_of(Service.model_fields[key]))}}})
