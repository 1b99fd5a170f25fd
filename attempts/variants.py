"""Load the kernels' variants beside the shipped ones, as modules of lemmata.kernels."""
import importlib.util, sys
from pathlib import Path

HERE = Path(__file__).parent


def load(name):
    full = f"lemmata.kernels.{name}"
    if full not in sys.modules:
        import lemmata.kernels
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        setattr(lemmata.kernels, name, module)
        spec.loader.exec_module(module)
    return sys.modules[full]
