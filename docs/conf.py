"""The documentation as a site: `make docs`."""

import netmem

project, author = "netmem", "the netmem authors"
version = release = netmem.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = "netmem"
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
copybutton_prompt_text = "$ "
exclude_patterns: list[str] = []
nitpicky = False
