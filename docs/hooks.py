"""What the site's build adds: the pages that lie in the repository's root.

The changelog, the log and the advice for contributors stay where people look for them in
a repository; here they become pages, and links between them and the other pages are
turned. Knows nothing of what pages say. (`hooks` in mkdocs.yml.)
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root."""
    for name, target in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, page in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({page}")
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(
    markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Leads links to the root's files to their pages."""
    del config, files
    # In tables of the schemas "[layer][vector]" names axes; it is no link.
    markdown = re.sub(r"\[(\w+)\]\[(\w+)\]:", r"[\1]\\[\2]:", markdown)
    up = "../" * page.file.src_uri.count("/")
    for name, target in ROOT_PAGES.items():
        markdown = re.sub(
            rf"\]\({re.escape(up)}\.\./{re.escape(name)}", f"]({up}{target}", markdown
        )
    return markdown
