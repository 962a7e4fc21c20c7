"""`knobs`: every argument, its default and its comment, a base's below"""
import inspect
from xml.etree import ElementTree

import pytest

from labelkit.core.technique import registry
from labelkit.data.sets import digits
from labelkit.lesson import knobs
from labelkit.pseudo.fixmatch import FixMatch
import labelkit.all  # noqa: F401  (registers them)


@pytest.mark.parametrize("slug", sorted(registry))
def test_every_technique_has_a_whole_table(slug):
    cls = registry[slug].cls
    table = knobs(cls)
    assert [k.name for k in table] == list(cls.parameters())
    silent = [k.name for k in table if not k.meaning]
    assert not silent, "a comment is missing behind these"
    ElementTree.fromstring(table._repr_html_())
    assert table.markdown().count("\n") >= len(table)+1


def test_own_ones_first_then_the_bases():
    owners = [k.owner for k in knobs(FixMatch)]
    assert list(dict.fromkeys(owners)) == ["FixMatch", "PseudoLabel", "LabelCallback"]
    assert owners == sorted(owners, key=owners.index)
    assert "of <code>PseudoLabel</code>" in knobs(FixMatch)._repr_html_()
    assert "of PseudoLabel" in knobs(FixMatch).markdown()


def test_text_is_text_and_defaults_are_said():
    def f(
        a,                    # this | that <b>
        b:float=.5,           # half
        c=len,                # counts
        *more, d="x<y", **kwargs # of others
    ): pass
    table = {k.name: k for k in knobs(f)}
    assert list(table) == ["a", "b", "c", "d"]
    assert table["a"].default == "must be given"
    assert table["b"].default == "0.5"
    text = knobs(f)._repr_html_()
    assert "this | that &lt;b&gt;" in text and "'x&lt;y'" in text.replace("&#x27;", "'")
    assert "this \\| that &lt;b&gt;" in knobs(f).markdown()


def test_limits_are_said():
    said = {k.name: k.meaning for k in knobs(registry["fixmatch"].cls)}
    assert said["threshold"].endswith("(0 to 1)")
    assert said["weight"].endswith("(from 0)")


def test_functions_too():
    assert [k.name for k in knobs(digits)] == list(inspect.signature(digits).parameters)[:-1]


def test_types_are_said_and_source_is_not_needed():
    typed = {}
    exec("def f(a, b:float=.5, c:'list[int]'=None): pass", typed)
    said = [(k.name, k.default, k.meaning, k.type) for k in knobs(typed["f"])]
    assert said == [("a", "must be given", "", ""), ("b", "0.5", "", "float"),
                    ("c", "None", "", "list[int]")]


def test_defaults_are_written_short_and_code_is_code():
    def f(
        a=2/3,          # two of three
        b=(.75, 4/3),   # `low`, then `high`
        c=1e-6,         # one ` alone
        d=(),           # none
        e=.999999,      # nearly one
    ): pass
    table = {k.name: k.default for k in knobs(f)}
    assert table == dict(a="0.6667", b="(0.75, 1.333)", c="1e-06", d="()", e="0.999999")
    text = knobs(f)._repr_html_()
    assert "<code>low</code>, then <code>high</code>" in text and "one ` alone" in text
