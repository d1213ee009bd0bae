"""Chat templates in the style of the known families, written for these tests, and ways to run them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from fam_engine.data.compiled_templates import CompiledTemplate, Shape
from fam_engine.data.template_compiling import ShapeCompiler
from fam_engine.data.template_sandbox import TemplateSource, compile_template, render
from fam_engine.data.template_tracing import Tracer

DATE = datetime(2024, 7, 26)
CONSTANTS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A default system turn where none is given, as Qwen2.5 and SmolLM2 have.
CHATML_WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' + m['content'] }}"
    "{{- '<|im_end|>' + '\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
# The system turn goes into the first user turn; turns must alternate.
LLAMA_2 = (
    "{% set first = messages[0].content if messages[0].role == 'system' else false %}"
    "{% set turns = messages[1:] if first != false else messages %}"
    "{% for turn in turns %}"
    "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% if loop.first and first != false %}"
    "{% set text = '<<SYS>>\n' + first + '\n<</SYS>>\n\n' + turn.content %}"
    "{% else %}{% set text = turn.content %}{% endif %}"
    "{% if turn.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% set text = '<|h|>' + m.role + '<|/h|>\n\n' + m.content | trim + "
    "'<|eot|>' %}{{ bos_token + text if loop.first else text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"
)
LLAMA_31 = (
    "{{- bos_token }}{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|h|>system<|/h|>\n\nToday: ' + date_string + '\n\n' + system + '<|eot|>' }}"
    "{%- for m in messages %}"
    "{%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}"
    "{{- '<|h|>' + m['role'] + '<|/h|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{%- elif m.role == 'tool' %}{{- '<|h|>ipython<|/h|>\n\n' }}"
    "{%- if m.content is mapping or (m.content is iterable and m.content is not string) %}"
    "{{- m.content | tojson }}{%- else %}{{- m.content }}{%- endif %}{{- '<|eot|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{%- set system = messages | selectattr('role', 'equalto', 'system') | list | first %}"
    "{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{%- set ns = namespace(users=0) %}{{- bos_token }}"
    "{%- for m in turns %}{%- if m['role'] == 'user' %}{%- set ns.users = ns.users + 1 %}"
    "{%- if system is defined and loop.last %}"
    "{{- '[INST] ' + system['content'] + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' ~ m['content'] ~ '[/INST]' }}{%- endif %}"
    "{%- elif m.content is defined %}{{- ' ' + m.content | trim + eos_token }}"
    "{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system turns') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n"
    "{% endif %}\n{% endfor %}"
)
# Thoughts are cut from earlier answers; which those are is found by walking backwards.
QWEN_3 = (
    "{%- set ns = namespace(looking=true, last=messages|length - 1) %}"
    "{%- for m in messages[::-1] %}{%- set index = messages|length - 1 - loop.index0 %}"
    "{%- if ns.looking and m.role == 'user' and m.content is string and not "
    "(m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}"
    "{%- set ns.looking = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set text = m.content if m.content is string else '' %}"
    "{%- set thought = '' %}{%- if m.role == 'assistant' and '</think>' in text %}"
    "{%- set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{%- else %}{{- text }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}"
    "{%- endif %}{%- endif %}"
)
# The date, and thoughts on or off, by a setting that is never given or by a word in the system turn.
SMOLLM_3 = (
    "{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}"
    "{%- set mode = '/think' if enable_thinking else '/no_think' %}"
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}"
    "{%- if '/no_think' in system %}{%- set mode = '/no_think' %}"
    "{%- elif '/think' in system %}{%- set mode = '/think' %}{%- endif %}"
    "{%- set own = system.replace('/no_think', '').replace('/think', '').rstrip() %}{%- endif %}"
    "{{- '<|im_start|>system\n' }}{%- if '/system_override' in system %}"
    "{{- own.replace('/system_override', '').rstrip() }}{%- else %}"
    "{{- 'Today: ' ~ strftime_now('%d %B %Y') ~ '\nMode: ' + mode + '\n\n' }}"
    "{%- if own %}{{- own + '\n\n' }}{%- else %}{{- 'Be good.\n\n' }}{%- endif %}"
    "{%- if xml_tools or python_tools %}{{- xml_tools }}{%- endif %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- for m in messages %}"
    "{%- set text = m.content if m.content is string else '' %}{%- if m.role == 'user' %}"
    "{{- '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{% generation %}{{- '<|im_start|>assistant\n' }}"
    "{%- if mode == '/no_think' %}{{- '<think>\n\n</think>\n' }}{%- endif %}"
    "{{- text.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if mode == '/no_think' %}{{- '<think>\n\n</think>\n' }}{%- endif %}{%- endif %}"
)
DEEPSEEK_R1 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = ns.system + ('\n\n' if not loop.first else '') + m.content %}"
    "{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}{% for m in messages %}"
    "{% set text = m.content %}{% if m.role == 'user' %}{{ '<U>' + text }}"
    "{% elif m.role == 'assistant' %}{{ '<A>' + text.split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"
)
# Macros, `set` blocks, `is string` and tests of emptiness, as multimodal and tool templates use.
MACROS = (
    "{% macro show(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% macro turn(role) %}[{{ role }}]{{ caller() }}[/]{% endmacro %}"
    "{% for m in messages %}{% set shown %}{{ show(m.content) }}{% endset %}"
    "{% if m.content and m['content'] | trim | length > 0 %}"
    "{% call turn(m.role) %}{% generation %}{{ shown }}{% endgeneration %}{% endcall %}"
    "{% endif %}{% endfor %}{{ '[assistant]' if add_generation_prompt else '' }}"
)
JOINED = (
    "{{ messages | map(attribute='content') | join('\n--\n') }}"
    "{{ '|'.join([messages[0].get('content'), messages[-1].content | default('none', true)]) }}"
)

FAMILIES = {
    name: source
    for name, source in globals().items()
    if isinstance(source, str) and name.isupper() and not name.startswith("_")
}


def source(text: str, constants: dict[str, str] = CONSTANTS) -> TemplateSource:
    return TemplateSource(text, constants, DATE)


def traced(text: str, *roles: str, add_generation_prompt: bool = True) -> CompiledTemplate:
    """Give what tracing alone finds, without the check that follows."""
    return Tracer(source(text)).trace(Shape(roles, add_generation_prompt))


def compiled(
    template: TemplateSource, *roles: str, add_generation_prompt: bool = True
) -> CompiledTemplate:
    compiler = ShapeCompiler(template, compile_template(template))
    return compiler.compile(Shape(roles, add_generation_prompt))


def rendered(template: TemplateSource, shape: Shape, contents: Sequence[str]) -> str:
    """Give what Jinja itself renders."""
    messages = [{"role": r, "content": c} for r, c in zip(shape.roles, contents, strict=True)]
    return render(
        compile_template(template),
        template.constants,
        messages,
        add_generation_prompt=shape.add_generation_prompt,
    )
