"""The layout: imports run one way, and stand at the top of a module unless they take a second or two to start."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the bottom to the top: a module imports from its own folder and from those before it.
ORDER = (
    "interrupt", "escape", "program", "openmp", "project", "start", "activations", "losses", "muon", "optimizers",
    "schedules", "settings", "networks", "width",
    "experiments", "switches", "run_folder", "data", "measures", "figures", "report", "training", "jobs", "reproduce",
)  # fmt: skip
# What may be imported in a function: PyTorch, matplotlib, pillow, what need not be installed, and modules of ours that
# need one of them.
SLOW = ("torch", "matplotlib", "PIL", "scipy", "safetensors", "cifar_lab.figures", "cifar_lab.training",
        "cifar_lab.networks", "cifar_lab.run_folder.checkpoint", "cifar_lab.measures.evaluation")  # fmt: skip
MODULES = sorted(p for p in (ROOT / "cifar_lab").rglob("*.py") if p.name != "__init__.py")
SCRIPTS = sorted(ROOT.glob("*.py"))


def imports(node: ast.AST) -> list[str]:
    """The modules, or names in modules, that the import statements below a node name."""
    statements = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
    return [f"{getattr(n, 'module', None) or ''}.{a.name}".lstrip(".") for n in statements for a in n.names]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    rank = ORDER.index(path.relative_to(ROOT / "cifar_lab").parts[0].removesuffix(".py"))
    for module in imports(parsed(path)):
        first, *rest = module.split(".")
        assert first not in {script.stem for script in SCRIPTS} | {"bench", "tests"}, f"imports {first}"
        assert first != "cifar_lab" or ORDER.index(rest[0]) <= rank, f"imports upwards: {module}"


def test_what_was_measured_or_asked_for_cannot_be_changed():
    """Every dataclass of the package is frozen, but for the list of figures that is filled while they are drawn."""
    mutable = set()
    for path in (*MODULES, *SCRIPTS):
        for node in ast.walk(parsed(path)):
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(node, ast.ClassDef) and "dataclass" in ast.unparse(decorator):
                    mutable |= {node.name} if "frozen=True" not in ast.unparse(decorator) else set()
    assert mutable == {"Figures"}


def test_nothing_outside_the_tests_imports_them():
    for path in (*MODULES, *SCRIPTS, *(ROOT / "bench").glob("*.py")):
        assert not [module for module in imports(parsed(path)) if module.split(".")[0] in ("tests", "made_up")], path


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_functions_are_of_what_starts_slowly(path):
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef)]
    inside = {module for function in functions for module in imports(function)}
    assert {module for module in inside if not f"{module}.".startswith(tuple(f"{slow}." for slow in SLOW))} == set()
