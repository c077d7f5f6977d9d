"""Writes the manual pages beside this file: `python3 packaging/man/generate.py` from the top of the tree.

Prose stands in *.in; a line `@NAME@` in it is replaced by what the program itself says: verbs and options of its
commands, exit codes of README.md, keys of policies/default.toml. tests/unit/test_manual.py fails when a page is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
PAGES = ("kupgrade.8", "kupgrade-policy.5")


def escaped(text: str) -> str:
    """Plain text as roff: no minus that becomes a hyphen, no line that is taken for a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with the words that call it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from commands(found, f"{path} {name}")
    else:
        yield path, command


def value_of(parameter: click.Parameter) -> str:
    """What stands for the value of an argument or option."""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(choice) for choice in parameter.type.choices)
    if isinstance(parameter, click.Argument):
        return (parameter.name or "").upper()
    return {"integer": "N", "integer range": "N", "float range": "SECONDS"}.get(parameter.type.name, "VALUE")


def option(parameter: click.Option) -> str:
    """One option as a tagged paragraph."""
    names = ", ".join(f"\\fB{escaped(name)}\\fR" for name in (*parameter.opts, *parameter.secondary_opts))
    value = "" if parameter.is_flag else f" \\fI{escaped(value_of(parameter))}\\fR"
    text = parameter.help or ""
    if isinstance(parameter.show_default, str):
        text += f" [default: {parameter.show_default}]"
    elif parameter.show_default:
        text += f" [default: {parameter.default}]"
    return f".TP\n{names}{value}\n{escaped(text.strip()) or chr(92) + '&'}"


def verbs() -> str:
    """All commands with their arguments, help and options."""
    from kupgrade.cli.main import cli

    lines = []
    for path, command in commands(cli, "kupgrade"):
        words = [f"\\fB{escaped(path)}\\fR", "[\\fIOPTION\\fR]..."]
        for each in command.params:
            if isinstance(each, click.Argument):
                name = f"\\fI{escaped(value_of(each).strip('[]'))}\\fR"
                words.append(name if each.required else f"[{name}]")
        lines.append(f'.SS "{path.removeprefix("kupgrade ")}"\n{" ".join(words)}')
        paragraphs = re.split(r"\n\s*\n", (command.help or "").strip())
        lines += [f".PP\n{escaped(' '.join(paragraph.split()))}" for paragraph in paragraphs]
        lines += [option(each) for each in command.params if isinstance(each, click.Option)]
    return "\n".join(lines)


def exit_codes() -> str:
    """The table of README.md."""
    table = (TREE / "README.md").read_text().split("## Exit codes", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", table, re.MULTILINE)
    return "\n".join(f".TP\n.B {code}\n{escaped(text.replace('`', ''))}" for code, text in rows)


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(table, key, default, what it means) of policies/default.toml, the keys that stand there as examples too."""
    table, last, items = "", None, None
    for line in [*(TREE / "policies/default.toml").read_text().splitlines(), ""]:
        example = re.match(r"# (?=\[|\w+ = )", line)
        text = line[2:] if example else line
        if items is not None and last:
            if item := re.match(r'\s*(".*?"),', text):
                items.append(item[1])
            elif text.strip() == "]":
                last, items = (*last[:2], f"[{', '.join(items)}]", last[3]), None
        elif last and (more := re.fullmatch(r"(?:# )? {8,}# (.*)", text)):
            last = (*last[:3], f"{last[3]} {more[1]}")
        else:
            if last:
                yield last
            last = None
            if header := re.fullmatch(r"(\[+[\w.]+\]+)\s*(?:#.*)?", text):
                table = header[1]
            elif many := re.fullmatch(r"(\w+) = \[\s+# (.*)", text):
                last, items = (table, many[1], "", many[2]), []
            elif one := re.fullmatch(r"(\w+) = (.*?)\s+# (.*)", text):
                last = (table, one[1], f"(none) e.g. {one[2]}" if example else one[2], one[3])


def policy_keys() -> str:
    """Every key below its table."""
    lines, last = [], None
    for table, key, default, text in rows():
        if table != last:
            lines.append(f'.SS "{table or "Top level"}"')
            last = table
        lines.append(f".TP\n\\fB{key}\\fR = {escaped(default)}\n{escaped(text)}")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Name and text of each page."""
    from kupgrade import __version__

    parts = {"VERBS": verbs, "EXIT": exit_codes, "KEYS": policy_keys, "VERSION": lambda: __version__}
    found = {}
    for name in PAGES:
        text = (HERE / f"{name}.in").read_text()
        found[name] = re.sub(r"@([A-Z]+)@", lambda match: parts[match[1]](), text)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(TREE))
    for page, written in pages().items():
        (HERE / page).write_text(written)
