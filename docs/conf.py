"""Sphinx settings of the documentation. The build needs no network: other projects are not linked to."""

import sys
from pathlib import Path

import dmm_fast

sys.path.insert(0, str(Path(__file__).parent))

project = "dmm_fast"
author = "The dmm_fast developers"
version = release = dmm_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "site_hooks"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"{project} {release}"

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

# Every reference is checked, but the build has no inventories of other projects, and private types
# of signatures have no entry.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|matplotlib|mido|np|numpy|os|pandas|pathlib|pyro|torch|types|typing)\..*"),
    (r"py:class", r"Tensor|PackedSequence"),
    (r"py:class", r"dmm_fast\.(\w+\.)*_\w+\.\w+"),
]
