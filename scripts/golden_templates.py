#!/usr/bin/env python3
"""What transformers renders of the constructs that chat templates use: src/calib/chat/transformers.json.

  scripts/golden_templates.py

Needs a python with transformers (5 or newer); the test that reads the file needs none. Every template below is our own and shows
one construct (or a few that go together); the file holds it, and what apply_chat_template renders of it for the conversation and
the tools below, or null where it refuses. The clock stands at the date that llmq gives to templates.
"""
import datetime, json, os, tempfile
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
import transformers
from transformers.utils import chat_template_utils

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "src/calib/chat/transformers.json")


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


CALL = {"type": "function", "id": "call00001", "function": {"name": "look_up", "arguments": {"place": "é", "n": 3, "x": [1.0, None, True]}}}
PLACE = {"type": "string", "description": "Where <it> & 'more'", "enum": ["é", "b"]}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Finds \"it\"\nsoon", "parameters": {
    "type": "object", "properties": {"place": PLACE, "n": {"type": ["integer", "null"], "default": 1e20}}, "required": ["place"]}}}]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Who wrote this? <&>\"' \n\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA poet, of the late 19th century, I think.\nOr two.\n"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Grüße, 日本"}]},
    {"role": "assistant", "content": None, "reasoning_content": "look first", "tool_calls": [CALL, CALL]},
    {"role": "tool", "name": "look_up", "content": "{\"a\": 1}", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "Done.", "score": 0.1, "count": 12},
]


def each(inside):
    return "{% for m in messages %}" + inside + "{% endfor %}"


def of(values, inside):
    """A loop over values of Python, each as `x`."""
    return "{% for x in " + values + " %}" + inside + ";{% endfor %}"


TEXT = "(m.content if m.content is string else '')"
ALL = "[none, true, false, 0, 1, -3, 1.5, 1.0, 'a', '', '12', [], [1], {}, {'a': 1}, (1, 2), nothing]"

