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
from unjam.config.reference import kind_of
from unjam.config.services import Service
from unjam.core.balancer import Balancer

#: What fits, by the word of a kind.
GOOD = {
    "duration": "1s 60s 1h 250ms",
    "size": "64KiB 1GiB 16GiB",
    "share": "5% 0.5 100%",
    "count": "1 10 10k",
    "number": "0.5 1 8",
    "true or false": "true off",
    "text": "a b",
    "name": "a b us",
    "header name": "x-session-id x-a",
    "cookie name": "sid",
    "host": "h *.h h.example.com",
    "path": "/a /a/b /healthz",
    "metric name": "queue vllm:num_requests_waiting",
    "vllm, sglang or tgi": "vllm sglang tgi",
    "port": "9100 443",
    "file": "/nowhere.pem",
    "token": "0123456789abcdef",
    "sha256:...": "sha256:" + "0" * 64,
    "origin": "https://h *",
    "URL": "http://h:1 https://h unix:/a",
    "address": "127.0.0.1:1 127.0.0.1:2 unix:/a",
    "network": "10.0.0.0/8 192.0.2.1",
    "policy": "random peak_ewma",
    "none or body": "none body",
    "probes, always or never": "probes never",
    "fast or heavy": "fast heavy",
    "cusum or window": "cusum window",
    "share or learn": "2% learn",
    "regular expression": "a+ (a",
    "module:function": "m:f m.n:f.g",
    "http URL": "http://h/verdict https://h",
    "json or openai": "json openai",
    "session, tenant or a header name": "session tenant x-a",
    "status": "503 429",
    "off, stdout, stderr or a file": "off stdout",
    "auto, json or console": "auto json",
    "push or pull": "push pull",
    "fail or restart": "fail restart",
    "client or worker": "client worker",
    "event": "breaker drain",
}
ODD = [
    "",
    "0",
    "-1",
    "75",
    "101%",
    "60",
    "off",
    "ü",
    "\n",
    "\x1b[0m",
    "1\r\nx: y",
    "${A}",
    "${B}",
    "a/b",
    "*",
    "http://h/p",
]
SERVICE = {"versions": {"v1": {"endpoints": ["http://h:1"]}}}


def value_of(info: FieldInfo) -> st.SearchStrategy[Any]:
    """Mostly of the shape that belongs there."""
    inner = model_of(info.annotation)
    kind = kind_of(info)
    if inner is not None:
        value = st.deferred(lambda: mapping_of(inner))
    else:
        assert kind is not None
        value = st.sampled_from(GOOD[kind.word].split())
    if get_origin(info.annotation) is dict:
        value = st.dictionaries(st.sampled_from(["a", "b", "us", "x-a"]), value, min_size=1, max_size=2)
    elif get_origin(info.annotation) is tuple:
        value = st.one_of(value, st.lists(value, min_size=1, max_size=2))
    odd = st.one_of(st.sampled_from(ODD), st.lists(st.sampled_from(ODD), max_size=2))
    return st.integers(0, 19).flatmap(lambda dice: odd if dice == 0 else value)


def mapping_of(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """A few keys of one model, those it needs among them."""
    fields = {name: value_of(info) for name, info in model.model_fields.items()}
    required = {name: fields[name] for name, info in model.model_fields.items() if info.is_required()}
    few = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True)
    return few.flatmap(lambda names: st.fixed_dictionaries({**required, **{name: fields[name] for name in names}}))


def judge(data: Any) -> None:
    try:
        config = parse(
            yaml.dump(data, allow_unicode=True, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)), {"A": "1"}
        )
    except ConfigError as error:
        problems = error.problems
    else:
        Balancer(random.Random(0)).apply(config.topology(), 0.0)
        problems = list(config.warnings)
    for problem in problems:
        assert problem.message
        assert problem.line >= 1
        assert str(problem).isprintable()


@settings(max_examples=100, deadline=None)
@given(mapping_of(Config))
def test_whatever_is_written(data: Any) -> None:
    judge(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_one_key_is(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(set(Config.model_fields) - {"services"})))
    judge({key: data.draw(value_of(Config.model_fields[key])), "services": {"a": SERVICE}})


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_whatever_one_key_of_a_service_is(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(Service.model_fields)))
    judge({"services": {"a": {**SERVICE, key: data.draw(value_of(Service.model_fields[key]))}}})
