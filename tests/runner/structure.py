#!/usr/bin/env python3
"""Checks that the code has the structure that ARCHITECTURE.md and docs/ describe.

1. No file of a crate imports itself by way of others, apart from the circles below, and no two import each other, apart from the pairs. The sources are read as text: `use` declarations and paths
   that begin with `crate::` or `super::`, each followed through re-exports to the file that defines the name. Test modules are left out.
2. Each file that a page names exists, and each `file.rs::function` is there.

Usage: structure.py [ROOT].
"""

import pathlib
import re
import sys

# Files of src/core/src that may import each other, in one step or by way of others: one type and its parts.
CIRCLES = {
    "evidence holds the facts of a workload and its stamp, which are judged by the claim's and the pods' facts": [
        "evidence/mod.rs",
        "stamp.rs",
        "workload.rs",
    ],
    "a plan is made of steps, a step's row says what the step does in a plan and in a run, and a refusal holds the reason that each of them "
    "can find": [
        "check/violation.rs",
        "plan/build.rs",
        "plan/identity.rs",
        "plan/losses.rs",
        "plan/mod.rs",
        "plan/refusal.rs",
        "plan/refusals.rs",
        "plan/sound.rs",
        "plan/target.rs",
        "run/cx.rs",
        "run/mod.rs",
        "run/pace.rs",
        "run/state.rs",
        "steps/cx.rs",
        "steps/spec.rs",
    ],
}
# Pairs of these that import each other directly.
PAIRS = [
    ("evidence/mod.rs", "workload.rs"),
    ("plan/build.rs", "steps/spec.rs"),
    ("plan/mod.rs", "steps/spec.rs"),
    ("stamp.rs", "workload.rs"),
]
OF_CORE = "src/core/src/"

ITEM = re.compile(r"^\s*(?:pub(?:\([^)]*\))? )?(?:async |unsafe |const )*(?:struct|enum|trait|fn|type|static|const|union) (?:mut )?(\w+)", re.M)
MACRO = re.compile(r"^macro_rules! (\w+)", re.M)
USE = re.compile(r"^( *)(pub(?:\([^)]*\))? )?use ([^;]+);", re.M)
PATH = re.compile(r"\b((?:crate|super)(?:::\w+)+)")


