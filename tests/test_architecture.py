"""The house rules, checked: who may import whom, what stays light, and how files are named."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("winnow", "flows", "tasks", "model_registry", "serving", "infra")
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
CHILDREN = [p for p in FILES if p.name.endswith("_child.py")]
MOST_ARGUMENTS, MOST_METHODS = 10, 15
LARGER = {"Registry", "Stack", "Store", "Tabular", "compress_model"}
"""Classes of more methods, and a call whose keywords users write; none is added to them."""

OFFERED = ("engine", "engines.batch_certificate", "loaded_model", "sample_values", "tensors", "exceptions")
"""What of the endpoint is also for callers in Python: nothing that listens."""

# package -> packages it may import
ALLOWED = {
    "winnow": {"flows", "tasks", "model_registry", "serving", "infra"},
    "flows": {"flows", "tasks", "model_registry", "infra", *(f"serving.{name}" for name in OFFERED)},
    "tasks": {"tasks", "model_registry"},
    "model_registry": {"model_registry"},
    "serving": {"serving", "model_registry"},
    "infra": {"infra", "model_registry.store", "model_registry.quiet", "model_registry.authorization"},
}
# library -> the places that may import it
CONFINED = {
    "prefect": ("flows/", "tasks/running/policy.py"),
    "mlflow": ("model_registry/registry.py", "infra/mlflow_gate.py"),
    "cryptography": ("infra/certificates.py",),
    "boto3": ("model_registry/s3_buckets.py",),
    "botocore": ("model_registry/s3_buckets.py",),
    "great_expectations": ("tasks/data/", "tasks/validate/"),
    "click": ("flows/commands/",),
    "rich": ("flows/commands/",),
    "torch": ("tasks/",),  # and never in what the flow imports: see test_importing_the_flow_stays_light
    "grpc": ("serving/grpc_front/",),
    "google": ("serving/grpc_front/",),
    "jwt": ("serving/issuer_tokens.py",),
    "opentelemetry": ("serving/telemetry/request_spans.py",),
    "jax": ("tasks/compile/xla_",),
    "da4ml": ("tasks/onnx_models/fpga_circuit.py", "tasks/compile/clocked_verilog.py"),
    "ray": ("serving/ray_", "tasks/running/ray_"),
    "aiohttp": ("serving/ray_",),
    "torch_pruning": ("tasks/torch_models/channel_pruner.py", "tasks/torch_models/pruning_plan.py"),
    "onnxruntime": (
        "tasks/train/onnx_teacher.py",
        "tasks/export/",
        "tasks/quantize/",
        "tasks/compile/",
        "tasks/onnx_models/graph_as_run.py",
        "tasks/allocate/",
        "tasks/qat/",
        "serving/",
    ),
}
# shelf -> shelves it may import; their order
SHELVES = {
    "running": set[str](),
    "readers": {"running"},
    "workloads": {"running", "readers"},
    "evidence": {"running", "readers", "workloads"},
    "torch_models": {"running", "readers", "workloads", "evidence"},
    "onnx_models": {"running"},
    "report": {"running", "evidence"},
}
STEPS = {
    *("data", "rehearse", "train", "ask", "distill", "allocate", "cut", "prune"),
    *("export", "quantize", "qat", "measure", "rival", "validate", "release", "compile"),
}
_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "core", "configs", "misc"}
FORBIDDEN_CALLS = ("pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names imported by the file, anywhere in it; what only type checkers import is left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                assert child.level == 0, f"{relative(path)}: relative import"
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue  # types only: nothing is imported when it runs
            else:
                visit(child)

    visit(parsed(path))
    return frozenset(found)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in FILES:
        allowed = ALLOWED[path.relative_to(ROOT).parts[0]]
        for name in imports(path):
            parts = name.split(".")
            prefixes = {".".join(parts[: i + 1]) for i in range(len(parts))}
            # `from serving import x` in an allowed place shows up as "serving" too
            fits = prefixes & allowed or any(a.startswith(name + ".") for a in allowed)
            if parts[0] in PACKAGES and not fits:
                wrong.append(f"{relative(path)} must not import {name}")
    assert wrong == []


def test_steps_import_shelves_and_shelves_import_in_one_order() -> None:
    wrong = []
    for path in FILES:
        if not path.is_relative_to(ROOT / "tasks"):
            continue
        room = path.relative_to(ROOT / "tasks").parts[0].removesuffix(".py")
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("tasks.") else room
            if other in (room, "__init__"):
                continue
            if other not in SHELVES:
                wrong.append(f"{relative(path)} imports {name}, of another step")
            elif room in SHELVES and other not in SHELVES[room]:
                wrong.append(f"{relative(path)}: {room} may not import {other}")
    assert wrong == []


def test_nothing_lies_loose_in_tasks() -> None:
    """A folder named by a verb is a step, one named by a noun is a shelf; steps of one file lie beside them."""
    assert {p.name for p in (ROOT / "tasks").glob("*.py")} == {"__init__.py", "track.py"}
    folders = {p.name for p in (ROOT / "tasks").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - set(SHELVES) == STEPS
    for shelf in SHELVES:
        tree = ast.parse((ROOT / "tasks" / shelf / "__init__.py").read_text())
        assert len(tree.body) == 1 and ast.get_docstring(tree), f"tasks/{shelf}/__init__.py holds more than a sentence"


def test_nobody_imports_a_step_s_child_process() -> None:
    starts_one = "tasks.running.launch.run_child"  # a function
    wrong = [
        f"{relative(path)} imports {name}"
        for path in FILES
        for name in imports(path)
        if name.startswith("tasks.") and re.search(r"_child(\.|$)", name) and name != starts_one
    ]
    assert wrong == []


def test_child_processes_have_one_anatomy() -> None:
    """One public function, first in its file, which fits a screen."""
    for path in CHILDREN:
        functions = [node for node in parsed(path).body if isinstance(node, _NAMED)]
        assert [node.name for node in functions if not node.name.startswith("_")] == ["main"], relative(path)
        main = functions[0]
        assert isinstance(main, ast.FunctionDef) and ast.get_docstring(main), relative(path)
        assert ast.unparse(main.args) == "child: Child", relative(path)
        assert main.returns and ast.unparse(main.returns) == "Result", relative(path)
        assert isinstance(main.body[-1], ast.Return), relative(path)
        assert main.end_lineno and main.end_lineno - main.lineno < 60, relative(path)


def test_algorithms_know_no_child() -> None:
    wrong = [
        f"{relative(path)} imports {name}: read and publish in the child's file"
        for path in FILES
        for name in imports(path)
        if path not in CHILDREN and name.startswith("tasks.running.child.")
    ]
    assert wrong == []


def test_functions_and_classes_are_of_one_size() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LARGER:
                arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([a for a in arguments if a not in ("self", "cls")])
                if count > MOST_ARGUMENTS:
                    wrong.append(f"{relative(path)}: {node.name} has {count} parameters")
            if isinstance(node, ast.ClassDef) and node.name not in LARGER:
                methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
                if len(methods) > MOST_METHODS:
                    wrong.append(f"{relative(path)}: {node.name} has {len(methods)} methods")
    assert wrong == []


def test_public_names_are_unique() -> None:
    """A class or function is found by its name alone. Entries of processes are all called main."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in parsed(path).body:
            if isinstance(node, _NAMED) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(relative(path))
    assert {name: found for name, found in places.items() if len(found) > 1 and name != "main"} == {}


