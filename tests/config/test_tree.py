"""YAML with lines: what is read, what is refused, what cannot blow up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.config.tree import ConfigError, Problem, expand, line_of, read_tree, to_data, written


def data(text: str, **env: str) -> Any:
    problems: list[Problem] = []
    tree = read_tree(text, problems)
    plain = to_data(tree, env, problems)
    if problems:
        raise ConfigError(problems)
    return plain


def refused(text: str, **env: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        data(text, **env)
    return caught.value.problems


def test_scalars_stay_as_they_are_written() -> None:
    assert data("{a: no, b: 1.10, c: 0x10, d: 1:30, e: 'x', f: 2026-01-01, g: on}") == {
        "a": "no",
        "b": "1.10",
        "c": "0x10",
        "d": "1:30",
        "e": "x",
        "f": "2026-01-01",
        "g": "on",
    }


def test_a_key_given_twice_names_both_lines() -> None:
    (problem,) = refused("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    assert (problem.line, problem.key) == (5, "b.c")
    assert "line 3" in problem.fix


@pytest.mark.parametrize("text", ["a:", "a: ~", "a: null", "- 1\n-\n"])
def test_an_empty_value_is_refused(text: str) -> None:
    (problem,) = refused(text)
    assert "no value" in problem.message


def test_an_empty_string_that_is_meant_stays() -> None:
    assert data("a: ''") == {"a": ""}


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [x]", "a: !!int 3", "a: !env X"])
def test_tags_are_refused(text: str) -> None:
    (problem,) = refused(text)
    assert (problem.line, problem.key, problem.message) == (1, "a", "has a YAML tag")


def test_anchors_and_merge_keys() -> None:
    text = "base: &base {x: 1, y: 2}\na: {<<: *base, y: 3}\nb: {<<: [*base, {z: 4}]}\nc: *base\n"
    assert data(text) == {
        "base": {"x": "1", "y": "2"},
        "a": {"x": "1", "y": "3"},
        "b": {"x": "1", "y": "2", "z": "4"},
        "c": {"x": "1", "y": "2"},
    }


@pytest.mark.parametrize(
    ("text", "message"), [("a: *x", "not defined"), ("a: &x [*x]", "itself"), ("a: &x 1\n<<: *x", "merge")]
)
def test_bad_anchors(text: str, message: str) -> None:
    assert message in refused(text)[0].message


def test_a_billion_laughs_are_not_laughed() -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "expand to too much" in refused("\n".join(lines))[0].message


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 5000 + "]" * 5000, "{a: " * 5000, "- " * 5000])
def test_deep_nesting_is_refused(text: str) -> None:
    assert refused(text)[0].message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2\n", 2),
        ("a: 1\n b: 2\n", 2),
        ('a: "x\n', 2),
        ("a: 1\n\tb: 2\n", 2),
        ("a: b: c\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
    ],
)
def test_what_is_not_yaml_names_the_line(text: str, line: int) -> None:
    (problem,) = refused(text)
    assert problem.line == line
    assert problem.fix


def test_an_unquoted_variable_in_braces_is_told_to_be_quoted() -> None:
    (problem,) = refused("a: {b: ${X}, c: d}\n", X="1")
    assert problem.line == 1
    assert '"${NAME}"' in problem.fix


@pytest.mark.parametrize("text", ["a: \x00", "a: \x1b[31m", "a: '\x07'"])
def test_raw_control_characters_are_refused(text: str) -> None:
    assert "does not allow" in refused("ok: 1\n" + text)[0].message
    assert refused("ok: 1\n" + text)[0].line == 2


@pytest.mark.parametrize("text", [r'"x\r\ny"', r'"\e[31m"', r'"\0"', r'"\u2028"'])
def test_escaped_control_characters_are_refused(text: str) -> None:
    (problem,) = refused(f"a: {text}")
    assert problem.message == "contains a control character"


def test_a_key_that_would_steer_the_terminal_is_refused() -> None:
    (problem,) = refused('a: {"\\e[31mred": 1}')
    assert (problem.line, problem.key) == (1, "a")
    assert str(problem).isprintable()


def test_a_key_that_is_not_text_is_refused() -> None:
    assert "not text" in refused("? [a, b]\n: 1\n")[0].message


def test_variables() -> None:
    env = {"A": "one", "EMPTY": ""}
    assert expand("x-${A}-y", env) == "x-one-y"
    assert expand("${B:-two}", env) == "two"
    assert expand("${EMPTY:-three}", env) == "three"
    assert expand("${EMPTY}", env) == ""
    assert expand("${B:-}", env) == ""
    assert expand("$${A} $A $", env) == "${A} $A $"


def test_a_variable_cannot_add_structure() -> None:
    assert data("a: ${X}", X="{b: [1, 2]}\nc: 3\r".replace("\r", "")) == {"a": "{b: [1, 2]}\nc: 3"}


def test_a_missing_variable_names_the_line_and_the_variable() -> None:
    (problem,) = refused("a: 1\nb: [x, 'y ${NOT_SET}']\n")
    assert (problem.line, problem.key) == (2, "b[1]")
    assert "NOT_SET" in problem.message
    assert "${NOT_SET:-value}" in problem.fix


@pytest.mark.parametrize("text", ["${}", "${1A}", "${A", "${A B}", "${A:+x}"])
def test_a_misspelt_variable_is_refused(text: str) -> None:
    (problem,) = refused(f"a: '{text}'", A="x")
    assert "names no variable" in problem.message


def test_lines_of_keys_values_and_what_is_missing() -> None:
    root = read_tree("a:\n  b:\n    - x\n    - {c: 1}\n  d: >\n    text\n", [])
    assert line_of(root, ("a",)) == 1
    assert line_of(root, ("a", "b", 1)) == 4
    assert line_of(root, ("a", "b", 1, "c")) == 4
    assert line_of(root, ("a", "b", 1, "missing")) == 4
    assert line_of(root, ("a", "missing")) == 1
    assert line_of(root, ("missing",)) == 1


def test_paths_are_shown_as_they_are_written() -> None:
    root = read_tree("listen: x\nmatch: {path: y}\nlist: [{a: 1}]\n", [])
    assert written(root, ("listen", 0, "address")) == ("listen",)
    assert written(root, ("match", 0, "path")) == ("match", "path")
    assert written(root, ("match", 0, "missing")) == ("match", "missing")
    assert written(root, ("list", 0, "a")) == ("list", 0, "a")
    assert written(root, ("missing", "a")) == ("missing", "a")


def test_problems_come_in_the_order_of_the_file_with_its_name() -> None:
    error = ConfigError([Problem(9, "b", "is bad", "Mend it."), Problem(2, "a", "is worse", "")], "x.yaml")
    assert list(error.lines()) == ["x.yaml:2: a: is worse.", "x.yaml:9: b: is bad. Mend it."]


@given(st.text(max_size=200))
def test_no_text_makes_it_fail_in_another_way(text: str) -> None:
    try:
        data(text)
    except ConfigError as error:
        assert all(problem.line >= 1 for problem in error.problems)  # noqa: PT017


@given(st.text(alphabet="ab:[]{}-&*<>!|'\"\n \t#?,${}", max_size=120))
def test_no_yaml_makes_it_fail_in_another_way(text: str) -> None:
    try:
        data(text)
    except ConfigError as error:
        assert all(problem.line >= 1 for problem in error.problems)  # noqa: PT017
