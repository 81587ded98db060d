"""Imports inside the package point down this list, never up."""

import ast
import importlib
import pathlib
import subprocess
import sys

import prefchat_jax
from prefchat_jax.errors import UserError
from prefchat_jax.training.kinds import KINDS

LAYERS = [
    "errors",
    "files",
    "pages",
    "numerics",
    "losses",
    "text",
    "datasets",
    "building",
    "models",
    "training",
    "inference",
    "chat",
    "serving",
    "baselines",
    "evaluation",
    "reporting",
    "indexing",
    "tuning",
    "calibration",
    "finetune",
    "preference_tuning",
    "sweep",
    "smalltalk",
    "compat",
    "cli",
]
PACKAGE = pathlib.Path(prefchat_jax.__file__).parent


def _imported(path):
    """(layer, lazily) for each module of the package that a file imports."""
    tree = ast.parse(path.read_text())
    top = set(ast.iter_child_nodes(tree))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "prefchat_jax":
                names = [".".join(parts[1:])] if parts[1:] else []
                names = names or [alias.name for alias in node.names]
        for name in names:
            yield name.split(".")[0], node in top


def test_every_module_has_a_layer():
    rooms = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__main__"} == set(LAYERS)


def test_imports_point_down():
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer in ("__init__", "__main__"):
            continue
        for name, _ in _imported(path):
            if name in LAYERS:
                assert LAYERS.index(name) <= LAYERS.index(layer), f"{path} -> {name}"


def _modules_after(statement):
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def test_the_package_and_the_command_import_no_jax():
    assert "jax" not in _modules_after("import prefchat_jax")
    assert "jax" not in _modules_after("import prefchat_jax.cli.main")
    assert "jax" not in _modules_after(
        "import prefchat_jax.cli.flags, prefchat_jax.training.config"
    )


def test_the_package_lists_what_it_has():
    assert {"Chat", "Reply", "UserError", "losses", "__version__"} <= set(
        dir(prefchat_jax)
    )
    assert prefchat_jax.UserError is UserError
    names = prefchat_jax.losses.__all__
    assert {"dpo", "Group", "mine_negatives"} <= set(names)
    assert not {"links", "groups", "types"} & set(names)


def test_losses_import_jax_alone():
    modules = _modules_after("import prefchat_jax.losses")
    assert "jax" in modules
    assert not modules & {"flax", "optax", "orbax", "tyro", "rich", "msgspec"}


def test_metrics_and_calibration_import_no_jax():
    modules = _modules_after(
        "import prefchat_jax.calibration, prefchat_jax.evaluation.retrieval, "
        "prefchat_jax.evaluation.preferences"
    )
    assert not modules & {"jax", "sklearn", "bm25s", "matplotlib"}


def test_a_report_starts_without_jax_and_without_charts():
    modules = _modules_after("import prefchat_jax.cli.report")
    assert not modules & {"jax", "matplotlib", "scipy", "tensorboardX"}


def test_text_datasets_and_inference_import_no_jax():
    modules = _modules_after(
        "import prefchat_jax.text.features, prefchat_jax.datasets.records, "
        "prefchat_jax.building.build, prefchat_jax.cli.build, "
        "prefchat_jax.datasets.labels, prefchat_jax.datasets.split, "
        "prefchat_jax.inference, prefchat_jax.cli.export, "
        "prefchat_jax.compat.champion, prefchat_jax.compat.featurizer, "
        "prefchat_jax.compat.importing, prefchat_jax.cli.imported"
    )
    assert "jax" not in modules


def test_only_the_table_of_kinds_names_what_imports_up():
    """As text, imported when a run of that kind is opened."""
    named = [
        path
        for path in PACKAGE.rglob("*.py")
        if "prefchat_jax.compat" in path.read_text()
    ]
    rooms = {path.relative_to(PACKAGE).parts[0] for path in named} - {"compat", "cli"}
    assert rooms == {"training"}
    for kind in KINDS.values():
        for part in kind:
            module, name = part.split(":")
            assert callable(getattr(importlib.import_module(module), name))
