"""The house rules of CONTRIBUTING.md, read from the source text."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patchword.tasks.table import TASKS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "patchword"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

FLOORS = (
    ("errors", "ids", "lookup", "version", "files", "heap", "hub", "tensors", "onnx_graphs"),
    ("types", "config", "log", "device"),
    ("text",),
    ("data",),
    ("layers", "losses", "decode", "decode_numpy", "diffuse", "constrained"),
    ("towers", "models"),
    ("metrics", "html"),
    ("sentences",),
    ("composed", "convert", "search"),
    ("reports", "checkpoints"),
    ("train", "jobs"),
    ("tasks",),
    ("serve", "cli", "interface"),
)
"""The house from the ground up: a folder or file imports what stands on floors below its own, and its own
folder."""

STRICTER = {
    "layers": {"layers", "types", "errors", "ids", "files", "tensors"},
    "models": {"models", "layers", "types", "errors", "ids"},
    "towers": {"towers", "layers", "types", "errors", "ids", "hub"},
    "convert": {"convert", "models", "towers", "errors"},
    "metrics": {"metrics", "text", "data", "errors", "lookup", "files", "heap"},
    "constrained": {"decode", "types", "errors", "ids"},
    "decode": {"types", "errors", "ids"},
    "decode_numpy": {"ids"},
    "diffuse": {"types", "errors", "ids"},
    "losses": {"types"},
    "types": {"ids"},
    "reports": {"reports", "html", "metrics", "data", "errors", "files"},
}
"""Where less than all floors below is allowed: models know no data, metrics never see a model."""

TASKS_USED = {
    ("answer", "caption"): "answers may be worded by a captioner",
    ("answer", "retrieve"): "questions about photographs are answered by two towers",
    ("align", "retrieve"): "patch-word alignment stands on two towers",
    ("caption", "retrieve"): "the codebook's text tower embeds captions",
    ("interleave", "caption"): "a few-shot model captions as well, in the form of captions",
    ("label", "retrieve"): "labelling may begin with the towers of a two-tower model",
    ("vokens", "retrieve"): "tokens and pictures are those of two towers",
    (
        "paint",
        "retrieve",
    ): "a painter may be told by the text tower of two towers, which also rank what it paints",
}
"""The only imports between folders of tasks, and why."""

CLOSURES = {"patchword.tasks.caption.train": 68, "patchword.cli.train": 26}
"""Files that an import can come to, counted by hand nowhere: these may only fall."""

LOADED = 99
"""Files of the package that one training of a captioner has loaded when it ends, what was looked up included.

It may only fall. (It was 89 before recipe, step and run folder came out of the loop, and settings and
validation out of the captioner's training: more files, and less to read in each.)
"""

COMPARISONS = 12
"""Comparisons of a task with the name of one. They may only fall."""

SCREEN = 60
"""Lines of a function at most, its first one and its docstring included."""

PARTS_OF_A_PAGE = {
    "prompt_search": "prompt-fusion",
    "late_concatenation": "prompt-fusion",
    "aligned_towers": "patch-slimming",
    "discrete_vae": "token-transformer",
    "vit_vqgan": "token-transformer",
    "scene_reader": "denoiser",
}
"""Models that share the page of the idea they belong to."""

SECTIONS = {
    "token_transformer": "painter.codec",
    "question_answering": "answerer",
    "clip_prior": "painter.prior",
}
"""Models whose section of a configuration has another name than their file."""

NOT_TRAINED_BY_A_CONFIG = {"aligned_towers", "imagination", "scene_reader", "template"}
"""Models that `patchword train` trains under another name, that a tool of the checkout trains, or that nothing does."""


def imported(tree: ast.AST) -> set[str]:
    """Full names of the modules that a file imports, in functions too; a name taken from the package itself
    counts as its module.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= (
                {f"patchword.{alias.name}" for alias in node.names}
                if node.module == "patchword"
                else {node.module}
            )
    return names


MODULES = {
    path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
}
FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}


