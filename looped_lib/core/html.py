"""Names, errors and answers inside HTML, plotly's labels and Markdown: shown as they stand, never read as markup.

Pandas escapes the cells of a DataFrame itself, those of a Styler only where `format` and `format_index` are told `escape="html"`.
"""

import html

_MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "\\`*_[]{}#|~$!"})


def escape(text: object) -> str:
    """`text` for HTML, quotes included, and for plotly's titles, legends and hover texts, which read a part of HTML."""
    return html.escape(str(text))


def escape_markdown(text: object) -> str:
    """`text` for a line of Markdown, which may hold HTML: what would begin markup of either is an entity."""
    return html.escape(str(text).translate(str.maketrans("\n", " ")), quote=False).translate(_MARKDOWN)