def flatten(tree):
    """Yields (path, alias) of each name in a use tree."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, alias = tree.partition(" as ")
        path = path.strip()
        yield path, alias.strip() or path.rsplit("::", 1)[-1]
        return
    prefix, inner = tree[:brace], tree[brace + 1 : tree.rindex("}")]
    depth, part = 0, ""
    for char in inner + ",":
        if char == "," and depth == 0:
            if part.strip():
                for path, alias in flatten(part):
                    whole = prefix + path
                    yield (whole[: -len("::self")] if path == "self" else whole), (
                        prefix.rstrip(":").rsplit("::", 1)[-1] if path == "self" else alias
                    )
            part = ""
            continue
        depth += (char == "{") - (char == "}")
        part += char


def without_tests(text):
    """Cuts inline test modules and comments off."""
    text = re.sub(r"#\[cfg\(test\)\]\s*mod \w+ \{.*?^\}", "", text, flags=re.S | re.M)
    return re.sub(r"//[^\n]*", "", text)


class Crate:
    def __init__(self, src):
        self.src = src
        self.modules = {}  # path as a tuple -> file
        self.items = {}
        self.exports = {}
        for file in sorted(src.rglob("*.rs")):
            parts = list(file.relative_to(src).with_suffix("").parts)
            if parts[0] == "bin" or parts[-1] == "tests" or "tests" in parts[:-1] or parts == ["main"] and (src / "lib.rs").exists():
                continue
            if parts[-1] in ("mod", "lib", "main"):
                parts.pop()
            self.modules[tuple(parts)] = file
        for module, file in self.modules.items():
            text = without_tests(file.read_text())
            self.items[module] = set(ITEM.findall(text)) | set(MACRO.findall(text))
            self.exports[module] = {
                alias: path for _, public, tree in USE.findall(text) if public for path, alias in flatten(tree)
            }

    def absolute(self, module, path):
        parts = path.split("::")
        if parts[0] == "crate":
            return [], parts[1:]
        if parts[0] == "self":
            return list(module), parts[1:]
        if parts[0] == "super":
            base = list(module)
            while parts and parts[0] == "super":
                base, parts = base[:-1], parts[1:]
            return base, parts
        if tuple([*module, parts[0]]) in self.modules:
            return list(module), parts
        return None, parts

    def resolve(self, module, path, depth=0):
        """The module that defines what `path` names, or None if it is of another crate."""
        base, parts = self.absolute(module, path)
        if base is None or depth > 8:
            return None
        at = tuple(base)
        while parts:
            if (*at, parts[0]) in self.modules:
                at, parts = (*at, parts[0]), parts[1:]
                continue
            if parts[0] in self.exports.get(at, {}) and parts[0] not in self.items.get(at, ()):
                found = self.resolve(at, self.exports[at][parts[0]], depth + 1)
                return found
            break
        return at if at in self.modules else None

    def imports(self):
        for module, file in self.modules.items():
            text = without_tests(file.read_text())
            private = [(tree) for _, public, tree in USE.findall(text) if not public]
            paths = [p for tree in private for p, _ in flatten(tree)]
            paths += PATH.findall(USE.sub("", text))
            # What a module only re-exports it does not need.
            for path in paths:
                target = self.resolve(module, path)
                if target is not None and target != module:
                    yield module, target, path


NAMED = re.compile(r"`((?:src|providers|tests|deploy|runbooks|docs|\.config)/[\w./{},-]*?)(?:::(\w+))?`")


def alternatives(path):
    """Expands `a/{b,c}.rs`."""
    brace = re.search(r"\{([^}]*)\}", path)
    if not brace:
        return [path]
    return [path[: brace.start()] + one.strip() + path[brace.end() :] for one in brace[1].split(",")]


def missing_places(root):
    for page in [root / "ARCHITECTURE.md", root / "README.md", *sorted(root.glob("docs/*.md"))]:
        for path, name in NAMED.findall(page.read_text()):
            for one in alternatives(path):
                file = root / one
                if not file.exists() and not list(root.glob(one)):
                    yield f"{page.relative_to(root)} names {one}, which does not exist"
                elif name and not re.search(rf"\b(fn|struct|enum|trait|const|static|macro_rules!) {name}\b", file.read_text()):
                    yield f"{page.relative_to(root)} names {name} of {one}, which is not there"


def circles(needs):
    """The sets of two or more modules that each reach all others of their set (Tarjan)."""
    number, low, stack, found = {}, {}, [], []

    def visit(one):
        number[one] = low[one] = len(number)
        stack.append(one)
        for other in needs.get(one, ()):
            if other not in number:
                visit(other)
            if other in stack:
                low[one] = min(low[one], low[other])
        if low[one] == number[one]:
            at = stack.index(one)
            if len(stack) - at > 1:
                found.append(set(stack[at:]))
            del stack[at:]

    for one in sorted(needs):
        if one not in number:
            visit(one)
    return found


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    bad = []
    listed = {frozenset(OF_CORE + file for file in files) for files in [*CIRCLES.values(), *PAIRS]}
    unseen = set(listed)
    for src in sorted([*root.glob("src/*/src"), *root.glob("providers/*/src"), *root.glob("tests/*/src")]):
        crate = Crate(src)
        needs = {}
        for one, other, path in crate.imports():
            needs.setdefault(one, {}).setdefault(other, set()).add(path)
        mutual = [{one, other} for one in needs for other in needs[one] if one < other and one in needs.get(other, ())]
        for modules in [*circles(needs), *mutual]:
            files = frozenset(str(crate.modules[m].relative_to(root)) for m in modules)
            unseen.discard(files)
            if files not in listed:
                paths = sorted(p for one in modules for other in modules & needs[one].keys() for p in needs[one][other])
                bad.append(f"{', '.join(sorted(files))} import each other: {', '.join(paths[:12])}")
    for files in unseen:
        bad.append(f"{', '.join(sorted(files))} no longer import each other: change the lists in {sys.argv[0]}")
    bad += missing_places(root)
    for line in bad:
        print(line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
