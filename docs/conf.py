"""How Sphinx builds the site. scripts/site_pages.py lays out the pages and calls it; nothing is
executed here."""
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).resolve().parent
_cfg = ConfigParser(delimiters=["="], interpolation=None)
_cfg.read(here.parent/"settings.ini", encoding="utf-8")
_cfg = _cfg["DEFAULT"]
_vendored = (here/"_static"/"vendor"/"versions.json").exists()

project = _cfg["title"]
author = _cfg["author"]
release = _cfg["version"]
copyright = _cfg["copyright"]

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.plotly.v1+json", None)]
# The widget manager and what it needs are files of the site; only pages with a widget load them.
_scripts = ["vendor/require.js", "widgets.js", "vendor/embed-amd.js"] if _vendored else ["still.js"]
nb_ipywidgets_js = {s: {} for s in _scripts}
mathjax_path = "vendor/tex-svg.js" if _vendored else "still.js"
suppress_warnings = ["mystnb.unknown_mime_type", "myst.xref_missing"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["labelkit.css"]
html_favicon = "_static/mark.svg"
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6b57", "color-brand-content": "#0b6b57"},
    "dark_css_variables": {"color-brand-primary": "#5fd1b3", "color-brand-content": "#5fd1b3"},
}
html_logo = "_static/mark.svg"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
toc_object_entries_show_parents = "hide"
python_display_short_literal_types = True
add_module_names = False
nb_output_folder = "_build/jupyter_execute"
# a summary would be fetched from the page, which a browser refuses for pages from the disk
html_show_search_summary = False
