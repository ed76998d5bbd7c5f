#!/usr/bin/env python3
"""Compares the flag tables of docs/CLI.md with what the program's --help lists, both ways.

    tools/check_cli_docs.py build/cpu/bin/ostro [docs/CLI.md]

In the page, a heading `## ostro NAME` (or `## ostro A, B`) opens a command; the first column of the
tables below it, and code spans of the text that start with --, name its flags. `also for serve,
bench` in a row adds the row's flags to those commands.
"""
import re
import subprocess
import sys
from pathlib import Path

# Written as dashes or underscores; `--help` is everybody's.
FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*)")
EVERYWHERE = {"help", "help_all", "version"}


def canonical(flag):
    return flag.replace("-", "_")


def documented(page):
    """{command: {flag: line number}}"""
    flags, commands = {}, []
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if line.startswith("#"):
            match = re.match(r"##+ +`?ostro ([a-z][a-z_, ]*)`?\s*$", line)
            commands = re.findall(r"[a-z_]+", match.group(1)) if match else []
            for command in commands:
                flags.setdefault(command, {})
        elif line.startswith("|") and commands:
            cells = re.split(r"(?<!\\)\|", line)
            also = re.findall(r"also for ([a-z_, ]+)", line)
            targets = commands + [c for names in also for c in re.findall(r"[a-z_]+", names)
                                  if c not in ("and", "or")]
            for flag in FLAG.findall(cells[1]):
                for command in targets:
                    flags.setdefault(command, {}).setdefault(canonical(flag), number)
        elif commands and len(commands) == 1:
            for span in re.findall(r"`(--[^`]*)`", line):
                for flag in FLAG.findall(span):
                    flags[commands[0]].setdefault(canonical(flag), number)
    return flags


def help_text(program, *arguments):
    result = subprocess.run([program, *arguments, "--help"], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{program} {' '.join(arguments)} --help: exit code {result.returncode}\n"
                 f"{result.stdout}{result.stderr}")
    return result.stdout


def listed(program, command):
    """The flags at the start of --help's lines: a flag that a description mentions is not one."""
    flags = set()
    for line in help_text(program, command).split("\n"):
        match = re.match(r"\s{1,8}((?:-\w|--[\w-]+)(?:[ ,]+(?:-\w|--[\w-]+))*)", line)
        if match:
            flags.update(canonical(flag) for flag in FLAG.findall(match.group(1)))
    return flags - EVERYWHERE


def subcommands(program):
    """The words that --help lists under Subcommands."""
    names, inside = [], False
    for line in help_text(program).split("\n"):
        if re.match(r"(sub)?commands:?\s*$", line.strip(), re.IGNORECASE):
            inside = True
        elif inside and (match := re.match(r"\s{1,6}([a-z][a-z_]*)\b", line)):
            names.append(match.group(1))
    return names


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    program = sys.argv[1]
    page = Path(sys.argv[2] if len(sys.argv) == 3 else
                Path(__file__).resolve().parent.parent / "docs" / "CLI.md")
    pages, commands = documented(page), subcommands(program)
    if not commands:
        sys.exit(f"{program} --help lists no subcommands")
    found, count = [], 0
    for command in commands:
        if command not in pages:
            found.append(f"{page.name}: no section '## ostro {command}', but the program has it")
            continue
        real, written = listed(program, command), pages[command]
        count += len(real)
        for flag in sorted(real - set(written)):
            found.append(f"{page.name}: ostro {command} --{flag} is in --help and not on the page")
        for flag in sorted(set(written) - real):
            found.append(f"{page.name}:{written[flag]}: ostro {command} --{flag} is not in --help")
    for command in sorted(set(pages) - set(commands)):
        found.append(f"{page.name}: the program has no command '{command}'")
    print("\n".join(found) or f"{len(commands)} commands, {count} flags: page and --help agree")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