def part_of(module: str) -> str:
    """The folder of the package, or the file at its top, that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or in its functions."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "patchword":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {
                name if name in known else node.module for name in names for known in [set(MODULES.values())]
            }
    return found - {MODULES[path]}


IMPORTS = {MODULES[path]: imports_of(path) for path in SOURCES}


def closure(module: str) -> set[str]:
    """Every module of the package that an import of `module` can come to, the packages around each one
    included.
    """
    found, waiting = set(), [module]
    while waiting:
        one = waiting.pop()
        if one == "patchword" or one in found:
            continue
        found.add(one)
        around = {one.rsplit(".", depth)[0] for depth in range(1, one.count("."))}
        waiting += IMPORTS[one] | around
    return found


def test_every_folder_has_a_floor():
    assert {part_of(module) for module in MODULES.values()} - {"", "__main__", "pretrained"} == set(FLOOR)


@pytest.mark.parametrize("part", FLOOR)
def test_no_import_runs_up_a_floor(part):
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        if part_of(module) == part
        for other in others
        if part_of(other) != part
        and (FLOOR[part_of(other)] > FLOOR[part] or part_of(other) not in STRICTER.get(part, FLOOR))
    ]
    assert not wrong


def test_training_knows_no_task_and_no_report():
    """A task brings a recipe, and whoever starts a run looks the report up."""
    train = {module for module in IMPORTS if part_of(module) == "train"} | {"patchword.tasks.start"}
    reached = {other for module in train for other in IMPORTS[module]}
    assert reached and not {other for other in reached if part_of(other) == "reports"}
    assert not {other for other in reached if other.startswith("patchword.tasks.") and other.count(".") > 2}


def test_tasks_import_each_other_only_where_the_rule_says_so():
    found = set()
    for module, others in IMPORTS.items():
        if module.startswith("patchword.tasks.") and module.count(".") > 2:
            own = module.split(".")[2]
            found |= {
                (own, other.split(".")[2])
                for other in others
                if other.startswith("patchword.tasks.") and other.count(".") > 2
            }
    assert {pair for pair in found if pair[0] != pair[1]} == set(TASKS_USED)


def test_no_file_imports_itself_in_a_circle():
    circles = []
    for module in IMPORTS:
        reached, waiting = set(), list(IMPORTS[module])
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += IMPORTS[one]
        if module in reached:
            circles.append(module)
    assert not circles


def names_a_task(node: ast.Compare) -> bool:
    """Whether what is called a task is compared with the name of one."""
    sides = [node.left, *node.comparators]
    constants = {one.value for side in sides for one in ast.walk(side) if isinstance(one, ast.Constant)}
    about = "task" in constants or any(
        (isinstance(one, ast.Name) and one.id in ("task", "task_of"))
        or (isinstance(one, ast.Attribute) and one.attr == "task")
        for side in sides
        for one in ast.walk(side)
    )
    return about and bool((constants - {"task"}) & set(TASKS))


def test_comparisons_with_the_name_of_a_task_do_not_grow():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and names_a_task(node)
    ]
    assert len(found) <= COMPARISONS, found


def test_functions_fit_on_a_screen_and_take_fewer_than_nine_arguments():
    """Commands apart, whose arguments are what a user may type."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                typed = any("Annotated" in ast.unparse(one.annotation) for one in given if one.annotation)
                count = len([one for one in given if one.arg not in ("self", "cls")])
                if not typed and (count >= 9 or node.end_lineno - node.lineno >= SCREEN):
                    found.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not found


@pytest.mark.parametrize(("module", "most"), CLOSURES.items())
def test_the_closure_of_training_does_not_grow(module, most):
    """What must be read, in the worst case, to know what a captioning training does."""
    assert len(closure(module)) <= most


