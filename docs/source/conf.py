"""Settings of the documentation.

No page needs the network to be built, and ``sphinx -b doctest`` runs every
code block (tests/test_docs.py does).
"""

import doctest

from torch_picard._version import __version__

project = "torch_picard"
author = "torch_picard contributors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"torch_picard {__version__}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# A block prints the same each time, and no solve in it fails unnoticed.
doctest_global_setup = """
import warnings

import torch
import torch_picard

torch.manual_seed(0)
warnings.simplefilter("error", torch_picard.ConvergenceWarning)
"""
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1
