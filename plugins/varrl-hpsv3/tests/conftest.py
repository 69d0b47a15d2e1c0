"""The plugin is tested from its folder, installed or not, its shape annotations checked at run time."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent.parent))
install_import_hook("varrl_hpsv3", "beartype.beartype")
