#!/usr/bin/env python3
"""Checks that the code has the structure that ARCHITECTURE.md and docs/ describe.

1. No two files of a crate import each other, apart from the pairs below. The sources are read as text: `use` declarations and paths
   that begin with `crate::` or `super::`, each followed through re-exports to the file that defines the name. Test modules are left out.
2. Each file that a page names exists, and each `file.rs::function` is there.

Usage: structure.py [ROOT].
"""

import pathlib
import re
import sys

# Files of src/core/src that may import each other: one type and its parts.
PARTS = {
    "evidence holds this part, and the part's file judges it against the rest": [
        ("authority.rs", "evidence.rs"),
        ("consent.rs", "evidence.rs"),
        ("evidence.rs", "identity.rs"),
        ("evidence.rs", "loss.rs"),
        ("evidence.rs", "proof/declared.rs"),
        ("evidence.rs", "proof/power.rs"),
        ("evidence.rs", "workload.rs"),
    ],
    "a refusal holds the reason that this file finds": [
        ("identity.rs", "plan/refusal.rs"),
        ("loss.rs", "plan/refusal.rs"),
    ],
    "a planned step has the class of its row, and the row describes the planned step": [
        ("plan/mod.rs", "steps/spec.rs"),
        ("plan/build.rs", "steps/spec.rs"),
    ],
    "the facts of a workload hold its stamp, and the stamp is judged by these facts": [
        ("stamp.rs", "workload.rs"),
    ],
    "rows of the table that are about records stand in a file of their own": [
        ("diagnosis/records.rs", "diagnosis/table.rs"),
    ],
}
TOGETHER = {tuple(f"src/core/src/{file}" for file in pair) for pairs in PARTS.values() for pair in pairs}

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


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    bad, allowed = [], set()
    for src in sorted([*root.glob("src/*/src"), *root.glob("providers/*/src"), *root.glob("tests/*/src")]):
        crate = Crate(src)
        needs = {}
        for one, other, path in crate.imports():
            needs.setdefault((one, other), set()).add(path)
        for one, other in sorted(needs):
            if one < other and (other, one) in needs:
                pair = tuple(str(crate.modules[m].relative_to(root)) for m in (one, other))
                if pair in TOGETHER:
                    allowed.add(pair)
                    continue
                bad.append((pair, sorted(needs[one, other])[:6], sorted(needs[other, one])[:6]))
    for (one, other), there, back in bad:
        print(f"{one} and {other} import each other: {', '.join(there)}; {', '.join(back)}")
    for pair in sorted(set(TOGETHER) - allowed):
        print(f"{pair[0]} and {pair[1]} no longer import each other: take the pair off the list in {sys.argv[0]}")
        bad.append(pair)
    places = list(missing_places(root))
    print("\n".join(places), end="\n" if places else "")
    return 1 if bad or places else 0


if __name__ == "__main__":
    sys.exit(main())