def test_libraries_stay_in_their_rooms() -> None:
    wrong = []
    for path in FILES:
        for name in imports(path):
            rooms = CONFINED.get(name.split(".")[0])
            if rooms is not None and not relative(path).startswith(rooms):
                wrong.append(f"{relative(path)} must not import {name}")
    assert wrong == []


def test_no_pickle_anywhere() -> None:
    wrong = []
    for path in FILES:
        wrong += [f"{relative(path)} imports {n}" for n in imports(path) if n.split(".")[0] in FORBIDDEN_CALLS]
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                callee = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if callee == "torch.load" and keywords.get("weights_only") != "True":
                    wrong.append(f"{relative(path)}: torch.load without weights_only")
                if callee in {"np.load", "numpy.load"} and keywords.get("allow_pickle") != "False":
                    wrong.append(f"{relative(path)}: np.load without allow_pickle=False")
    assert wrong == []


def test_the_switches_of_telemetry_are_said_once() -> None:
    said = [relative(p) for p in FILES if re.search(r"DO_NOT_TRACK|TELEMETRY\"|ANALYTICS", p.read_text())]
    assert said == ["model_registry/quiet.py"]


def test_file_names_say_something_and_are_unique() -> None:
    stems: dict[str, list[str]] = {}
    for path in FILES:
        if path.stem not in {"__init__", "__main__"}:
            stems.setdefault(path.stem, []).append(relative(path))
    assert {s: p for s, p in stems.items() if len(p) > 1} == {}
    assert set(stems) & FORBIDDEN_NAMES == set()
    dependencies = {
        name.replace("-", "_").lower()
        for distribution in importlib.metadata.distributions()
        for name in [distribution.metadata["Name"]]
        if name and not name.lower().startswith("winnow")
    }
    assert set(stems) & dependencies == set()
    folders = {p.name for package in PACKAGES for p in (ROOT / package).rglob("*") if p.is_dir()}
    assert folders & FORBIDDEN_NAMES == set()


def test_the_public_face_holds_no_logic() -> None:
    """One module: for type checkers what there is, and how a name is looked up."""
    (path,) = (ROOT / "winnow").glob("*.py")
    (exports,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    assert all(isinstance(node, ast.ImportFrom) and node.names[0].asname for node in exports.body)
    functions = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert functions == ["__getattr__", "__dir__"]


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_flow_stays_light() -> None:
    done = _run(
        "import sys, flows.compress; "
        "print(sorted({'torch', 'great_expectations', 'mlflow', 'onnxruntime', 'pandas'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_command_line_starts_without_the_pipeline() -> None:
    done = _run(
        "import sys; sys.argv = ['winnow', '--help']\n"
        "import flows.commands.cli\n"
        "try: flows.commands.cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'prefect', 'torch', 'mlflow', 'pydantic', 'boto3', 'rich', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


def test_importing_a_module_does_nothing(tmp_path: Path) -> None:
    light = [relative(p)[:-3].replace("/", ".") for p in FILES if p.stem not in {"__init__", "__main__"}]
    code = (
        "import importlib, logging, os, sys, threading\n"
        "before = (dict(os.environ), threading.active_count(), logging.getLogger().handlers[:])\n"
        f"for name in {[n for n in light if n.split('.')[0] in ('model_registry', 'serving', 'infra')]!r}:\n"
        "    importlib.import_module(name)\n"
        "after = (dict(os.environ), threading.active_count(), logging.getLogger().handlers[:])\n"
        "assert before == after, (before, after)\n"
        "assert os.listdir('.') == [], os.listdir('.')\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
