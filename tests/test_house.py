"""Rules of the house, read from the code: who may import whom, and what importing may do."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ("ib_loss", "dbm_loss", "hmloss", "arbloss")
FILES = sorted(
    path for top in (*PAPERS, "common", "datasets", "tools") for path in (ROOT / top).rglob("*.py")
)
PROGRAMS = [path for path in FILES if 'if __name__ == "__main__":' in path.read_text()]
LOSSES = [path for path in FILES if path.name in ("losses.py", "margin.py")]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, and for ``from a import b`` also ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTED = {path: imported(path) for path in FILES}


def test_imports_go_one_way():
    """tools -> papers -> datasets -> common, and no paper imports another."""
    wrong = []
    for path in FILES:
        own = path.relative_to(ROOT).parts[0]
        others = set(PAPERS) - {own}
        may_not = {
            "tools": {"tests"},
            "datasets": {"tests", "tools", *PAPERS},
            "common": {"tests", "tools", *PAPERS, "datasets"},
        }.get(own, {"tests", "tools", *others})
        tops = {name.split(".")[0] for name in IMPORTED[path]}
        wrong += [f"{module_name(path)} imports {top}" for top in tops & may_not]
    assert not wrong


def test_losses_need_torch_and_each_other_alone():
    """They are installed without the rest of the repository."""
    losses = tuple(map(module_name, LOSSES))
    wrong = []
    for path in LOSSES:
        others = [name for name in IMPORTED[path] if not name.startswith(losses)]
        tops = {name.split(".")[0] for name in others} - {"torch", *sys.stdlib_module_names}
        wrong += [f"{module_name(path)} imports {top}" for top in tops]
    assert not wrong


def test_what_is_public_says_what_it_does():
    """Every public class, function and method has a docstring."""
    silent = []
    for path in FILES:
        public = [(node.name, node) for node in named(ast.parse(path.read_text()).body)]
        public += [
            (f"{name}.{part.name}", part)
            for name, node in public
            if isinstance(node, ast.ClassDef)
            for part in named(node.body)
        ]
        silent += [
            f"{module_name(path)}.{name}"
            for name, node in public
            if not ast.get_docstring(node) and not name.endswith("extra_repr")
        ]
    assert not silent


def named(body: list[ast.stmt]) -> list:
    """The public classes and functions among statements."""
    return [node for node in body if hasattr(node, "name") and not node.name.startswith("_")]


def test_nothing_imports_a_program():
    programs = {module_name(path) for path in PROGRAMS}
    assert {"ib_loss.cifar_train", "ib_loss.tinyimage_train"} <= programs
    pairs = {(module_name(path), name) for path in FILES for name in IMPORTED[path] & programs}
    same_program = {("dbm_loss.large_scale.main", "dbm_loss.large_scale.train")}
    assert pairs == same_program


def test_importing_everything_parses_nothing_reads_nothing_and_needs_no_gpu():
    code = (
        "import sys, importlib, builtins\n"
        "sys.argv = ['x', '--no-such-flag']\n"
        "import torch\n"
        "def refuse(*a, **k): raise SystemExit('CUDA was touched')\n"
        "torch.cuda.init = torch.cuda._lazy_init = refuse\n"
        "for name in sys.stdin.read().split(): importlib.import_module(name)\n"
    )
    names = "\n".join(module_name(path) for path in FILES)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input=names, text=True, capture_output=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_every_program_starts_by_its_file_from_any_folder(tmp_path):
    """``python FILE --help`` where only the file itself can tell where the repository is."""
    code = (
        "import os, runpy, sys, traceback\n"
        "import matplotlib.pyplot, pandas, torchvision\n"  # what takes seconds, once
        "for path in sys.stdin.read().split():\n"
        "    if os.fork() == 0:\n"
        "        sys.path[0], sys.argv = os.path.dirname(path), [path, '--help']\n"
        "        try: runpy.run_path(path, run_name='__main__')\n"
        "        except SystemExit: pass\n"
        "        except Exception: traceback.print_exc()\n"
        "        sys.stdout.flush()\n"
        "        os._exit(0)\n"  # tearing down what was imported takes seconds, too
        "    os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, input="\n".join(map(str, PROGRAMS)),
        text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    usages = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("usage: ")]
    assert usages == [path.name for path in PROGRAMS]


def test_flags_of_programs_for_small_images_are_read_before_torchvision_and_the_like_are_imported():
    """Each of these takes up to as long as torch, which no program does without."""
    names = ("cifar_train.py", "cifar/main.py", "GML/cifar_ce.py", "GML/cifar_main.py",
             "train_cifar.py", "train_stage1.py", "train_stage2.py", "arbloss/eval.py")  # fmt: skip
    light = [path for path in PROGRAMS if path.as_posix().endswith(names)]
    code = (
        "import os, runpy, sys, torch\n"
        "slow = 'torchvision', 'pandas', 'matplotlib', 'sklearn'\n"
        "for path in sys.stdin.read().split():\n"
        "    if os.fork() == 0:\n"
        "        sys.path[0], sys.argv = os.path.dirname(path), [path, '--no-such-flag']\n"
        "        try: runpy.run_path(path, run_name='__main__')\n"
        "        except SystemExit: pass\n"
        "        print(path, [name for name in slow if name in sys.modules], flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input="\n".join(map(str, light)), text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{path} []" for path in light] and len(light) == 8


def test_a_command_line_is_read_with_half_of_the_lines_that_it_once_took():
    """Importing cifar_train read 4,737 lines of the repository; the number may not grow."""
    code = (
        "import sys, ib_loss.cifar_train\n"
        "files = {getattr(module, '__file__', None) or '' for module in sys.modules.values()}\n"
        f"ours = tuple({str(ROOT)!r} + top for top in ('/ib_loss/', '/common/', '/datasets/'))\n"
        "files = [file for file in files if file.startswith(ours)]\n"  # a venv may be in it, too
        "print(sum(len(open(file).readlines()) for file in files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert 0 < int(done.stdout) <= 4737 // 2, done.stderr


def heeds_ctrl_c():
    """What a shell starts in the background ignores it, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_importing_is_one_line(tmp_path):
    """The first library that a program imports is one that interrupts it."""
    for library in ("torch", "numpy", "pandas", "PIL", "yaml", "yacs", "matplotlib"):
        (tmp_path / f"{library}.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "RANK": "0"}
    ended = {}
    for path in PROGRAMS:
        done = subprocess.run(
            [sys.executable, path],
            env=env,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
            preexec_fn=heeds_ctrl_c,
        )
        ended[path.name] = done.returncode, done.stdout, done.stderr
    assert ended == {name: (130, "", f"{name}: error: interrupted\n") for name in ended}


def test_nothing_is_tied_to_cuda_or_unsafe():
    tied = re.compile(
        r"\.cuda\(|cuda\.FloatTensor|np\.float\)|np\.int\)|torch\.load\((?!.*weights_only=True)"
    )
    assert not [path for path in FILES if tied.search(path.read_text())]


def test_files_are_written_through_common():
    """common.training writes atomically, and makes one line of a full disk."""
    writes = re.compile(
        r'torch\.save\(|(?<!logs)\.write_(text|bytes)\(|np\.save\((?!file)|open\([^)]*"[rb+]*[wax]'
    )
    appends = ROOT / "tools" / "runner.py"  # to what a program says, from several starts
    elsewhere = [path for path in FILES if path.parent.name != "training" and path != appends]
    assert not [path for path in elsewhere if writes.search(path.read_text())]


def test_the_readme_names_every_shared_module():
    text = (ROOT / "README.md").read_text()
    block = text.split("## How the code is laid out")[1].split("```")[1]
    folder, named = "", {}
    for line in block.strip().splitlines():
        if not line.startswith(" "):
            folder = line.split()[0].rstrip("/")
        named.setdefault(folder, set()).update(re.findall(r"\b\w+\.py\b", line))
    for folder in ("common", "common/training", "datasets", "tools"):
        modules = {path.name for path in (ROOT / folder).glob("*.py")}
        modules -= {"__init__.py"}
        assert named[folder] == modules, folder


def test_one_module_opens_image_files():
    opening = [module_name(path) for path in FILES if "Image.open(" in path.read_text()]
    assert opening == ["datasets.images"]