def test_a_captioning_run_loads_only_what_it_needs(config, tmp_path):
    """What is looked up counts as well: one step of a training, in a process of its own."""
    code = (
        "import sys\nfrom patchword.cli import main\n"
        f"sys.argv = ['patchword', 'train', {str(config)!r}, 'out={tmp_path / 'run'}', 'stage.0.epochs=1', "
        "'data.limit=4', '--device', 'cpu']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(*sorted(name for name in sys.modules if name.startswith('patchword.')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = set(result.stdout.splitlines()[-1].split())
    others = {
        "adaptive",
        "caption_transformer",
        "meshed_memory",
        "show_tell",
        "meteor",
        "spice",
        "clip",
        "hub",
    }
    assert "patchword.models.captioners.show_attend_tell" in loaded
    # `patchword.hub` itself only tells a hub's name from a folder's.
    assert not {name for name in loaded - {"patchword.hub"} if others & set(name.split("."))}
    assert len(loaded) <= LOADED, loaded


def test_no_module_needs_one_system():
    """What only POSIX or only Windows has is imported where the system is known, never at the top of a file."""
    alone = {"resource", "fcntl", "pwd", "grp", "termios", "msvcrt", "winreg"}
    found = []
    for path, tree in TREES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        found += [f"{path.relative_to(ROOT)}: {name}" for name in imported(top) & alone]
    assert not found


@pytest.mark.parametrize("folder", ["text", "metrics", "cli"])
def test_torch_is_never_imported_by(folder):
    """Text and metrics work without torch; a command imports what needs it inside its function."""
    files = [path for path in SOURCES if path.parent.name == folder]
    assert files and not [
        path.name for path in files if "torch" in {name.split(".")[0] for name in imported(TREES[path])}
    ]


@pytest.mark.parametrize(
    "code",
    [
        "import patchword",
        "from patchword.metrics import score",
        "from patchword.cli import app; app(['--help'], standalone_mode=False); app(['score', '--help'], "
        "standalone_mode=False)",
    ],
)
def test_runs_without_torch(code):
    heavy = "import sys; print([name for name in ('torch', 'transformers', 'accelerate', 'faiss', 'matplotlib') if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{heavy}"],
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_module_imports_with_the_core_install():
    """Extras are blocked; `serve` is an extra itself, and its modules are imported with it there."""
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
    ]
    modules = [name for name in names if not name.endswith(".__main__")]  # that one runs the command line
    code = (
        "import importlib, sys\n"
        "extras = ('fastapi', 'uvicorn', 'python_multipart', 'faiss', 'tensorboard', 'pycocoevalcap', "
        "'torchvision', 'timm', 'diffusers')\n"
        "sys.modules.update(dict.fromkeys(extras))\n"
        f"for name in {[name for name in modules if '.serve' not in name]!r}: importlib.import_module(name)\n"
        "for name in extras: del sys.modules[name]\n"
        f"for name in {[name for name in modules if '.serve' in name]!r}: importlib.import_module(name)\n"
        "print('all imported')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-1] == "all imported"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}


MODELS = sorted(path.stem for path in (PACKAGE / "models").rglob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_page(model):
    page = ROOT / "docs" / "models" / f"{PARTS_OF_A_PAGE.get(model, model.replace('_', '-'))}.md"
    assert page.is_file(), f"docs/models/{page.name} is missing"
    assert f"{model}.py" in page.read_text(encoding="utf-8"), f"{page.name} does not name the file {model}.py"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_config(model):
    texts = [path.read_text(encoding="utf-8") for path in (PACKAGE / "configs").rglob("*.toml")]
    named = any(
        re.search(rf'^kind = "{model}"$|^\[{SECTIONS.get(model, model)}\]$', text, re.MULTILINE)
        for text in texts
    )
    assert named != (model in NOT_TRAINED_BY_A_CONFIG), f"a config names {model}: {named}"


SMELLS = {
    ".cuda(": "the device is the caller's choice: .to(device)",
    "weights_only=False": "reads pickled code",
    "import pickle": "no pickle is written or read",
    "torch.save(": "safetensors and JSON instead",
    "TODO": "do it, or say in docs/ that it is not there",
    "FIXME": "do it, or say in docs/ that it is not there",
    "except:": "names what it catches",
}


@pytest.mark.parametrize("smell", SMELLS)
def test_sources_are_free_of(smell):
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(_lines(path), 1)
        if smell in line
    ]
    assert not found, SMELLS[smell]


def test_weights_are_loaded_strictly():
    """`strict=False` belongs to `zip` only."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and any(_is_false(word, "strict") for word in node.keywords)
                and ast.unparse(node.func) != "zip"
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def _is_false(word: ast.keyword, name: str) -> bool:
    return word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is False


def test_no_exception_is_swallowed():
    """A handler that only passes must say on its line why."""
    found = []
    for path, tree in TREES.items():
        lines = _lines(path)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ExceptHandler)
                and len(node.body) == 1
                and isinstance(node.body[0], ast.Pass)
            ):
                said = any("#" in lines[number] for number in range(node.lineno - 1, node.body[0].end_lineno))
                if not said:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_files_stay_under_500_lines():
    assert not {str(path.relative_to(ROOT)): len(_lines(path)) for path in SOURCES if len(_lines(path)) > 500}


def test_every_module_says_what_it_is():
    empty = [path for path, tree in TREES.items() if ast.get_docstring(tree) is None]
    assert not [str(path.relative_to(ROOT)) for path in empty]


def test_every_public_function_and_class_says_what_it_is():
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not any("overload" in ast.unparse(one) for one in node.decorator_list)
        if ast.get_docstring(node) is None
    ]
    assert not silent


def test_every_test_asserts_something():
    """By itself, or through a helper of the tests that does; a test that is given the check as an argument
    calls it.
    """
    functions: dict[str, list[ast.AST]] = {}
    tests = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.setdefault(node.name, []).append(node)
                if node.name.startswith("test_"):
                    tests.append((path, node))
    asserting = {name for name, nodes in functions.items() if any(_asserts(node, set()) for node in nodes)}
    for _ in range(3):
        asserting |= {
            name for name, nodes in functions.items() if any(_asserts(node, asserting) for node in nodes)
        }
    assert not [
        f"{path.relative_to(ROOT)}: {node.name}" for path, node in tests if not _asserts(node, asserting)
    ]


def _asserts(function: ast.FunctionDef | ast.AsyncFunctionDef, helpers: set[str]) -> bool:
    helpers = helpers | {argument.arg for argument in function.args.args}
    for node in ast.walk(function):
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else node.func.id
                if isinstance(node.func, ast.Name)
                else ""
            )
            if name in helpers or name in ("raises", "warns", "fail") or name.startswith("assert_"):
                return True
    return False


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