TEMPLATES = {
    # What is printed
    "values": of(ALL, "{{ x }}"),
    "values of JSON": each("{{ m }}\n"),
    "floats": of("[0.1, 1.0, 1e16, 1e15, 123456789012345680.0, 1e-5, 0.0001, 1.5e300, -0.0, 2.5e-7, 1e22]", "{{ x }}|{{ [x] }}|{{ x | string }}|{{ x | tojson }}"),
    "quotes in lists": "{{ [\"it's\", 'a\"b', \"both ' \\\"\", 'a\\nb\\t\\\\', 'é日', '\\x00\\x7f\\x1b', '\\u00a0\\u200b\\ufeff'] }}",
    "joined by ~": of(ALL, "{{ 'x' ~ x ~ 1 }}"),
    "joined by +": "{{ 'a' + 'b' }}{{ [1] + [2, 3] }}{{ 1 + 2.0 }}{{ (1, 2) + (3,) }}",
    "string filter": of(ALL, "{{ x | string }}"),
    "attributes and items": each("{{ m.role }}{{ m['role'] }}{{ m['nothing'] }}{{ m.nothing }}{{ m.get('role') }}{{ m.get('x', 'y') }}{{ m.get('x') }}"),
    "escapes in strings": "{{ 'a\\tb\\'c\\u00e9\\x41\\n' }}{{ \"d\\\"e\" }}{{ 'one' 'two' }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}|{{ sep_token is defined }}",
    "numbers": "{{ 7 // 2 }} {{ 7 / 2 }} {{ 8 / 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ -7 // 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 1_000 }} {{ 3 * 'ab' }} {{ [0] * 3 }} {{ 10 | float }} {{ '7' | int }} {{ 'x' | int(5) }} {{ 2.7 | int }} {{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 3 | round }} {{ -2 | abs }} {{ 0x1f }} {{ 9007199254740993 }} {{ 123456789012345678901234567890 }}",
    # Tests
    "is string": of(ALL, "{{ x is string }}"),
    "is mapping": of(ALL, "{{ x is mapping }}"),
    "is iterable": of(ALL, "{{ x is iterable }}"),
    "is sequence": of(ALL, "{{ x is sequence }}"),
    "is sequence of JSON": each("{{ m is sequence }}{{ m.content is sequence }}{{ m.content is iterable }}{{ m.content is mapping }};"),
    "is number": of(ALL, "{{ x is number }}{{ x is integer }}{{ x is float }}{{ x is boolean }}"),
    "is none": of(ALL, "{{ x is none }}{{ x is not none }}{{ x is defined }}{{ x is undefined }}"),
    "is true": of(ALL, "{{ x is true }}{{ x is false }}{{ not x }}{{ 'y' if x else 'n' }}"),
    "is of several": "{{ 3 is odd }}{{ 3 is even }}{{ 9 is divisibleby 3 }}{{ 1 is eq 1 }}{{ 1 is ne(1) }}{{ 1 is lt 2 }}{{ 2 is ge(2) }}{{ 1 is in [1, 2] }}{{ 'a' is lower }}{{ 'A' is upper }}{{ none is sameas none }}{{ 1 is equalto 1 }}{{ 5 is greaterthan 3 }}",
    "is callable": "{{ raise_exception is callable }}{{ 'a' is callable }}{{ strftime_now is defined }}{{ namespace is callable }}",
    "is filter": "{{ 'tojson' is filter }}{{ 'nonsense' is filter }}{{ 'string' is test }}",
    "keys of messages": each("{{ 'tool_calls' in m }}{{ 'content' in m }}{{ m.content is defined }}{{ m.content is none }}{{ m.tool_calls is defined }};"),
    "comparisons": "{{ 1 == 1.0 }}{{ 1 == true }}{{ 'a' < 'b' }}{{ [1, 2] == [1, 2] }}{{ {'a': 1} == {'a': 1} }}{{ (1, 2) == [1, 2] }}{{ 1 < 2 < 3 }}{{ 'b' in 'abc' }}{{ 'a' in ['a'] }}{{ 'a' in {'a': 1} }}{{ 1 not in [1] }}{{ none == false }}{{ '' == none }}{{ nothing == none }}",
    "and, or, not": "{{ 0 or 'x' }}{{ '' and 1 }}|{{ none or [] }}{{ 1 and 2 }}{{ not 1 == 2 }}{{ (not 0) and true }}",
    # Loops
    "loop variables": each("{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.cycle('a', 'b') }};"),
    "previous item": each("{{ loop.previtem.role if loop.previtem is defined else '-' }}{{ loop.previtem is defined and loop.previtem.role == m.role }};"),
    "next item": each("{{ loop.nextitem.role if loop.nextitem is defined else '-' }}{{ 'x' if not loop.last and loop.nextitem.role != 'tool' }};"),
    "changed": each("{{ loop.changed(m.role == 'user') }}"),
    "loop with a condition": "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}",
    "loop and else": "{% for x in [] %}a{% else %}b{% endfor %}{% for x in [1] %}a{% else %}b{% endfor %}",
    "recursive loop": "{% for x in [{'n': 1, 'c': [{'n': 2, 'c': []}, {'n': 3, 'c': []}]}] recursive %}{{ x.n }}{% if x.c %}<{{ loop(x.c) }}>{% endif %}{% endfor %}",
    "break and continue": each("{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}{{ m.content }}"),
    "two names": "{% for k, v in {'b': 1, 'a': [2]}.items() %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}{% for a, b in [[1, 2], [3, 4]] %}{{ a + b }}{% endfor %}{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}",
    "range": "{{ range(3) | list }}{{ range(1, 7, 2) | list }}{{ range(3, 0, -1) | list }}{% for i in range(messages | length) %}{{ messages[i].role }}{% endfor %}",
    "inner loops": each("{% set outer = loop %}{% if m.content is not string %}{% for p in m.content or [] %}{{ outer.index }}.{{ loop.index }}{{ p.type }}{% endfor %}{% endif %}"),
    "a set inside stays inside": "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}",
    # Slices
    "slices": "{{ messages[1:] | length }}{{ messages[:-1] | length }}{{ messages[-1].role }}{{ messages[::-1][0].role }}{{ messages[::2] | length }}{{ messages[1:][0].content }}{{ 'abcdef'[1:3] }}{{ 'abcdef'[-2:] }}{{ 'abcdef'[::-1] }}{{ 'abc'[0] }}{{ 'abc'[-1] }}{{ 'é日x'[1] }}{{ [1, 2, 3][-2] }}{{ [1, 2][5:] }}{{ 'abc'[:9] }}{{ (1, 2, 3)[1:] }}",
    "out of range": "{{ [1][5] }}|{{ 'a'[5] }}|{{ messages[99] is defined }}|{{ messages[-99] is defined }}",
    "last user's message, from behind": "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}{% if ns.last < 0 and m.role == 'user' %}{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}{{ ns.last }}",
    # Statements
    "namespace": "{% set ns = namespace(a=1, b='x') %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}{% set ns.c = [] %}{{ ns.c }}",
    "namespace of a mapping": "{% set ns = namespace({'a': 1}) %}{% set ns.a = 2 %}{{ ns.a }}{% set ns2 = namespace() %}{{ ns2.x is defined }}",
    "set with a body": "{% set x %}a{{ 1 + 1 }}\n{% endset %}[{{ x }}]{{ x | length }}{% set y | upper | trim %} b {% endset %}[{{ y }}]{{ x is string }}",
    "set of two": "{% set a, b = 1, 'x' %}{{ a }}{{ b }}{% set a, b = (b, a) %}{{ a }}{{ b }}",
    "macros": "{% macro f(a, b='d', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, c=2) }}|{{ f(b=1, a=2) }}|{{ f() }}|{{ f(1) | length }}|{{ f.name }}",
    "macros that call themselves": "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "macros see what is outside": "{% set o = 'out' %}{% macro f() %}{{ o }}{{ bos_token }}{{ messages | length }}{% endmacro %}{{ f() }}{% set o = 'new' %}{{ f() }}",
    "macros and whitespace": "{%- macro f(x) -%}\n  {%- if x -%}\n    {{- 'in ' + x -}}\n  {%- endif -%}\n{%- endmacro -%}\n  [{{ f('a') }}]\n",
    "call": "{% macro box(r) %}[{{ r }}{{ caller() }}]{% endmacro %}{% call box('a') %}b{% endcall %}{% macro list(xs) %}{% for x in xs %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(y) list([1, 2]) %}<{{ y }}>{% endcall %}",
    "filter block": "{% filter upper %}a{{ 'b' }}{% endfilter %}{% filter trim | indent(2) %} c\nd {% endfilter %}",
    "with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "if, elif, else": each("{% if m.role == 'user' %}U{% elif m.role == 'assistant' and m.tool_calls %}C{% elif m.role == 'assistant' %}A{% else %}{{ m.role }}{% endif %}"),
    "inline if": "{{ 'a' if messages else 'b' }}{{ 'a' if false }}|{{ ('x' if true else 'y') ~ 'z' }}{{ 1 if none else 2 if 0 else 3 }}",
    "raw and comments": "{% raw %}{{ x }}{% y %}{% endraw %}{# a {{ comment }} #}b\n{# alone #}\nc",
    "generation": each("{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.role }}{% endif %}"),
    "generation and whitespace": each("\n  {%- generation -%}  \n {{ m.role }} \n  {%- endgeneration %}\n\n  {% generation %}\nx\n  {% endgeneration %}\n"),
    "generation keeps what it sets": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}{{ '{% generation %}' }}",
    "do is no statement": "{% do messages.append(1) %}",
    # Whitespace
    "lines of blocks": "a\n    {% if true %}\n  b\n    {% endif %}\n\nc {% if true %} d {% endif %} e\n\t{% for x in [1, 2] %}\n{{ x }}\n\t{% endfor %}\nf\n",
    "minus": "a  \n\n {%- if true -%} \n b \n {%- endif -%} \n\n c {{- ' d ' -}} \n e {#- comment -#} \n f",
    "plus": "a\n  {%+ if true %}b{% endif +%}\nc\n  {%- if true +%}\n  d{% endif %}\n",
    "trailing lines": "{{ 'a' }}\n\n",
    "one trailing line": "{{ 'a' }}\n",
    "Windows' line ends": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc{{ 'd\r\ne' }}\r\n",
    "blocks in one line": "  {% if true %}x{% endif %}  {{ 1 }}  {% if true %}  \n  y{% endif %}\n",
    # JSON
    "tojson": "{{ messages | tojson }}{{ tools | tojson }}",
    "tojson of values": of("[none, true, 1, 1.0, 0.1, 1e16, 1e-7, 'é日<&>\\'\"\\n\\t\\x7f\\u2028', [], {}, (1, 2), [[]], {'a': []}, 1e22, -0.0]", "{{ x | tojson }}"),
    "tojson with indent": "{{ tools | tojson(indent=4) }}{{ tools[0] | tojson(indent=2) }}{{ [] | tojson(indent=2) }}{{ {'a': {}} | tojson(indent=1) }}{{ [1, [2]] | tojson(indent=0) }}{{ {'a': 1} | tojson(false, 3) }}",
    "tojson with separators": "{{ tools | tojson(separators=(',', ':')) }}{{ tools | tojson(separators=[' , ', ' : '], indent=1) }}{{ {'b': 1, 'a': {'d': 2, 'c': 3}} | tojson(sort_keys=true) }}",
    "tojson with ensure_ascii": "{{ 'é日😀\\x7f' | tojson(ensure_ascii=true) }}{{ {'ü': 1} | tojson(ensure_ascii=True) }}{{ 'é' | tojson(ensure_ascii=False) }}{{ 'é' | tojson(true) }}",
    "tojson of keys": "{{ {1: 'a', none: 'b', 2: 'c', 1.5: 'd'} | tojson }}",
    "tojson and length": "{{ ({'a': 1} | tojson) ~ '<' }}{{ ('<' | tojson) | length }}{{ ('<' | tojson) | upper }}{{ '\"' in ({'a': 1} | tojson) }}{{ ('a' | tojson) is string }}",
    "tojson of nothing": "{{ nothing | tojson }}",
    "tojson with a string as indent": "{{ [1] | tojson(indent='--') }}",
    # Filters
    "trim": "[{{ '  a \\n' | trim }}][{{ 'xxaxx' | trim('x') }}]" + each("{{ " + TEXT + " | trim }}"),
    "case": "{{ 'aBc dEf' | upper }}{{ 'aBc' | lower }}{{ 'aBc dEf' | title }}{{ 'aBc dEf' | capitalize }}{{ \"it's o'clock-now\" | title }}{{ 'ß' | upper }}",
    "replace": "{{ 'aXbXc' | replace('X', '--') }}{{ 'aXbXc' | replace('X', '', 1) }}",
    "default": "{{ nothing | default('x') }}{{ none | default('x') }}{{ none | default('x', true) }}{{ '' | default('y', boolean=true) }}{{ messages[0].x | default([]) }}{{ 0 | d(1) }}",
    "length": "{{ 'é日' | length }}{{ messages | length }}{{ {'a': 1} | length }}{{ [] | count }}{{ nothing | length }}",
    "join": "{{ [1, 'a', none, 1.0, true] | join(', ') }}{{ messages | map(attribute='role') | join('|') }}{{ messages | join(',', attribute='role') }}{{ 'abc' | join('-') }}{{ [] | join }}{{ ['a', 'b'] | join }}",
    "map": "{{ messages | map(attribute='role') | list }}{{ ['a', 'b'] | map('upper') | list }}{{ messages | map(attribute='nothing', default='-') | list }}{{ [' a '] | map('trim') | map('replace', 'a', 'b') | list }}{{ tools | map(attribute='function.name') | list }}{{ [[1, 2]] | map(attribute=0) | list }}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | selectattr('tool_calls') | list | length }}{{ messages | selectattr('tool_calls', 'defined') | list | length }}{{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | join(',') }}{{ messages | selectattr('role', '==', 'tool') | first | string | length }}{{ (messages | selectattr('role', 'eq', 'system') | list)[0].content }}",
    "select": "{{ [1, 0, 2, none] | select | list }}{{ [1, 2, 3] | select('odd') | list }}{{ [1, 2, 3] | reject('gt', 1) | list }}{{ ['a', 1] | select('string') | list }}",
    "dictsort": "{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }}{{ {'b': 1, 'A': 2} | dictsort(true) }}{{ {'b': 1, 'a': 2} | dictsort(by='value') }}{{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "items": "{{ {'b': 1, 'a': 2} | items | list }}{% for k, v in tools[0].function | items %}{{ k }}{% endfor %}{{ nothing | items | list }}",
    "first and last": "{{ [1, 2] | first }}{{ [1, 2] | last }}{{ 'abc' | first }}{{ 'abc' | last }}{{ [] | first }}|{{ (messages | first).role }}",
    "sort, unique, reverse": "{{ ['b', 'A', 'c'] | sort }}{{ [3, 1, 2] | sort(reverse=true) }}{{ messages | sort(attribute='role') | map(attribute='role') | list }}{{ ['a', 'A', 'b'] | unique | list }}{{ [1, 2] | reverse | list }}{{ 'abc' | reverse }}{{ ['b', 'A'] | sort(case_sensitive=true) }}",
    "groupby": "{% for role, all in messages | groupby('role') %}{{ role }}{{ all | length }};{% endfor %}{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }};{% endfor %}",
    "sum, min, max": "{{ [1, 2.5] | sum }}{{ [3, 1] | min }}{{ [3, 1] | max }}{{ ['a', 'B'] | max }}{{ messages | selectattr('count') | sum(attribute='count') }}{{ [1, 2] | sum(start=10) }}",
    "batch and slice": "{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3, 4] | slice(3) | list }}",
    "list": "{{ 'abc' | list }}{{ {'a': 1} | list }}{{ (1, 2) | list }}{{ {'a': 1}.keys() | list }}{{ {'a': 1}.values() | list }}",
    "indent": "[{{ 'a\\n\\nb\\n' | indent(2) }}][{{ 'a\\n\\nb' | indent(2, true) }}][{{ 'a\\n\\nb\\n' | indent(2, false, true) }}][{{ 'a\\nb' | indent('> ', first=true, blank=true) }}][{{ 'a\\nb' | indent }}][{{ 'a\\nb' | indent(width=1) }}][{{ '' | indent(2, true) }}][{{ 'a\\r\\nb\\x0bc' | indent(1) }}]",
    "truncate": "[{{ 'one two three four' | truncate(11) }}][{{ 'one two three four' | truncate(11, true) }}][{{ 'one two three four' | truncate(9, false, '--', 0) }}][{{ 'one two' | truncate(5) }}][{{ 'one two three' | truncate(length=8, killwords=true, end='…', leeway=0) }}][{{ 'short' | truncate }}]" + each("{{ " + TEXT + " | truncate(20) }}"),
    "escape": "{{ '<&>\"\\'' | e }}{{ '<' | escape }}{{ '<' | safe }}{{ ('<' | safe) | e }}{{ ('<' | e) ~ '<' }}{{ ('<' | e) | e }}{{ ('<' | e) | upper }}{{ '<' | forceescape }}{{ 5 | e }}{{ none | e }}{{ ('<' | e) is string }}{{ ('<' | safe) is escaped }}",
    "center": "[{{ 'a' | center(5) }}][{{ 'ab' | center(5) }}][{{ 'a' | center(4) }}]",
    "attr and format": "{{ '%s-%05.2f-%d' | format('a', 1.5, 3) }}{{ '%(a)s' | format(a=1) }}",
    # Methods
    "strip": "[{{ '  a ' .strip() }}][{{ 'xax'.strip('x') }}][{{ '\\n a\\n'.lstrip('\\n') }}][{{ 'a\\n\\n'.rstrip() }}][{{ 'abcab'.strip('ab') }}][{{ '\\x1ca\\x1f\\u3000'.strip() }}][{{ 'prefix-a'.removeprefix('prefix-') }}][{{ 'a.txt'.removesuffix('.txt') }}]",
    "split": "{{ 'a,b,c'.split(',') }}{{ ' a  b '.split() }}{{ ' a  b '.split(' ') }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a,b'.split(',')[-1] }}{{ 'a</think>b'.split('</think>')[0].split('<think>')[-1] }}{{ ' a b c '.split(none, 1) }}{{ 'a b'.split(maxsplit=1) }}{{ 'a,b,c'.split(sep=',', maxsplit=1) }}{{ ''.split(',') }}{{ ''.split() }}{{ 'a b  c '.rsplit(none, 1) }}",
    "split of messages": each("{% set c = " + TEXT + " %}{% if '</think>' in c %}{{ c.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}|{{ c.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ c }}{% endif %}"),
    "partition": "{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'abc'.partition('=') }}{{ 'abc'.rpartition('=') }}{{ 'a=b'.partition('=')[2] }}",
    "splitlines": "{{ 'a\\nb\\r\\nc\\x0bd\\u2028e\\n'.splitlines() }}{{ 'a\\nb\\r\\n'.splitlines(true) }}{{ ''.splitlines() }}{{ 'a\\n\\nb'.splitlines(keepends=True) }}",
    "startswith and endswith": "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ 'abc'.startswith('b', 1) }}{{ 'abc'.endswith('b', 0, 2) }}{{ 'abc'.startswith(('x', 'y')) }}",
    "find": "{{ 'abcb'.find('b') }}{{ 'abcb'.rfind('b') }}{{ 'abc'.find('x') }}{{ 'ééb'.find('b') }}{{ 'abcb'.find('b', 2) }}{{ 'abc'.index('b') }}{{ 'abab'.count('ab') }}{{ 'ab'.count('') }}",
    "replace method": "{{ 'aXbXc'.replace('X', '-') }}{{ 'aXbXc'.replace('X', '-', 1) }}{{ 'ab'.replace('', '-') }}",
    "case methods": "{{ 'aB c'.upper() }}{{ 'aB c'.lower() }}{{ \"aB it's x1y\".title() }}{{ 'aB c'.capitalize() }}{{ 'aB'.swapcase() }}",
    "is methods": of("['a', 'A', '1', ' ', '', 'a1', 'Ab', 'é', '-']", "{{ x.isupper() }}{{ x.islower() }}{{ x.isdigit() }}{{ x.isspace() }}{{ x.isalpha() }}{{ x.isalnum() }}{{ x.isnumeric() }}{{ x.isascii() }}"),
    "padding": "[{{ 'a'.ljust(3) }}][{{ 'a'.rjust(3, '-') }}][{{ 'a'.center(4, '*') }}][{{ '7'.zfill(3) }}][{{ '-7'.zfill(4) }}]",
    "join method": "{{ ', '.join(['a', 'b']) }}{{ ''.join([]) }}{{ '-'.join('abc') }}{{ '|'.join(messages | map(attribute='role')) }}{{ ','.join({'a': 1, 'b': 2}) }}",
    "methods of mappings": "{{ {'a': 1}.items() | list }}{{ {'a': 1, 'b': 2}.keys() | list }}{{ {'a': 1}.values() | list }}{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b', 'c') }}{{ {'items': 5}['items'] }}{{ dict(a=1, b=2) }}{{ dict({'a': 1}, b=3) }}{{ {'a': 1}.copy() }}",
    "methods of lists": "{{ [1, 2, 1].count(1) }}{{ [1, 2].index(2) }}{{ (1, 2).index(1) }}{{ [1].copy() }}",
    "format method": "{{ '{} {}'.format('a', 1) }}{{ '{0}{1}{0}'.format('a', 'b') }}{{ '{x:>5}|{y:.2f}'.format(x='a', y=1.0) }}{{ '{:,}'.format(1234567) }}{{ '{:<3}|{:^3}|{:03d}'.format('a', 'b', 7) }}",
    "percent": "{{ '%s|%d' % ('a', 3) }}{{ '%s' % 'x' }}{{ '%s' % [1] }}{{ '%s and %s' % (messages[0].role, 1 + 1) ~ '!' }}{{ '%.1f%%' % 2.55 }}{{ '%5s|%-5s|' % ('a', 'b') }}{{ '%03d' % 7 }}{{ '%(a)s' % {'a': 1} }}{{ 'a' ~ '%s' % 1 }}{{ '%x' % 255 }}",
    "percent beside numbers": "{{ 7 % 4 * 2 }}{{ 2 * 7 % 4 }}{{ 7 % 4 % 2 }}{{ -7 % 3 + 1 }}{{ (1 + 2) % 2 }}{{ messages | length % 2 == 1 }}{{ 2 ** 3 % 5 }}{{ 7.5 % 2 }}{{ 'even' if loop is not defined and 4 % 2 == 0 else 'odd' }}{% set x = 5 % 3 %}{{ x }}{% if 5 % 2 %}y{% endif %}{% for i in range(7 % 4) %}{{ i % 2 }}{% endfor %}{{ [1 % 2, {'a': 5 % 3}] }}{{ '%' }}{{ 10 %3 }}{{ -(7 % 3) }}{{ not 7 % 7 }}{{ 1 if 1 else 7 % 0 }}",
    # Dates
    "today": "{{ strftime_now('%B %d, %Y') }}|{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%A %a %H:%M:%S %p %I %j %y %e %-d %U %W %w %I:%M %D %x %h %%') }}",
    "today, where there is a date": "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% else %}{% set d = '26 Jul 2024' %}{% endif %}{{ d }}{{ date_string is defined }}",
    # Refusals
    "raise_exception": each("{% if m.role == 'tool' %}{{ raise_exception('no ' + m.role) }}{% endif %}"),
    "an attribute of nothing": "{{ nothing.more }}",
    "an attribute of none": "{{ messages[0].get('x').more }}",
    "a method that is none": "{{ 'a'.nonsense() }}",
    "a filter that is none": "{{ 'a' | nonsense }}",
    "adding unlike things": "{{ 'a' + 1 }}",
    "lists are not to be changed": "{% set x = [] %}{{ x.append(1) }}",
    "mappings are not to be changed": "{{ {'a': 1}.update({'b': 2}) }}",
    "no inner workings": "{{ ''.__class__.__mro__ }}|{{ messages.__class__ is defined }}",
    "nothing is iterated": "{% for x in nothing %}a{% endfor %}b",
    "division by zero": "{{ 1 // 0 }}",
    "mapping's items called on a list": "{{ [1] | items | list }}",
    # Whole shapes
    "roles must alternate": "{% set ns = namespace(i=0) %}{% for m in messages[1:] %}{% if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}{% if (m['role'] == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{% set ns.i = ns.i + 1 %}{% endif %}{% endfor %}{{ ns.i }}",
    "content of parts": each("{% if m.content is string %}{{ m.content }}{% elif m.content is iterable and m.content is not mapping %}{% for p in m.content %}{% if p.type == 'image' or 'image' in p %}<img{{ loop.index }}>{% elif 'text' in p %}{{ p.text | trim }}{% endif %}{% endfor %}{% endif %}"),
    "arguments": each("{% for t in m.tool_calls or [] %}{% set f = t.function if t.function is defined else t %}{{ f.name }}{% for k, v in f.arguments | items %}<{{ k }}>{{ v | string if v is string else v | tojson }}</{{ k }}>{% endfor %}{{ f.arguments | tojson if f.arguments is mapping else f.arguments }}{% endfor %}"),
    "reasoning": each("{{ m.reasoning_content | default('-', true) }}{{ m.thinking is defined }}{{ m.reasoning is defined }}{{ m.content is string }};"),
    "types in TypeScript": "{% macro t(p) %}{% if p.enum %}{{ p.enum | map('tojson') | join(' | ') }}{% elif p.type is string %}{{ p.type }}{% else %}{{ p.type | join(' | ') }}{% endif %}{% endmacro %}{% for x in tools %}{% for k, p in x.function.parameters.properties | dictsort %}{% if p.description is defined %}// {{ p.description }}\n{% endif %}{{ k }}{{ '?' if k not in x.function.parameters.required else '' }}: {{ t(p) }}{% if p.default is defined %} // {{ p.default }}{% endif %},\n{% endfor %}{% endfor %}",
    "generation prompt": each("<{{ m.role }}>") + "{% if add_generation_prompt %}A{% else %}N{% endif %}{{ documents is defined }}{{ documents is none }}{{ enable_thinking is defined }}{{ tools is not none }}",
}


def main():
    chat_template_utils.datetime = Clock
    with tempfile.TemporaryDirectory() as folder:
        words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
        words.save(os.path.join(folder, "tokenizer.json"))
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=os.path.join(folder, "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    constructs = []
    for name, template in TEMPLATES.items():
        try:
            rendered = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, chat_template=template, tokenize=False)
        except Exception as e:
            rendered = None
            print(f"refused: {name}: {type(e).__name__}: {e}")
        constructs.append(dict(name=name, template=template, rendered=rendered))
    os.makedirs(os.path.dirname(OUT), exist_ok=True)
    with open(OUT, "w", encoding="utf8") as f:
        json.dump(dict(transformers=transformers.__version__, messages=MESSAGES, tools=TOOLS, constructs=constructs), f, indent=1, ensure_ascii=False)
        f.write("\n")
    print(f"{len(constructs)} constructs, {sum(c['rendered'] is None for c in constructs)} of them refused")


if __name__ == "__main__":
    main()
