"""Chat templates with fixed arguments and date: prompts are the same in transformers, and on another day."""

import shutil

import pytest
from transformers import AutoTokenizer

from gadjax.data.tokenizer import load_tokenizer
from gadjax.errors import UserError

TINYLLAMA = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize(
    "printed",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}",
        '{% if strftime_now is defined %}{{ strftime_now("%d %b" ) }} {{ strftime_now("%Y") }}{% endif %}',
    ],
)
def test_the_date_is_fixed(tiny_directory, chatml, printed, monkeypatch):
    class Clock:
        @staticmethod
        def now():
            raise AssertionError("the clock was read")

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    template = "\n  Today: " + printed + "{{ '\\n' }}" + chatml
    default = load_tokenizer(tiny_directory, chat_template=template)
    given = load_tokenizer(tiny_directory, chat_template=template, date="2031-12-05")
    texts = [t.decode(t.prompt_ids(chat("Hi")), skip_special_tokens=False) for t in (default, given)]
    assert texts[0].startswith("\n  Today: 26 Jul 2024\n<|im_start|>user")
    assert texts[1].startswith("\n  Today: 05 Dec 2031\n<|im_start|>user")
    assert default.fingerprint() != given.fingerprint()


def test_dates_that_cannot_be_fixed(tiny_directory, chatml):
    with pytest.raises(UserError, match="strftime_now with a computed format"):
        load_tokenizer(tiny_directory, chat_template="{% set f = '%Y' %}{{ strftime_now(f) }}" + chatml)
    with pytest.raises(UserError, match="date is 'today'; expected YYYY-MM-DD"):
        load_tokenizer(tiny_directory, date="today")


def test_template_arguments(tiny_directory, chatml):
    template = chatml + "{% if add_generation_prompt and enable_thinking is false %}{{ 'no thinking' }}{% endif %}"
    given = load_tokenizer(tiny_directory, chat_template=template, template_args={"enable_thinking": False})
    default = load_tokenizer(tiny_directory, chat_template=template)
    assert given.decode(given.prompt_ids(chat("Hi"))).endswith("no thinking")
    assert default.decode(default.prompt_ids(chat("Hi"))).endswith("assistant\n")
    assert given.fingerprint() != default.fingerprint()


def test_chat_template_given(tiny, tiny_directory, chatml, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_directory, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(
        UserError, match=r"no chat template .* chat_template\.jinja, or train with --config\.data\.chat_template"
    ):
        load_tokenizer(bare)
    file = tmp_path / "chatml.jinja"
    file.write_text(chatml)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (chatml, str(file), "~/chatml.jinja"):
        tokenizer = load_tokenizer(bare, chat_template=given)
        assert tokenizer.prompt_ids(chat("Hi")).tolist() == tiny.prompt_ids(chat("Hi")).tolist()
    for given, message in [
        (
            "missing.jinja",
            r"--config\.data\.chat_template=missing.jinja: neither a Jinja template nor a file",
        ),
        ("{% for m in %}", "the chat template of .* refused a chat"),
        ("{{ messages.nothing.at_all }}", "the chat template of .* refused a chat"),
    ]:
        with pytest.raises(UserError, match=message):
            load_tokenizer(bare, chat_template=given)


def test_a_template_without_date_and_arguments_is_saved_as_it_was_given(tiny_directory, tmp_path):
    load_tokenizer(tiny_directory, chat_template=TINYLLAMA, date="2031-12-05").save(tmp_path / "given")
    assert (tmp_path / "given" / "chat_template.jinja").read_text() == TINYLLAMA
    assert str(tiny_directory) not in "".join(p.read_text() for p in (tmp_path / "given").iterdir())


PINNED = {
    # As Qwen3's and Llama 3's read them.
    "thinking": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
        "{%- endif %}",
        {"enable_thinking": False},
        "assistant\n<think>\n\n</think>\n\n",
    ),
    "date": (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}"
        "{%- endif %}{%- endif %}{{ 'Today: ' + date_string + '\n' }}CHATML",
        {},
        "Today: 05 Dec 2031\n",
    ),
    "the clock itself": ("{{ strftime_now('%d %b') }} {{ strftime_now('%Y') }}CHATML", {}, "05 Dec 2031"),
    "values of every kind": (
        "{{ [a, b, c, d, tools] | tojson }}{% macro m() %}{{ a }}{% endmacro %}{{ m() }}CHATML",
        {
            "a": "# } #} %} {{ é \u2028 🙂 \\ \" ' \n",
            "b": [None, True, -1.5e-3, {"x": None}],
            "c": None,
            "d": {"#}": "\n{# end of pins #}\n"},
            "tools": [{"name": "t"}],
        },
        "🙂",
    ),
    "white space at the start": ("  {% if x %}\n y\n  {% endif %}\n {{ x }}CHATML", {"x": 7}, "7"),
}


@pytest.mark.parametrize(("template", "args", "shown"), PINNED.values(), ids=PINNED)
def test_transformers_renders_what_was_saved_alike(tiny_directory, chatml, tmp_path, template, args, shown):
    """The saved template holds arguments and date, for transformers and for gadjax without a config."""
    template = template.replace("CHATML", chatml)
    tokenizer = load_tokenizer(tiny_directory, chat_template=template, template_args=args, date="2031-12-05")
    tokenizer.save(tmp_path / "saved")
    messages = chat("Hi", "Hello.", "And then?")
    ids = tokenizer.prompt_ids(messages).tolist()
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    rendered = saved.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert shown in rendered
    assert saved.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    again = load_tokenizer(tmp_path / "saved")
    assert again.prompt_ids(messages).tolist() == ids and again.fingerprint() == tokenizer.fingerprint()
    again.save(tmp_path / "again")
    jinja = [(tmp_path / name / "chat_template.jinja").read_text() for name in ("saved", "again")]
    assert jinja[0] == jinja[1]
    # It is what transformers makes of the template itself and the arguments.
    if "strftime_now" not in template:
        bare, given = AutoTokenizer.from_pretrained(tiny_directory), {"chat_template": template, **args}
        assert bare.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **given) == rendered


def test_what_is_pinned_can_be_given_anew(tiny_directory, tmp_path):
    template, args, _ = PINNED["thinking"]
    template = "{{ strftime_now('%Y') }}" + template
    load_tokenizer(tiny_directory, chat_template=template, template_args=args, date="2031-12-05").save(tmp_path / "a")

    def prompt(**given):
        tokenizer = load_tokenizer(tmp_path / "a", **given)
        return tokenizer.decode(tokenizer.prompt_ids(chat("Hi")))

    assert prompt().startswith("2031") and prompt().endswith("</think>\n\n")
    assert prompt(date="2040-01-01").startswith("2040") and prompt(date="2040-01-01").endswith("</think>\n\n")
    thinking = prompt(template_args={"enable_thinking": True})
    assert thinking.startswith("2031") and thinking.endswith("assistant\n")
    # And in transformers, by who asks for it.
    asked = AutoTokenizer.from_pretrained(tmp_path / "a").apply_chat_template(
        chat("Hi"), add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    assert asked.endswith("assistant\n")


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token", "two words", ""])
def test_names_that_no_argument_has(tiny_directory, name):
    with pytest.raises(UserError, match=rf"--config\.data\.template_args: '{name}' cannot be an argument"):
        load_tokenizer(tiny_directory, template_args={name: 1})
